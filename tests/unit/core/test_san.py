"""Which names of a certificate name a tenant."""

from __future__ import annotations

import pytest

from loramux_server.core.callers.san import SanPattern

SPIFFE = "spiffe://example.org/tenant/{tenant}"
HOSTS = "{tenant}.tenants.example.org"


@pytest.mark.parametrize(
    ("pattern", "name", "tenant"),
    [
        (SPIFFE, "URI:spiffe://example.org/tenant/acme", "acme"),
        (SPIFFE, "URI:spiffe://example.org/tenant/acme.eu", "acme.eu"),
        (SPIFFE, "URI:spiffe://example.org/tenant/acme/admin", None),
        (SPIFFE, "URI:spiffe://example.org/tenant/", None),
        (SPIFFE, "URI:spiffe://example.org/tenant/Acme", None),
        (SPIFFE, "URI:spiffe://exampleXorg/tenant/acme", None),
        (SPIFFE, "URI:spiffe://example.org.evil/tenant/acme", None),
        (SPIFFE, "URI:x/spiffe://example.org/tenant/acme", None),
        (SPIFFE, "URI:spiffe://example.org/tenant/acme\n", None),
        (SPIFFE, "URI:spiffe://example.org/tenant/acme\0", None),
        (SPIFFE, "URI:spiffe://example.org/tenant/_server", None),
        (SPIFFE, "URI:spiffe://example.org/tenant/" + 65 * "a", None),
        (SPIFFE, "DNS:spiffe://example.org/tenant/acme", None),  # a name of another kind that looks like it
        ("spiffe://{tenant}/service", "URI:spiffe://acme/service", "acme"),
        (HOSTS, "DNS:acme.tenants.example.org", "acme"),
        (HOSTS, "DNS:ACME.Tenants.Example.ORG", "acme"),
        (HOSTS, "DNS:a.acme.tenants.example.org", None),
        (HOSTS, "DNS:*.tenants.example.org", None),
        (HOSTS, "DNS:acme.tenants.example.org.evil", None),
        (HOSTS, "DNS:.tenants.example.org", None),
        (HOSTS, "URI:acme.tenants.example.org", None),
        ("{tenant}", "DNS:acme", "acme"),
        ("{tenant}", "DNS:acme.example.org", None),
        ("(.*){tenant}", "DNS:xacme", None),  # a pattern's other characters mean themselves
    ],
)
def test_tenants(pattern: str, name: str, tenant: str | None) -> None:
    assert SanPattern.parse(pattern).tenants([name]) == ({tenant} if tenant else set())


def test_names_that_name_several_tenants() -> None:
    names = ["DNS:other", "DNS:a.tenants.example.org", "DNS:b.tenants.example.org", "DNS:A.tenants.example.org"]
    assert SanPattern.parse(HOSTS).tenants(names) == {"a", "b"}


@pytest.mark.parametrize("text", ["", "acme", "{tenant}{tenant}", "{tenant} x", "ü{tenant}", "{tenant}\n", "{Tenant}"])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        SanPattern.parse(text)
