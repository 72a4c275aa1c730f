"""Real handshakes: who gets in, who does not, and renewals under traffic."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from loramux.v1 import server_pb2, server_pb2_grpc
from loramux_server.core.callers.principal import LOCAL, Principal
from loramux_server.host.certificates import CertificateFiles
from loramux_server.services.access.credentials import Credentials
from tests.certificates import LOOPBACK, Issued, new_ca

from .scripted import Door, open_door

CA, CLIENT_CA = new_ca("servers"), new_ca("clients")
SERVER = CA.issue(*LOOPBACK)


class Recording:
    """Takes everybody, and keeps what they showed."""

    def __init__(self) -> None:
        self.seen: list[Credentials] = []

    async def authenticate(self, credentials: Credentials) -> Principal:
        self.seen.append(credentials)
        return LOCAL


def trusting(ca: Issued, own: Issued | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.cert, *((own.key, own.cert) if own else ()))


@asynccontextmanager
async def tls_door(
    folder: Path, *, client_ca: Issued | None = None, own: Issued | None = None, authenticator: Recording | None = None
) -> AsyncIterator[Door]:
    cert, key = SERVER.write(folder)
    if client_ca is not None:
        (folder / "ca.crt").write_bytes(client_ca.cert)
    files = CertificateFiles(cert, key, folder / "ca.crt" if client_ca else None)
    async with open_door(certificate=files, credentials=trusting(CA, own), authenticator=authenticator) as door:
        yield door


async def info(channel: grpc.aio.Channel) -> server_pb2.GetServerInfoResponse:
    return await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
        server_pb2.GetServerInfoRequest(), timeout=20, wait_for_ready=False
    )


async def refused(channel: grpc.aio.Channel) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await info(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return caught.value.details() or ""


async def test_a_client_that_trusts_the_ca_is_answered(tmp_path: Path) -> None:
    recording = Recording()
    async with tls_door(tmp_path, authenticator=recording) as door:
        assert (await info(door.channel)).version == "1.2.3"
    assert [credentials.certificate_names for credentials in recording.seen] == [()]


async def test_a_client_of_another_ca_hangs_up(tmp_path: Path) -> None:
    async with tls_door(tmp_path) as door:
        async with grpc.aio.secure_channel(str(door.server.address), trusting(CLIENT_CA)) as channel:
            assert "CERTIFICATE_VERIFY_FAILED" in await refused(channel)
        assert door.calls.ended == []


async def test_plain_text_gets_no_answer(tmp_path: Path) -> None:
    async with tls_door(tmp_path) as door:
        async with grpc.aio.insecure_channel(str(door.server.address)) as channel:
            await refused(channel)
        assert (await info(door.channel)).version == "1.2.3"


async def test_clients_must_show_a_certificate_of_the_client_ca(tmp_path: Path) -> None:
    recording = Recording()
    names = ("acme.tenants.test", "spiffe://test/tenant/acme", "me@acme.test", "127.0.0.1")
    own = CLIENT_CA.issue(*names)
    async with tls_door(tmp_path, client_ca=CLIENT_CA, own=own, authenticator=recording) as door:
        assert (await info(door.channel)).version == "1.2.3"
        for other in (None, CA.issue(*names), new_ca("clients").issue(*names)):
            async with grpc.aio.secure_channel(str(door.server.address), trusting(CA, other)) as channel:
                await refused(channel)
    assert [credentials.certificate_names for credentials in recording.seen] == [
        ("DNS:acme.tenants.test", "URI:spiffe://test/tenant/acme")
    ]


def handshake(address: str, version: ssl.TLSVersion) -> str:
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=CA.cert.decode())
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return secured.version() or ""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_versions_of_tls(tmp_path: Path) -> None:
    async with tls_door(tmp_path) as door:
        address = str(door.server.address)
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(handshake, address, version)
        assert await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


def serial(address: str) -> int:
    """Serial number of the certificate that the server shows to a new connection."""
    from cryptography import x509

    host, _, port = address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number


def replace(folder: Path, issued: Issued) -> None:
    for path, data in ((folder / "tls.crt", issued.cert), (folder / "tls.key", issued.key)):
        path.with_suffix(".new").write_bytes(data)
        path.with_suffix(".new").rename(path)


async def test_renewals_under_traffic_fail_no_call(tmp_path: Path) -> None:
    async with tls_door(tmp_path) as door:
        address, answered, stop = str(door.server.address), 0, asyncio.Event()

        async def call(channel: grpc.aio.Channel) -> None:
            nonlocal answered
            await info(channel)
            answered += 1

        async def keep_calling() -> None:
            while not stop.is_set():
                await call(door.channel)
                async with grpc.aio.secure_channel(address, trusting(CA)) as channel:
                    await call(channel)

        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(keep_calling()) for _ in range(4)]
            for _ in range(5):
                renewed, before = CA.issue(*LOOPBACK), answered
                replace(tmp_path, renewed)
                while await asyncio.to_thread(serial, address) != renewed.certificate.serial_number:
                    assert not any(task.done() for task in callers)
                while answered < before + 8:
                    await asyncio.sleep(0)
                    assert not any(task.done() for task in callers)
            (tmp_path / "tls.key").write_bytes(b"nonsense")
            assert await asyncio.to_thread(serial, address) == renewed.certificate.serial_number
            stop.set()
    assert answered >= 40


async def test_a_client_ca_can_be_renewed(tmp_path: Path) -> None:
    new = new_ca("new clients")
    async with tls_door(tmp_path, client_ca=CLIENT_CA, own=CLIENT_CA.issue("old.test")) as door:
        address = str(door.server.address)
        await info(door.channel)
        (tmp_path / "ca.new").write_bytes(new.cert)
        (tmp_path / "ca.new").rename(tmp_path / "ca.crt")
        async with grpc.aio.secure_channel(address, trusting(CA, new.issue("new.test"))) as channel:
            await info(channel)
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.secure_channel(address, trusting(CA, CLIENT_CA.issue("old.test")), options) as channel:
            await refused(channel)


async def test_connections_that_say_nothing_hold_nobody_up(tmp_path: Path) -> None:
    async with tls_door(tmp_path) as door:
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(socket.create_connection(tuple(door.server.address), timeout=5))
            assert (await info(door.channel)).version == "1.2.3"
