"""Addresses."""

from __future__ import annotations

import asyncio
from contextlib import closing
from socket import socket

import pytest

from loramux import AsyncClient, Client, InvalidArgument, Unavailable
from loramux._wire.connection.channel import target
from loramux._wire.connection.proxy import is_local, proxy_of

from .fake import Fake


@pytest.mark.parametrize(
    ("address", "expected", "secure"),
    [
        (None, "localhost:50051", False),
        ("", "localhost:50051", False),
        ("gpu:7000", "gpu:7000", False),
        ("gpu", "gpu:50051", False),
        ("http://gpu:7000", "gpu:7000", False),
        ("https://gpu.example", "gpu.example:50051", True),
        ("grpcs://gpu.example:443/", "gpu.example:443", True),
        ("[::1]:7000", "[::1]:7000", False),
        ("unix:/run/loramux.sock", "unix:/run/loramux.sock", False),
        ("dns:///gpu:7000", "dns:///gpu:7000", False),
    ],
)
def test_addresses(address: str | None, expected: str, secure: bool) -> None:
    found = target(address, None)
    assert (found.address, found.credentials is not None) == (expected, secure)


@pytest.mark.parametrize("address", ["foo://x", "a:b", "a:99999", "://", "a/b", "http://", "me@host:1", ":50051"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        target(address, None)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_field_11_this_machine_is_reached_without_the_proxy(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """gRPC would send even loopback calls to the proxy, here a port on which nobody listens."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    port = fake.address.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "http://localhost", "dns:///localhost"):
        with Client(f"{host}:{port}", timeout=10) as client:
            assert client.info().version == "9.9"

    async def ask() -> str:
        async with AsyncClient(fake.address, timeout=10) as client:
            return (await client.info()).version

    assert asyncio.run(ask()) == "9.9"


def test_field_11_elsewhere_the_error_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("http_proxy", f"http://me:secret@{proxy}")
    with Client("server.invalid:7000", timeout=20) as client, pytest.raises(Unavailable) as caught:
        client.generate("hi")
    message = str(caught.value)
    assert f"http_proxy=http://{proxy}" in message
    assert "no_proxy=server.invalid" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:1", True),
        ("LOCALHOST:1", True),
        ("api.localhost:1", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("0.0.0.0:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("ipv6:[::1]:1", True),
        ("dns:///localhost:1", True),
        ("dns://8.8.8.8/localhost:1", True),
        ("unix:/run/x", True),
        ("unix:///run/x", True),
        ("gpu:1", False),
        ("localhost.example:1", False),
        ("10.0.0.1:1", False),
        ("[2001:db8::1]:1", False),
    ],
)
def test_field_11_what_is_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_field_11_exceptions_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "proxy:3128")
    assert proxy_of("gpu.example:1") == "http_proxy=proxy:3128"
    monkeypatch.setenv("https_proxy", "http://other:1")
    assert proxy_of("gpu.example:1") == "https_proxy=http://other:1"
    monkeypatch.setenv("no_proxy", "localhost, .example")
    assert proxy_of("gpu.example:1") == ""
    assert proxy_of("gpu.elsewhere:1") != ""


def free_port() -> int:
    with closing(socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
