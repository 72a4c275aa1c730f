"""A whole server on TLS, and one that would let other machines in."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest

from loramux.v1 import server_pb2, server_pb2_grpc
from loramux_server.app.app import App
from loramux_server.config import Address, Settings, TlsSettings
from loramux_server.core.errors import Error
from tests.certificates import LOOPBACK, new_ca
from tests.unit.services.fakes import FakeBackend, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer

CA = new_ca()
SERVER = CA.issue(*LOOPBACK)
TOKEN = "0123456789abcdef"


def server(folder: Path, **given: object) -> App:
    tokenizer = write_tokenizer(folder / "tokenizer")
    local = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "state_dir": folder / "state",
    }
    return App(Settings(**{**local, **given}), FakeBackend(engine_info(400, tokenizer_path=str(tokenizer))))


async def test_calls_and_metrics_over_tls(tmp_path: Path) -> None:
    cert, key = SERVER.write(tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    app = server(tmp_path, tls=TlsSettings(cert=cert, key=key), metrics_tls=True, metrics_token=tmp_path / "token")
    await app.start()
    try:
        async with grpc.aio.secure_channel(app.address, grpc.ssl_channel_credentials(CA.cert)) as channel:
            stub = server_pb2_grpc.ServerServiceStub(channel)
            assert (await stub.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=20)).version
        page = await asyncio.to_thread(scrape, app)
        assert "\nloramux_tls_certificate_expiry_timestamp_seconds " in page
        key.write_bytes(b"nonsense")
        await asyncio.to_thread(scrape, app)  # which looks at the files
        assert 'loramux_tls_reloads_total{result="failed"} 1.0' in await asyncio.to_thread(scrape, app)
    finally:
        await app.stop()


def scrape(app: App) -> str:
    url = f"https://127.0.0.1:{app.metrics_port}/metrics"
    context = ssl.create_default_context(cadata=CA.cert.decode())
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, context=context, timeout=10)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, context=context, timeout=10) as answer:
        return str(answer.read().decode())


async def test_both_doors_ask_clients_for_certificates(tmp_path: Path) -> None:
    """A second door that skips what the first one checks is the classic way in."""
    cert, key = SERVER.write(tmp_path)
    clients = new_ca()
    (tmp_path / "clients.crt").write_bytes(clients.cert)
    own = {
        "acme": clients.issue("monitor.test", "acme.tenants"),
        "nobody": clients.issue("spiffe://acme.tenants", "acme.tenants@test", "127.0.0.1"),
        "stranger": new_ca().issue("acme.tenants"),
    }
    tls = TlsSettings(cert=cert, key=key, client_ca=tmp_path / "clients.crt", tenant_from_san="{tenant}.tenants")
    app = server(tmp_path, tls=tls)
    await app.start()
    try:
        for name in ("", "stranger", "nobody", "acme"):
            context = ssl.create_default_context(cadata=CA.cert.decode())
            shown: tuple[bytes, ...] = ()
            if name:
                context.load_cert_chain(*own[name].write(tmp_path, name))
                shown = own[name].key, own[name].cert
            credentials = grpc.ssl_channel_credentials(CA.cert, *shown)
            if name == "acme":
                assert await grpc_status(app, credentials) is grpc.StatusCode.OK
                assert await asyncio.to_thread(http_status, app, context) == {"/health/live": 200, "/v1/models": 200}
            elif name == "nobody":
                assert await grpc_status(app, credentials) is grpc.StatusCode.UNAUTHENTICATED
                assert await asyncio.to_thread(http_status, app, context) == {"/health/live": 200, "/v1/models": 401}
            else:
                assert await grpc_status(app, credentials) is grpc.StatusCode.UNAVAILABLE
                with pytest.raises((OSError, http.client.HTTPException)):
                    await asyncio.to_thread(http_status, app, context)
    finally:
        await app.stop()


async def grpc_status(app: App, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    async with grpc.aio.secure_channel(app.address, credentials) as channel:
        try:
            await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(server_pb2.GetServerInfoRequest())
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def http_status(app: App, context: ssl.SSLContext) -> dict[str, int]:
    connection = http.client.HTTPSConnection(*app.doors[1].address, timeout=10, context=context)
    found = {}
    for path in ("/health/live", "/v1/models"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        found[path] = answer.status
    return found


async def test_without_tls_nothing_is_told_of_certificates(tmp_path: Path) -> None:
    app = server(tmp_path)
    await app.start()
    try:
        page = f"http://127.0.0.1:{app.metrics_port}/metrics"
        answer = await asyncio.to_thread(urllib.request.urlopen, page, timeout=10)
        assert b"loramux_tls" not in answer.read()
    finally:
        await app.stop()


@pytest.mark.parametrize(
    "given",
    [{name: Address(host, 0)} for name in ("listen", "http_listen", "metrics_listen") for host in ("0.0.0.0", "::")],
)
async def test_others_are_not_let_in_unasked(tmp_path: Path, given: dict[str, object]) -> None:
    cert, key = SERVER.write(tmp_path)
    for tls in (TlsSettings(), TlsSettings(cert=cert, key=key)):
        app = server(tmp_path, tls=tls, **given)
        with pytest.raises(Error, match="--insecure"):
            await app.start()
        assert app.doors[0].address.port == 0  # never bound
        await app.stop()
