"""Lines go to standard error from a thread: what happens there is nobody else's time, and what is lost is told."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux_server.host.resources import take_open_files
from loramux_server.telemetry.stderr import BEHIND, PIECE, LineWriter


def notice(lines: int, why: str) -> bytes:
    return f"lost {lines}: {why}\n".encode()


class Pipe:
    """A pipe with a writer at its end; nobody reads until asked to."""

    def __init__(self, most_bytes: int = 4 * PIECE) -> None:
        self._rest = b""
        self.read_end, write_end = os.pipe()
        self.write_end = os.dup(write_end)
        self.writer = LineWriter(write_end, notice, most_bytes)

    def lines(self, until: str) -> list[str]:
        """Lines up to the one that begins so."""
        found: list[str] = []
        while not found or not found[-1].startswith(until):
            while b"\n" not in self._rest:
                self._rest += os.read(self.read_end, PIECE)
            line, _, self._rest = self._rest.partition(b"\n")
            found.append(line.decode())
        return found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    with_reader = threading.Thread(target=os.read, args=(made.read_end, 1 << 20), daemon=True)
    with_reader.start()
    made.writer.close(1)


def test_lines_come_in_their_order(pipe: Pipe) -> None:
    for number in range(1000):
        pipe.writer.write(f"{number}\n".encode(), urgent=number % 7 == 0)
    assert pipe.lines("999") == [str(number) for number in range(1000)]
    assert pipe.writer.flush(5)
    assert pipe.writer.dropped == 0


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(pipe: Pipe) -> None:
    line = b"x" * 1023 + b"\n"
    began = time.monotonic()
    for _ in range(2000):
        pipe.writer.write(line)
    assert time.monotonic() - began < 2  # a write to the full pipe would never come back
    assert not pipe.writer.flush(0.05)
    lost = pipe.writer.dropped
    # A pipe's worth, a piece on its way and what may wait are kept.
    assert 2000 - (4 * PIECE + PIECE + (64 << 10)) // 1024 - 64 <= lost < 2000
    found = pipe.lines("lost ")
    pipe.writer.write(b"last\n")
    found += pipe.lines("last")
    assert found.count("x" * 1023) + lost == 2000
    told = [text.split() for text in found if text.startswith("lost")]
    assert sum(int(words[1].rstrip(":")) for words in told) == lost == pipe.writer.dropped
    assert all(" ".join(words[2:]) == BEHIND for words in told)


def test_a_disk_that_is_full_is_told_once_there_is_room() -> None:
    """The descriptor is pointed elsewhere, as if the disk had room again."""
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(fd, notice)
    for _ in range(3):
        writer.write(b"gone\n")
        assert writer.flush(5)
    assert writer.dropped == 3
    read_end, write_end = os.pipe()
    os.dup2(write_end, fd)
    os.close(write_end)
    writer.write(b"here\n")
    assert writer.flush(5)
    writer.close(1)
    assert os.read(read_end, 1000).decode().splitlines() == ["here", "lost 3: No space left on device"]


def test_a_line_that_was_torn_does_not_spoil_the_next(tmp_path: Path) -> None:
    """A file may have no more than so many bytes: the last line is cut in the middle."""
    script = tmp_path / "torn.py"
    script.write_text(
        "import os, resource, signal, sys\n"
        "from loramux_server.telemetry.stderr import LineWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "writer = LineWriter(fd, lambda lines, why: f'lost {lines}: {why}\\n'.encode())\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12, hard))\n"
        "writer.write(b'12345678\\n'); writer.flush(5)\n"
        "writer.write(b'abcdefgh\\n'); writer.flush(5)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "writer.write(b'whole\\n'); writer.flush(5)\n"
        "print(writer.dropped)\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path / "log"], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert (tmp_path / "log").read_text().splitlines() == ["12345678", "abc", "whole", "lost 1: File too large"]


def test_a_reader_that_is_gone_is_no_end(pipe: Pipe) -> None:
    os.close(pipe.read_end)
    pipe.writer.write(b"nobody\n")
    assert pipe.writer.flush(5)
    assert pipe.writer.dropped == 1
    pipe.read_end, other = os.pipe()
    os.dup2(other, pipe.writer._fd)
    pipe.writer.write(b"somebody\n")
    assert pipe.lines("lost") == ["somebody", "lost 1: Broken pipe"]


@pytest.mark.parametrize("least", [0, 1100])
def test_a_file_that_others_do_not_want_to_wait_for(pipe: Pipe, least: int) -> None:
    """Whoever shares the pipe may have made it non-blocking, such as a shell's terminal: nothing is lost by that.

    Nor where the number of the descriptor is beyond what select() takes.
    """
    take_open_files()
    pipe.writer._fd = fcntl.fcntl(pipe.writer._fd, fcntl.F_DUPFD, least)
    fcntl.fcntl(pipe.write_end, fcntl.F_SETFL, os.O_NONBLOCK)
    for number in range(200):
        pipe.writer.write(b"%d %s\n" % (number, b"x" * 1000))
    pipe.writer.write(b"end\n")
    assert len(pipe.lines("end")) == 201
    assert pipe.writer.dropped == 0


LEAVING = """
import atexit, ctypes, os
from loramux_server.telemetry.stderr import hush_exit

hush_exit()
atexit.register(os.write, 2, b"the last line\\n")

libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
what = ctypes.c_void_p(libc.strdup(b"leaked 3 functions"))
libc.on_exit(libc.psignal, what)  # writes it to standard error when C's exit handlers run
"""


def test_what_native_libraries_say_at_the_exit_is_no_line() -> None:
    child = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, timeout=60, check=True)
    assert child.stderr == b"the last line\n"
    loud = LEAVING.replace("\nhush_exit()\n", "\n")
    child = subprocess.run([sys.executable, "-c", loud], capture_output=True, timeout=60, check=True)
    assert b"leaked 3 functions" in child.stderr
