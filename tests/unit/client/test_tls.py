"""Clients on TLS: whom they trust, what they show, and what they say when it does not work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from loramux import AsyncClient, Client, InvalidArgument, Unavailable
from loramux._wire.connection.channel import target
from loramux.cli import main
from tests.certificates import DAY, LOOPBACK, Issued, new_ca

from .fake import Fake, start

CA, OTHER_CA, CLIENT_CA = new_ca(), new_ca(), new_ca()
SERVER = CA.issue(*LOOPBACK)
OWN = CLIENT_CA.issue("acme.test")


@contextmanager
def served(server: Issued = SERVER, client_ca: Issued | None = None) -> Iterator[Fake]:
    credentials = grpc.ssl_server_credentials(
        [(server.key, server.cert)], client_ca.cert if client_ca else None, client_ca is not None
    )
    fake = Fake()
    running = start(fake, credentials)
    try:
        yield fake
    finally:
        running.stop(grace=None).wait()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """By name of the argument; ``other_ca`` is one that did not sign the server's."""
    cert, key = OWN.write(tmp_path, "client")
    for name, ca in (("ca", CA), ("other", OTHER_CA)):
        (tmp_path / f"{name}.crt").write_bytes(ca.cert)
    return {
        "ca_file": tmp_path / "ca.crt",
        "other_ca": tmp_path / "other.crt",
        "cert_file": cert,
        "key_file": key,
    }


def failure(address: str, **given: object) -> Unavailable:
    with Client(address, timeout=20, **given) as client, pytest.raises(Unavailable) as caught:  # type: ignore[arg-type]
        client.health(timeout=20)  # which is not tried again
    return caught.value


def test_a_ca_file_means_tls(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as fake:
        for address in (fake.address, f"https://{fake.address}"):
            for ca_file in (files["ca_file"], str(files["ca_file"])):
                with Client(address, ca_file=ca_file, api_key="k") as client:
                    assert client.info().version == "9.9"
                    assert client.health() == "SERVING"
        assert ("authorization", "Bearer k") in fake.metadata
        with Client(fake.address, root_certificates=CA.cert) as client:
            assert client.info().version == "9.9"
        monkeypatch.setenv("LORAMUX_CA_FILE", str(files["ca_file"]))
        with Client(fake.address) as client:
            assert client.info().version == "9.9"


async def test_the_async_client_does_too(files: dict[str, Path]) -> None:
    with served(client_ca=CLIENT_CA) as fake:
        own = {name: files[name] for name in ("ca_file", "cert_file", "key_file")}
        async with AsyncClient(fake.address, **own) as client:
            assert (await client.info()).version == "9.9"
            assert "".join([chunk.text async for chunk in client.stream("hi")]) == "Hello"


def test_a_certificate_is_shown_where_it_is_asked_for(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with served(client_ca=CLIENT_CA) as fake:
        error = failure(fake.address, ca_file=files["ca_file"])
        assert error.reason == "CONNECTION_CLOSED"
        assert "cert_file" in error.message
        monkeypatch.setenv("LORAMUX_CERT_FILE", str(files["cert_file"]))
        monkeypatch.setenv("LORAMUX_KEY_FILE", str(files["key_file"]))
        with Client(fake.address, ca_file=files["ca_file"]) as client:
            assert client.info().version == "9.9"


def test_another_ca_is_named_as_the_reason(files: dict[str, Path]) -> None:
    with served() as fake:
        for given in ({"ca_file": files["other_ca"]}, {"tls": True}):
            error = failure(fake.address, **given)
            assert error.reason == "CERTIFICATE_NOT_TRUSTED"
            assert f"https://{fake.address}" in error.message
            for way in ("ca_file=", "--ca-file", "LORAMUX_CA_FILE"):
                assert way in error.message
            assert "OPENSSL" not in error.message


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (CA.issue(*LOOPBACK, ends=-DAY / 2), "has expired"),
        (CA.issue(*LOOPBACK, begins=timedelta(hours=1)), "not valid yet"),
    ],
)
def test_a_certificate_at_the_wrong_time(files: dict[str, Path], server: Issued, told: str) -> None:
    with served(server) as fake:
        assert told in failure(fake.address, ca_file=files["ca_file"]).message


