"""The metrics endpoint on a network: TLS, its token, and clients that mean harm."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from loramux_server.core.errors import Code, Error
from loramux_server.host.certificates import CertificateFiles
from loramux_server.telemetry import scrapes
from loramux_server.telemetry.endpoint import MetricsEndpoint
from tests.certificates import LOOPBACK, Issued, new_ca

CA = new_ca()
TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("shown", "A figure.", registry=registry).set(7)
    return registry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the files of both endpoints."""
    folder = tmp_path_factory.mktemp("endpoint")
    CA.issue(*LOOPBACK).write(folder)
    (folder / "token").write_text(f"{TOKEN}\n")
    return folder


@pytest.fixture(scope="module")
def plain(registry: CollectorRegistry, folder: Path) -> Iterator[MetricsEndpoint]:
    """Without TLS, with a token."""
    endpoint = MetricsEndpoint(registry, CollectorRegistry(), "127.0.0.1", 0, token=folder / "token")
    endpoint.start()
    yield endpoint
    endpoint.stop()


@pytest.fixture(scope="module")
def secured(registry: CollectorRegistry, folder: Path) -> Iterator[MetricsEndpoint]:
    """With TLS, without a token."""
    files = CertificateFiles(folder / "tls.crt", folder / "tls.key")
    endpoint = MetricsEndpoint(registry, CollectorRegistry(), "127.0.0.1", 0, certificate=files)
    endpoint.start()
    yield endpoint
    endpoint.stop()


def trusting(ca: Issued) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca.cert.decode())


def scrape(connection: http.client.HTTPConnection, authorization: str | None = None) -> tuple[int, str]:
    connection.request("GET", "/metrics", headers={"Authorization": authorization} if authorization else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def plain_scrape(endpoint: MetricsEndpoint, authorization: str | None = None) -> tuple[int, str]:
    return scrape(http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10), authorization)


def tls_scrape(endpoint: MetricsEndpoint, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    context = context or trusting(CA)
    return scrape(http.client.HTTPSConnection("127.0.0.1", endpoint.port, timeout=10, context=context))


def test_the_token_opens_it(plain: MetricsEndpoint) -> None:
    for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "):
        status, text = plain_scrape(plain, authorization)
        assert status == 200, authorization
        assert "shown 7.0" in text


def test_anything_else_is_401_without_a_figure(plain: MetricsEndpoint) -> None:
    near = (f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}")
    for authorization in (None, "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", "Bearer t\xf6k\xa0en", *near):
        status, text = plain_scrape(plain, authorization)
        assert status == 401, authorization
        assert "shown" not in text
        assert TOKEN not in text


def test_a_new_token_counts_at_once(plain: MetricsEndpoint, folder: Path) -> None:
    token = folder / "token"
    token.write_text("another-token-of-length")
    assert plain_scrape(plain, f"Bearer {TOKEN}")[0] == 401
    assert plain_scrape(plain, "Bearer another-token-of-length")[0] == 200
    token.write_text("")  # being written: the one before it still counts, and the empty one never
    assert plain_scrape(plain, "Bearer ")[0] == 401
    assert plain_scrape(plain, "Bearer another-token-of-length")[0] == 200
    token.write_text(TOKEN)
    assert plain_scrape(plain, f"Bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize("content", [b"", b"short", b"two words of a token", "tökén-of-some-length".encode()])
def test_tokens_that_are_none(registry: CollectorRegistry, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(Error, match="--metrics-token") as caught:
        MetricsEndpoint(registry, CollectorRegistry(), "127.0.0.1", 0, token=path)
    assert caught.value.code is Code.FAILED_PRECONDITION
    path.unlink()
    with pytest.raises(Error, match="No such file"):
        MetricsEndpoint(registry, CollectorRegistry(), "127.0.0.1", 0, token=path)


def test_tls(secured: MetricsEndpoint) -> None:
    assert tls_scrape(secured)[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        tls_scrape(secured, trusting(new_ca()))
    with pytest.raises((http.client.HTTPException, OSError)):
        plain_scrape(secured)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_before_1_2_is_refused(secured: MetricsEndpoint) -> None:
    context = trusting(CA)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        tls_scrape(secured, context)


def test_a_renewed_certificate_is_shown(secured: MetricsEndpoint, folder: Path) -> None:
    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", secured.port))

    before = shown()
    (folder / "tls.key").write_bytes(b"nonsense")
    assert shown() == before
    renewed = CA.issue(*LOOPBACK)
    renewed.write(folder)
    assert shown() == renewed.cert.decode()


def test_connections_that_say_nothing_hold_no_scrape_up(secured: MetricsEndpoint) -> None:
    silent = [socket.create_connection(("127.0.0.1", secured.port), timeout=5) for _ in range(10)]
    assert tls_scrape(secured)[0] == 200
    for connection in silent:
        connection.close()


def test_connections_are_bounded_in_number_and_time(plain: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrapes, "LONGEST", 0.0)
    threads = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", plain.port), timeout=10) for _ in range(40)]
    assert threading.active_count() <= threads + scrapes.MOST_CONNECTIONS
    assert [connection.recv(1) for connection in silent] == [b""] * 40  # all of them are closed, without a word
    monkeypatch.undo()
    assert plain_scrape(plain, f"Bearer {TOKEN}")[0] == 200
