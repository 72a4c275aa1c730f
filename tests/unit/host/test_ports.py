"""Which hosts only this machine reaches."""

from __future__ import annotations

import socket

import pytest

from loramux_server.host.ports import is_loopback


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("127.1", True),
        ("2130706433", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("0", False),
        ("::", False),
        ("::ffff:0.0.0.0", False),
        ("::ffff:10.0.0.1", False),
        ("::127.0.0.1", False),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("fe80::1", False),
        ("127.0.0.1.example.invalid", False),
        ("no-such-host.invalid", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_name_is_loopback_when_all_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"here": ("127.0.0.1", "::1"), "both": ("127.0.0.1", "10.0.0.1"), "none": ()}

    def resolve(host: str, *args: object, **options: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert [is_loopback(name) for name in addresses] == [True, False, False]