def test_a_certificate_for_another_name(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with served(CA.issue("loramux.svc")) as fake:
        error = failure(fake.address, ca_file=files["ca_file"])
        assert error.reason == "CERTIFICATE_FOR_OTHER_NAME"
        assert "--server-name" in error.message
        with Client(fake.address, ca_file=files["ca_file"], server_name="loramux.svc") as client:
            assert client.info().version == "9.9"
        monkeypatch.setenv("LORAMUX_SERVER_NAME", "loramux.svc")
        with Client(fake.address, ca_file=files["ca_file"]) as client:
            assert client.info().version == "9.9"


def test_tls_and_plain_text_that_meet(fake: Fake, files: dict[str, Path]) -> None:
    error = failure(fake.address, ca_file=files["ca_file"])
    assert error.reason == "NO_TLS"
    assert f"http://{fake.address}" in error.message
    with served() as secured:
        error = failure(secured.address)
        assert error.reason == "CONNECTION_CLOSED"
        assert f"https://{secured.address}" in error.message


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"cert_file": "CERT"}, "key_file"),
        ({"key_file": "KEY"}, "cert_file"),
        ({"ca_file": "/no/such/file"}, "ca_file"),
        ({"ca_file": "KEY"}, "ca_file"),
        ({"ca_file": "a\0b"}, "ca_file"),
        ({"ca_file": 7}, "ca_file"),
        ({"server_name": 7}, "server_name"),
        ({"cert_file": "CERT", "key_file": "CERT"}, "key_file"),
        ({"cert_file": "CERT", "key_file": "LOCKED"}, "key_file"),
        ({"ca_file": "CA", "root_certificates": b"x"}, "ca_file"),
        ({"ca_file": "CA", "tls": False}, "ca_file"),
        ({"ca_file": "CA", "address": "http://gpu"}, "ca_file"),
        ({"root_certificates": b"x", "address": "grpc://gpu"}, "root_certificates"),
    ],
)
def test_arguments_that_cannot_be_used(files: dict[str, Path], given: dict[str, object], field: str) -> None:
    locked = files["key_file"].with_suffix(".locked")
    locked.write_bytes(OWN.key_with(b"secret"))
    names = {"CA": files["ca_file"], "CERT": files["cert_file"], "KEY": files["key_file"], "LOCKED": locked}
    arguments = {name: names.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(InvalidArgument) as caught:
        Client(**arguments)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("address", "tls", "crosses"),
    [
        ("gpu:7000", None, True),
        ("dns:///gpu:7000", None, True),
        ("10.0.0.1", None, True),
        ("localhost.example", None, True),
        ("gpu:7000", False, False),  # as asked for
        ("http://gpu:7000", None, False),
        ("grpc://gpu:7000", None, False),
        ("https://gpu:7000", None, False),
        ("gpu:7000", True, False),
        ("localhost:7000", None, False),
        ("127.0.0.1", None, False),
        ("unix:/run/loramux.sock", None, False),
    ],
)
def test_a_key_does_not_cross_a_network_in_plain_text_unasked(
    address: str, tls: bool | None, crosses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> None:
        if not crosses:
            assert ("authorization", "Bearer lmx_k_secret") in target(address, None, tls).metadata
            return
        with pytest.raises(InvalidArgument, match="plain text") as caught:
            target(address, None, tls)
        assert "https://" in caught.value.message
        assert "secret" not in caught.value.message

    monkeypatch.setenv("LORAMUX_API_KEY", "lmx_k_secret")
    connect()


def test_a_target_does_not_show_its_key() -> None:
    assert "secret" not in repr(target("localhost", "lmx_k_secret"))


def test_the_command_line(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: Fake
) -> None:
    own = ["--cert-file", str(files["cert_file"]), "--key-file", str(files["key_file"])]
    with served(CA.issue("loramux.svc"), client_ca=CLIENT_CA) as secured:
        address = ["--address", f"https://{secured.address}"]
        ca = ["--ca-file", str(files["ca_file"]), "--server-name=loramux.svc"]
        assert main(["health", *address, *ca, *own]) == 0  # behind the command
        assert main([*address, *ca, *own, "health"]) == 0
        assert main(["health", *address, *own, "--ca-file", str(files["other_ca"])]) == 1
        assert "--ca-file" in capsys.readouterr().out
        assert main(["info", *address, *own, "--ca-file", "/no/such/file"]) == 1
        assert "ca_file: cannot read '/no/such/file'" in capsys.readouterr().err
    monkeypatch.setenv("LORAMUX_CA_FILE", str(files["ca_file"]))
    assert main(["health", "--address", f"http://{fake.address}"]) == 0  # a variable gives way to what is said
