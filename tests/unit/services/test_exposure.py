"""Where a server may listen, by what keeps others off."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_server.config import load
from loramux_server.core.errors import Code, Error
from loramux_server.services.access.exposure import check_listen, check_metrics_listen

FILES = {"tls.cert": "c.pem", "tls.key": "k.pem"}
LOOPBACK = ("127.0.0.1:0", "localhost:0", "[::1]:0", "[::ffff:127.0.0.1]:0", "127.8.0.1:0")
OTHERS = ("0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0", "[::ffff:10.0.0.1]:0", "10.0.0.1:0", "no-such-host.invalid:0")


def listen(address: str, *, callers_known: bool = False, **flags: object) -> None:
    check_listen(load({"listen": address, "state_dir": "/s", **flags}).settings, callers_known=callers_known)


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_needs_nothing(address: str) -> None:
    listen(address)


@pytest.mark.parametrize("address", OTHERS)
@pytest.mark.parametrize(("tls", "known"), [(False, False), (True, False), (False, True)])
def test_other_addresses_need_both(address: str, tls: bool, known: bool) -> None:
    with pytest.raises(Error) as caught:
        listen(address, callers_known=known, **(FILES if tls else {}))
    message = caught.value.message
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "LISTENS_OPENLY")
    assert address in message
    assert ("--tls-cert" in message, "loramux keys create" in message) == (not tls, not known)
    assert "--listen 127.0.0.1:" in message
    assert "--insecure" in message
    listen(address, callers_known=known, insecure=True, **(FILES if tls else {}))
    listen(address, callers_known=True, **FILES)


@pytest.mark.parametrize("address", OTHERS)
def test_metrics_need_tls_and_a_token_there(address: str) -> None:
    there = {"metrics_listen": address, "state_dir": "/s"}
    for flags in ({}, {"metrics_tls": True, **FILES}, {"metrics_token": "t"}):
        with pytest.raises(Error, match="--metrics-listen") as caught:
            check_metrics_listen(load({**there, **flags}).settings)
        message = caught.value.message
        assert ("--metrics-tls" in message) == ("metrics_tls" not in flags)
        assert ("--metrics-token" in message) == ("metrics_token" not in flags)
    check_metrics_listen(load({**there, **FILES, "metrics_tls": True, "metrics_token": "t"}).settings)
    check_metrics_listen(load({**there, "insecure": True}).settings)


def test_metrics_on_loopback_or_nowhere_need_nothing() -> None:
    for address in (*LOOPBACK, "off"):
        check_metrics_listen(load({"metrics_listen": address, "state_dir": "/s"}).settings)


@pytest.mark.parametrize("listen", [":50051", "50051", ""])
def test_an_address_without_a_host_is_none(listen: str) -> None:
    with pytest.raises(Error, match="--listen"):
        load({"listen": listen, "state_dir": "/s"})


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"tls.cert": "c"}, "--tls-key"),
        ({"tls.key": "k"}, "--tls-cert"),
        ({"tls.client_ca": "a"}, "--tls-client-ca"),
        ({**FILES, "tls.tenant_from_san": "{tenant}"}, "--tls-tenant-from-san"),
        ({**FILES, "tls.client_ca": "a", "tls.tenant_from_san": "acme"}, "--tls-tenant-from-san"),
        ({"metrics_tls": True}, "--metrics-tls"),
    ],
)
def test_flags_that_need_others(flags: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        load({**flags, "state_dir": str(tmp_path)})
    assert [violation.field for violation in caught.value.violations] == [named]
