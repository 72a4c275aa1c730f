"""What an operator can get wrong at start: one clear line, the right exit code, before the base is loaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux_server.store.state_dir import StateDir
from tests.certificates import DAY, new_ca

from .server_process import free_port, run_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def refusal(home: Path, *flags: str) -> str:
    """The only line of a server that exits with 1, but for the one that it starts, on a slow machine."""
    code, lines = run_server(home, *flags)
    assert code == 1, lines
    assert [line.endswith(" starts.") for line in lines[:-1]] in ([], [True]), lines
    return lines[-1]


def test_port_taken(tmp_path: Path, taken: str) -> None:
    line = refusal(tmp_path, "--listen", taken, "--metrics-listen", "off", "--state-dir", str(tmp_path / "s"))
    assert taken in line
    assert "--listen" in line


def test_metrics_port_taken(tmp_path: Path, taken: str) -> None:
    flags = ("--listen", f"127.0.0.1:{free_port()}", "--metrics-listen", taken, "--state-dir", str(tmp_path / "s"))
    line = refusal(tmp_path, *flags)
    assert taken in line
    assert "--metrics-listen" in line


def test_state_directory_in_use(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "s")
    try:
        line = refusal(tmp_path, "--listen", "127.0.0.1:0", "--metrics-listen", "off", "--state-dir", str(state.path))
    finally:
        state.close()
    assert "in use by another server" in line
    assert "--state-dir" in line


def test_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = refusal(tmp_path, "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "file" / "s"))
    assert "--state-dir" in line


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[::ffff:0.0.0.0]"])
def test_an_address_that_others_reach(tmp_path: Path, host: str) -> None:
    flags = ("--metrics-listen", "off", "--state-dir", str(tmp_path / "s"))
    line = refusal(tmp_path, "--listen", f"{host}:{free_port()}", *flags)
    for way in ("--tls-cert", "127.0.0.1", "--insecure"):
        assert way in line
    cert, key = new_ca().issue("localhost").write(tmp_path)
    files = ("--tls-cert", str(cert), "--tls-key", str(key))
    line = refusal(tmp_path, "--listen", f"{host}:{free_port()}", *flags, *files)
    assert "loramux keys create" in line
    line = refusal(tmp_path, "--metrics-listen", f"{host}:{free_port()}", *flags[2:])
    assert "--metrics-token" in line


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    flags = ("--listen", "127.0.0.1:0", "--metrics-listen", "off", "--state-dir", str(tmp_path / "s"))
    ca = new_ca()
    cert, key = ca.issue("localhost", ends=-DAY / 2).write(tmp_path)
    files = ("--tls-cert", str(cert), "--tls-key", str(key))
    assert f"the certificate in {cert} expired" in refusal(tmp_path, *flags, *files)
    ca.issue("other").write(tmp_path, "other")
    cert.write_bytes((tmp_path / "other.crt").read_bytes())
    assert f"{key} is not the key" in refusal(tmp_path, *flags, *files)
    key.unlink()
    assert f"cannot read {key}" in refusal(tmp_path, *flags, *files)


def test_base_not_found(tmp_path: Path) -> None:
    flags = ("--listen", "127.0.0.1:0", "--metrics-listen", "off", "--state-dir", str(tmp_path / "s"))
    code, lines = run_server(tmp_path, *flags, "--model", str(tmp_path / "no-such-model"))
    assert code == 1
    assert "no-such-model" in lines[-1]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--max-running", "0"), "--max-running"),
        (("--kv-cache-memory", "lots"), "--kv-cache-memory"),
        (("--no-such-flag",), "--no-such-flag"),
        (("--config", "/no/such/file.toml"), "--config"),
    ],
)
def test_bad_settings_exit_with_two(tmp_path: Path, flags: tuple[str, ...], named: str) -> None:
    code, lines = run_server(tmp_path, *flags)
    assert code == 2
    assert [line.endswith(" starts.") for line in lines[:-1]] in ([], [True])
    assert named in lines[-1]
