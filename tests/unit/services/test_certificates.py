"""Callers with certificates, with keys, and with both."""

from __future__ import annotations

import pytest

from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.callers.san import SanPattern
from loramux_server.core.errors import Code, Error
from loramux_server.services.access.certificates import Certificates
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.access.refusals import invalid

KEYS = {
    "acme's": Principal("acme", frozenset({Scope.INFER}), "k1", frozenset({"style"})),
    "other's": Principal("other", frozenset(Scope), "k2"),
}


class Bearer:
    async def authenticate(self, credentials: Credentials) -> Principal:
        for key, principal in KEYS.items():
            if key in credentials.authorization:
                return principal
        raise invalid()


ACME, OTHER, NOBODY = "DNS:acme.tenants", "DNS:other.tenants", "DNS:monitor.example.org"
CERTIFICATES = Certificates(SanPattern.parse("{tenant}.tenants"), Bearer())


def shown(key: str, *names: str) -> Credentials:
    return Credentials((key,) if key else (), names)


async def test_a_certificate_alone_is_its_tenant_without_admin() -> None:
    principal = await CERTIFICATES.authenticate(shown("", NOBODY, ACME))
    assert principal.tenant == "acme"
    assert principal.scopes == {Scope.INFER, Scope.READ_ADAPTERS, Scope.WRITE_ADAPTERS, Scope.TRAIN}
    assert principal.adapters is None


@pytest.mark.parametrize(("key", "names"), [("acme's", (ACME,)), ("other's", (NOBODY,)), ("other's", ())])
async def test_a_key_beside_it_decides(key: str, names: tuple[str, ...]) -> None:
    assert await CERTIFICATES.authenticate(shown(key, *names)) == KEYS[key]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("", ()),
        ("", (NOBODY,)),
        ("", (ACME, OTHER)),
        ("acme's", (ACME, OTHER)),
        ("acme's", (OTHER,)),
        ("other's", (ACME,)),
        ("nobody's", (ACME,)),
        ("nobody's", (NOBODY,)),
    ],
)
async def test_who_is_refused(key: str, names: tuple[str, ...]) -> None:
    with pytest.raises(Error) as caught:
        await CERTIFICATES.authenticate(shown(key, *names))
    assert caught.value.code is Code.UNAUTHENTICATED
