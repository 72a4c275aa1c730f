"""Which hosts only this machine reaches, and where a server can listen."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from threading import Thread

import pytest

from loramux_server.host.ports import bound_socket, is_loopback, why_not
from loramux_server.telemetry.scrapes import ScrapeServer


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


def reached(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(why_not("::1", 0) != "", reason="there is no IPv6 here")
def test_all_addresses_are_those_of_both_families() -> None:
    with bound_socket("::", 0) as listening:
        listening.listen()
        assert [reached(host, listening.getsockname()[1]) for host in ("127.0.0.1", "::1")] == [True, True]
    with bound_socket("0.0.0.0", 0) as listening:
        listening.listen()
        assert [reached(host, listening.getsockname()[1]) for host in ("127.0.0.1", "::1")] == [True, False]


def test_a_scrape_on_all_addresses_is_answered_over_both_families() -> None:
    def page(environ: object, start: object) -> list[bytes]:
        start("200 OK", [])  # type: ignore[operator]
        return [b"figures"]

    server = ScrapeServer("::", 0, page, None)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        for host in ("127.0.0.1", "[::1]") if why_not("::1", 0) == "" else ("127.0.0.1",):
            with urllib.request.urlopen(f"http://{host}:{server.server_port}/metrics", timeout=5) as answer:
                assert answer.read() == b"figures"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_without_ipv6_all_addresses_are_those_of_ipv4() -> None:
    """In a kernel without IPv6, which a filter of system calls stands in for."""
    code = """
from loramux_server.host.ports import bound_socket, why_not
print(bound_socket("::", 0).getsockname()[0], why_not("::", 0) or "free", why_not("::1", 0), sep=";")
"""
    command = [sys.executable, "-m", "tests.unit.host.no_ipv6", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "takes no seccomp filter" in done.stderr:
        pytest.skip("system calls cannot be filtered here")
    assert done.stdout.strip() == "0.0.0.0;free;Address family not supported by protocol", done.stderr


def test_a_port_that_is_taken_says_so() -> None:
    with bound_socket("127.0.0.1", 0) as listening:
        listening.listen()
        assert why_not(*listening.getsockname()) == "Address already in use"
