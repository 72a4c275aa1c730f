"""Standard error without waiting for it: nobody who logs stands still because a pipe is full or a disk is."""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate

MOST_BYTES = 4 << 20
"""Lines that wait to be read, in bytes; what comes on top of these is dropped and counted."""
PIECE = 64 << 10
"""Bytes that are written at once; as much as a pipe of Linux holds."""
GATHER = 0.01
"""Seconds within which lines that are not urgent are written together: each turn of the thread costs all others."""
BEHIND = "nobody read them in time"

Notice = Callable[[int, str], bytes]
"""The line that says how many were dropped, and why."""


class LineWriter:
    """Writes lines to a file, which becomes its own, from a thread. May be used from any thread.

    A pipe that nobody reads, a disk that is full and a reader that is gone cost lines and never time. How many were
    dropped is told by ``notice`` once lines can be written again.
    """

    def __init__(self, fd: int, notice: Notice, most_bytes: int = MOST_BYTES) -> None:
        self._fd, self._notice, self._most = fd, notice, most_bytes
        self.dropped = 0
        """Lines that were never written, since the start."""
        self._untold, self._why = 0, ""
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = self._urgent = self._closed = False
        self._torn = False  # the last line that was written lacks its end
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: bytes, *, urgent: bool = True) -> None:
        """Have a line written, which ends with a newline."""
        with self._changed:
            if self._bytes + len(line) > self._most:
                self._drop(1, BEHIND)
                return
            self._lines.append(line)
            self._bytes += len(line)
            if urgent or not self._writing or self._bytes >= PIECE:
                self._urgent = self._urgent or urgent
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything is written, so many seconds at most; gives whether it is."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._lines or self._writing), seconds)

    def close(self, seconds: float) -> None:
        """Wait until everything is written, so many seconds at most, and end the thread."""
        self.flush(seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._closed)
                if self._closed:
                    os.close(self._fd)
                    return
                self._writing = True
                self._changed.wait_for(lambda: self._urgent or self._bytes >= PIECE, GATHER)
                self._urgent = False
                lines = [self._take()]
                size = len(lines[0])
                while self._lines and size + len(self._lines[0]) <= PIECE:
                    lines.append(self._take())
                    size += len(lines[-1])
            if self._put(lines):
                self._tell()

    def _take(self) -> bytes:
        line = self._lines.popleft()
        self._bytes -= len(line)
        return line

    def _put(self, lines: list[bytes]) -> bool:
        """Write lines, however long that takes; those that cannot be written are dropped."""
        begun = b"\n" if self._torn else b""
        data = memoryview(begun + b"".join(lines))
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(self._fd, data[done:])
                except BlockingIOError:  # another process that has the file as well wants it so
                    waiting = select.poll()  # select() raises for descriptors from 1,024 on
                    waiting.register(self._fd, select.POLLOUT)
                    waiting.poll()
        except OSError as error:
            self._torn = self._torn if not done else data[done - 1] != ord("\n")
            ends = accumulate(map(len, lines), initial=len(begun))
            with self._changed:
                self._drop(sum(end > done for end in ends) - (len(begun) > done), error.strerror or str(error))
            return False
        self._torn = False
        return True

    def _drop(self, lines: int, why: str) -> None:
        self.dropped += lines
        self._untold, self._why = self._untold + lines, why

    def _tell(self) -> None:
        with self._changed:
            count, self._untold = self._untold, 0
        if count and not self._put([self._notice(count, self._why)]):
            with self._changed:
                self.dropped -= 1  # the notice is none of theirs
                self._untold += count - 1


_writer: LineWriter | None = None


def open_writer(notice: Notice) -> LineWriter | None:
    """From now on what goes to standard error is written from a thread; None where there is no standard error.

    The descriptor is copied: were it closed, another file might get its number, and then the lines.
    """
    global _writer
    close_writer()
    try:
        _writer = LineWriter(os.dup(sys.stderr.fileno()), notice)
    except (AttributeError, OSError, ValueError):
        _writer = None
    return _writer


def close_writer() -> None:
    """Write to standard error at once again."""
    global _writer
    writer, _writer = _writer, None
    if writer is not None:
        writer.close(1.0)


def dropped() -> int:
    """Lines that could not be written to standard error since the start."""
    return 0 if _writer is None else _writer.dropped


def hush_exit() -> None:
    """Let nothing reach standard error after Python's exit handlers: what native libraries say then is no log line."""

    def hush() -> None:
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)

    atexit.register(hush)  # runs after all that are registered later


def flush(seconds: float) -> None:
    """Wait until all lines are written, so many seconds at most. For those who end the process."""
    if _writer is not None:
        _writer.flush(seconds)


def tell(line: str, *, urgent: bool = True) -> None:
    """A line on standard error; nothing where that is gone, as with the terminal that was closed."""
    if _writer is not None:
        _writer.write(f"{line}\n".encode(getattr(sys.stderr, "encoding", None) or "utf-8", "replace"), urgent=urgent)
        return
    with suppress(OSError, ValueError):
        print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece, beside other threads'
