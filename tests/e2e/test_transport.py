"""A real server on TLS: tenants by their certificates, renewals under streams, metrics with a token."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux import Client, PermissionDenied, Unauthenticated, Unavailable
from loramux_server.core.callers.keys import ApiKey
from tests.certificates import LOOPBACK, Issued, new_ca

from .conftest import StateDir
from .server_process import ServerProcess, environment, kill

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CA, CLIENT_CA = new_ca(), new_ca()
TOKEN = "0123456789abcdef-token"
OPERATOR = ApiKey.generate()
ROWS = [{"prompt": "When does the mill open?", "completion": " At nine."}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Kubernetes mounts secrets, with clients' certificates beside."""
    folder = tmp_path_factory.mktemp("tls")
    mount(folder, CA.issue(*LOOPBACK))
    for name in ("ca.crt", "clients.crt"):
        (folder / name).write_bytes((CA if name == "ca.crt" else CLIENT_CA).cert)
    for tenant in ("acme", "other"):
        CLIENT_CA.issue(f"spiffe://test/tenant/{tenant}").write(folder, tenant)
    CLIENT_CA.issue("monitor.test").write(folder, "nobody")
    (folder / "token").write_text(TOKEN)
    (folder / "key").write_text(OPERATOR.text)
    return folder


def mount(folder: Path, server: Issued) -> None:
    """Put the server's certificate there in one step, by a symbolic link."""
    data = folder / f"..{server.certificate.serial_number}"
    data.mkdir()
    server.write(data)
    (folder / "..new").symlink_to(data.name)
    os.rename(folder / "..new", folder / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


@pytest.fixture(scope="module")
def server(files: Path, state_with_base: StateDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = {
        "--state-dir": state_with_base("tls-state"),
        "--metrics-listen": "127.0.0.1:0",
        "--tls-cert": files / "tls.crt",
        "--tls-key": files / "tls.key",
        "--tls-client-ca": files / "clients.crt",
        "--tls-tenant-from-san": "spiffe://test/tenant/{tenant}",
        "--metrics-token": files / "token",
        "--bootstrap-key": files / "key",
    }
    words = [word for flag, value in flags.items() for word in (flag, str(value))]
    running = ServerProcess(tmp_path_factory.mktemp("home"), "--metrics-tls", "--device", "cpu", *words)
    try:
        running.wait_for("is ready")
        yield running
    finally:
        kill(running)


def connect(server: ServerProcess, files: Path, tenant: str, **given: Any) -> Client:
    own = {"cert_file": files / f"{tenant}.crt", "key_file": files / f"{tenant}.key"}
    return Client(f"https://{server.address}", ca_file=files / "ca.crt", timeout=60, **own, **given)


def test_certificates_keep_tenants_apart(server: ServerProcess, files: Path) -> None:
    with connect(server, files, "acme") as acme, connect(server, files, "other") as other:
        dataset = acme.datasets.upload(ROWS)
        assert [each.id for each in acme.datasets.list()] == [dataset.id]
        assert other.datasets.list() == []
        assert acme.generate("The capital of France is", max_tokens=2).text


def test_what_a_certificate_does_not_open(server: ServerProcess, files: Path) -> None:
    with connect(server, files, "nobody") as nobody, pytest.raises(Unauthenticated, match="name one tenant"):
        nobody.info()
    with connect(server, files, "nobody", api_key=OPERATOR.text) as operator:
        assert operator.info().base_name
    with connect(server, files, "acme", api_key=OPERATOR.text) as stolen, pytest.raises(Unauthenticated) as refused:
        stolen.info()
    assert refused.value.reason == "KEY_INVALID"
    with connect(server, files, "acme") as acme, pytest.raises(PermissionDenied, match="admin"):
        acme.adapters.share("anything")
    with Client(server.address, ca_file=files / "ca.crt") as without, pytest.raises(Unavailable, match="cert_file"):
        without.health()
    with Client(server.address) as plain, pytest.raises(Unavailable, match="https://"):
        plain.health()


def test_a_renewal_cuts_no_stream_and_is_what_new_clients_see(server: ServerProcess, files: Path) -> None:
    def shown() -> str:
        host, _, port = server.address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)))

    with connect(server, files, "acme") as acme, acme.stream("Once upon a time", max_tokens=64) as stream:
        assert next(stream).text
        renewed = CA.issue(*LOOPBACK)
        mount(files, renewed)
        assert shown() == renewed.cert.decode()
        server.wait_for("certificate read again")
        broken = CA.issue(*LOOPBACK)
        (files / "..data" / "tls.key").write_bytes(broken.key)
        assert shown() == renewed.cert.decode()
        server.wait_for("new certificate cannot be used")
        with connect(server, files, "acme") as newcomer:
            assert newcomer.health() == "SERVING"
        for _ in stream:
            pass
        assert stream.completion.usage.completion_tokens == 64
    mount(files, CA.issue(*LOOPBACK))


def test_metrics_ask_for_the_token(server: ServerProcess, files: Path) -> None:
    server.wait_for("/metrics")
    url = next(line.split()[-1] for line in server.lines if "/metrics" in line)
    assert url.startswith("https://")
    context = ssl.create_default_context(cafile=str(files / "ca.crt"))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, context=context, timeout=10)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, context=context, timeout=10) as answer:
        assert b"loramux_tls_certificate_expiry_timestamp_seconds" in answer.read()


def test_probes_pass_with_the_variables_of_the_client(server: ServerProcess, files: Path, tmp_path: Path) -> None:
    own = {
        "LORAMUX_ADDRESS": f"https://{server.address}",
        "LORAMUX_CA_FILE": str(files / "ca.crt"),
        "LORAMUX_CERT_FILE": str(files / "nobody.crt"),
        "LORAMUX_KEY_FILE": str(files / "nobody.key"),
    }
    for command, missing, code in (("health", "", 0), ("health --liveness", "", 0), ("health", "LORAMUX_CA_FILE", 1)):
        variables = {name: value for name, value in own.items() if name != missing}
        words = [sys.executable, "-m", "loramux", *command.split()]
        done = subprocess.run(
            words, env={**environment(tmp_path), **variables}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done
        assert ("--ca-file" in done.stdout) == bool(code)
        assert done.stderr == ""


def test_handshakes_that_fail_hold_nobody_up_and_fill_no_log(server: ServerProcess, files: Path) -> None:
    host, _, port = server.address.rpartition(":")
    before = len(server.lines)
    for _ in range(200):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(64))
    with connect(server, files, "acme") as acme:
        assert acme.generate("Hello", max_tokens=2).usage.completion_tokens
    assert server.lines[before:] == []
