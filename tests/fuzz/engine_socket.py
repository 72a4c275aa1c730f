"""The engine in its own process, spoken to past the front: every input is the body of a frame."""

from __future__ import annotations

import atexit
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec

from loramux_server.core.errors import Code
from loramux_server.core.settings import EngineSettings
from loramux_server.engine.transport.protocol import Command, Failure, StatsCommand
from loramux_server.engine.transport.wire import HEADER, Broken, Ready, Start, decode, encode, read_frames

from .readers import body, messages
from .target import Target

ANSWER_SECONDS = 30.0
"""An engine that answers no question for so long hangs."""
BETWEEN = 50
"""Inputs between two questions."""


class EngineProcess:
    """A real engine on a tiny base."""

    def __init__(self) -> None:
        from tests.tiny import write_model

        root = Path(tempfile.mkdtemp(prefix="loramux-fuzz-"))
        model = write_model(root / "tiny", "llama")
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loramux_server.engine_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stderr=subprocess.DEVNULL,
            )
        atexit.register(self.process.kill)
        blobs = root / "blobs"
        blobs.mkdir()
        settings = EngineSettings(
            model=str(model),
            state_dir=str(root / "state"),
            blobs=str(blobs),
            folders=(str(root / "state"),),
            device="cpu",
            dtype="float32",
            kv_cache_memory=8 << 20,
        )
        self._socket.sendall(encode(Start(settings, b"secret")))
        self._frames = read_frames(self._socket)
        while not isinstance(message := next(self._frames), Ready):
            assert not isinstance(message, Broken), message
        self._numbers = itertools.count()
        self._answered = threading.Condition()
        self._last = ""
        self._defect: Failure | None = None
        self._sent = 0
        threading.Thread(target=self._read, daemon=True).start()

    def take(self, data: bytes) -> None:
        """Send one frame; every now and then, see whether the engine still answers."""
        try:
            if not isinstance(decode(data), Command):
                return  # a whole message that is no command: a stop, say
        except msgspec.DecodeError:
            pass
        self._socket.sendall(HEADER.pack(len(data)) + data)
        self._sent += 1
        if self._sent % BETWEEN == 0:
            self.check()

    def check(self) -> None:
        """Raise AssertionError for an engine that is gone, deaf, or had a defect."""
        id = f"check-{next(self._numbers)}"
        self._socket.sendall(encode(StatsCommand(id)))
        until = time.monotonic() + ANSWER_SECONDS
        with self._answered:
            while self._last != id and self.process.poll() is None and time.monotonic() < until:
                self._answered.wait(1)
            assert self.process.poll() is None, f"the engine ended with {self.process.returncode}"
            assert self._last == id, "the engine does not answer"
            assert self._defect is None, self._defect

    def _read(self) -> None:
        for outputs in self._frames:
            with self._answered:
                for output in outputs:
                    if output.id.startswith("check-"):
                        self._last = output.id
                    elif output.failure is not None and output.failure.code is Code.INTERNAL:
                        self._defect = output.failure
                self._answered.notify_all()
        with self._answered:
            self._answered.notify_all()


def engine_socket() -> Target:
    """A target with an engine of its own, which lives as long as this process."""
    engine = EngineProcess()
    seeds = [body(message) for message in messages()]
    return Target("engine", engine.take, seeds, pid=engine.process.pid, modules=("loramux_server.engine.transport",))
