"""Every signal that stops a server, in every phase of its life, sent as a terminal sends it: to all its processes."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from loramux import Client
from tests.tiny import write_model

from .server_process import ServerProcess, environment, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    found = {pid}
    with suppress(OSError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # a thread has
                for child in (task / "children").read_text().split():
                    found |= family(int(child))
    return found


def tell_all(server: ServerProcess, number: signal.Signals) -> set[int]:
    """Send a signal to a server and its processes, as process managers do; gives who they were."""
    members = family(server.process.pid)
    for member in members:
        with suppress(ProcessLookupError):
            os.kill(member, number)
    return members


def gone(pid: int) -> bool:
    """Whether a process has ended. It closes its files before, so one that is about to is waited for."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([ended], [], [], 10.0)[0])
    finally:
        os.close(ended)


@pytest.mark.parametrize("number", STOPPING)
def test_field_c_a_signal_to_the_demo_ends_its_server(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "loramux", "demo", "--state-dir", str(tmp_path / "state")]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("starts" in line for line in demo.stdout)  # what its server says first
        members = family(demo.pid)
        assert len(members) > 1
        demo.send_signal(number)
        demo.send_signal(signal.SIGTERM)  # several may come
        demo.stdout.read()
        assert demo.wait(30) == 128 + number
    assert all(gone(member) for member in members)


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        *(("starts", number) for number in STOPPING),
        *(("importing PyTorch", number) for number in STOPPING),
        ("loading the base", signal.SIGINT),
        ("reading the GGUF file", signal.SIGINT),
    ],
)
def test_field_22_a_start_is_stopped_at_once_and_quietly(
    phase: str, number: signal.Signals, tmp_path: Path, state_with_base: Callable[[str], Path]
) -> None:
    state = tmp_path / "fresh" if "GGUF" in phase else state_with_base("s")
    flags = ("--state-dir", str(state), "--metrics-listen", "off")
    server = ServerProcess(tmp_path, *flags)
    try:
        server.wait_for(phase)
        members = tell_all(server, number)
        assert server.finish(15) == 0
        # The pipe of standard error is closed: no process of the server is left to write to it.
        assert server.lines[-2:] == ["Stopped before it was ready.", "<end>"]
        assert all(gone(member) for member in members)
        assert not any("Traceback" in line for line in server.lines)
    finally:
        if server.process.poll() is None:
            server.process.kill()


def test_nohup_is_respected(tmp_path: Path) -> None:
    """Where SIGHUP is ignored from the start, the closed terminal stops nothing."""
    command = [sys.executable, "-c", "from loramux_server.host.signals import to_stop; print(*map(int, to_stop()))"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    nohup = subprocess.run(["nohup", *command], capture_output=True, text=True, check=True).stdout.split()
    assert plain == [str(int(n)) for n in STOPPING]
    assert nohup == plain[:2]


@pytest.mark.timeout(300)
def test_field_22_a_closed_terminal_stops_a_job_at_a_checkpoint(tmp_path: Path) -> None:
    """The terminal is gone, so nothing can be said any more; all that SIGTERM does is done all the same."""
    model = write_model(tmp_path / "tiny", "llama")
    state, address = tmp_path / "state", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "loramux_server", "--model", str(model), "--state-dir", str(state)]
    command += ["--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "32MiB", "--metrics-listen", "off"]
    ours, theirs = pty.openpty()
    server = subprocess.Popen(
        [*command, "--listen", address],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(tmp_path),
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    try:
        said = b""
        while b"Ctrl-C" not in said:
            said += os.read(ours, 1 << 16)
        with Client(address) as client:
            rows = [{"prompt": "a", "completion": "b c d"}] * 8
            job = client.train("long", data=rows, epochs=1000, rank=4, batch_size=1)
            next(event for event in job.events() if event.type == "step" and event.step >= 2)
        os.close(ours)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
    assert list((state / "jobs" / job.id).rglob("*.safetensors"))


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
