"""The engine in a child process: started, watched and, when it dies, started again.

The front keeps answering meanwhile. What was in flight fails with UNAVAILABLE; adapters are loaded again when they are
next asked for, and the front's job runner resumes the jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time

import msgspec

from ...core.backend import EngineInfo, EnginePhase, EngineState
from ...core.errors import Code, Error, stopping
from ...core.settings import EngineSettings
from ...cpu.environment import engine_environment
from .client import EngineClient
from .protocol import Command, Output
from .wire import HEADER, Broken, Progress, Ready, Start, Stop, decode, encode, frame_size

log = logging.getLogger(__name__)

MODULE = "loramux_server.engine_process"
STOP_SECONDS = 10.0
"""How long a child may take to end by itself."""
CRASHES, CRASH_WINDOW = 5, 300.0
"""So many crashes within so many seconds, and the engine is given up."""
LOST_FRAMING = 4
"""Exit status of a child that cannot tell where the next command begins: no fault of its own, and no crash."""


class ProcessLink:
    """One engine child at a time, over a socket pair that nobody else can reach."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._writer: asyncio.StreamWriter | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = False
        self._failure: Error | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it is up."""
        return None if self._writer is None or self._child is None else self._child.pid

    async def start(self, client: EngineClient) -> EngineInfo:
        """Start the child and wait until it is ready. Raises what its start raised."""
        reader, info = await self._spawn(client, EnginePhase.STARTING)
        self._supervisor = asyncio.create_task(self._supervise(client, reader), name="engine-supervisor")
        return info

    def send(self, command: Command) -> None:
        # A child that died closes the connection before its last outputs are read and the end is known.
        if self._writer is None or self._writer.is_closing():
            raise stopping() if self._closing else self._failure or _restarting()
        self._writer.write(encode(command))

    async def close(self) -> None:
        self._closing = True
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(Stop()))
        if self._child is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._child.wait(), STOP_SECONDS)
            await self._kill()
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    def kill(self) -> None:
        """End the child and what it has started at once, without waiting."""
        self._closing = True
        if self._child is not None and self._child.returncode is None:
            self._kill_group(self._child.pid)

    async def _spawn(self, client: EngineClient, phase: EnginePhase) -> tuple[asyncio.StreamReader, EngineInfo]:
        """Start a child and report its progress as steps of ``phase``, then that it is ready."""
        ours, theirs = socket.socketpair()
        try:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", MODULE, str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                # Signals from a terminal are the front's to handle: it lets the engine finish.
                start_new_session=True,
                env=engine_environment(os.environ),
            )
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            # Another secret for each child: what it caches dies with it, and nobody can tell what that was keyed by.
            writer.write(encode(Start(self._settings, secrets.token_bytes(32))))
            while True:
                match await _read(reader):
                    case Progress(step, fraction):
                        client.report(EngineState(phase, step, fraction))
                    case Ready(info):
                        self._writer = writer
                        client.report(EngineState(EnginePhase.READY))
                        return reader, info
                    case Broken(failure):
                        raise failure.error()
                    case _:
                        raise Error(Code.UNAVAILABLE, "the engine process ended while it was starting")
        except BaseException:
            writer.close()
            await self._kill()
            raise

    async def _supervise(self, client: EngineClient, reader: asyncio.StreamReader) -> None:
        """Deliver outputs; when they end, start the child again."""
        crashes: list[float] = []
        while True:
            while isinstance(outputs := await _read(reader), list):
                client.deliver(outputs)
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            if self._closing:
                return
            await self._kill()
            log.error("the engine process died (exit status %s)", self._child.returncode if self._child else None)
            client.fail_all(_restarting())
            client.report(EngineState(EnginePhase.RESTARTING))
            now = time.monotonic()
            crashes = [t for t in crashes if now - t < CRASH_WINDOW]
            if self._child is None or self._child.returncode != LOST_FRAMING:
                crashes.append(now)
            while True:
                if len(crashes) > CRASHES:
                    self._give_up(client, len(crashes))
                    return
                try:
                    reader, _ = await self._spawn(client, EnginePhase.RESTARTING)
                    break
                except (Error, OSError) as error:  # OSError: no memory or no descriptors for a process
                    log.error("the engine did not start again: %s", error)
                    crashes.append(time.monotonic())
            log.warning("the engine is up again")

    def _give_up(self, client: EngineClient, crashes: int) -> None:
        self._failure = Error(
            Code.UNAVAILABLE,
            f"the engine died {crashes} times within {CRASH_WINDOW:g} s and is not started again; its last words are "
            "in the server's log. Restart the server, with smaller memory settings if it ran out of memory",
            reason="ENGINE_FAILED",
        )
        log.critical("%s", self._failure.message)
        client.fail_all(self._failure)
        client.report(EngineState(EnginePhase.FAILED, error=self._failure))

    @staticmethod
    def _kill_group(leader: int) -> None:
        """End a child, which leads a session of its own, and compilers that it may be waiting for."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)

    async def _kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._kill_group(self._child.pid)
            await self._child.wait()


async def _read(reader: asyncio.StreamReader) -> list[Output] | Progress | Ready | Broken | None:
    """The next message, or None when the child is gone or says what nobody can read, which is as bad."""
    try:
        header = await reader.readexactly(HEADER.size)
        found: list[Output] | Progress | Ready | Broken = decode(await reader.readexactly(frame_size(header)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except msgspec.MsgspecError as error:
        log.error("the engine process sent a message that cannot be read: %s", error)
        return None
    return found


def _restarting() -> Error:
    return Error(
        Code.UNAVAILABLE, "the engine is starting again; try once more", reason="ENGINE_RESTARTING", retry_after=5.0
    )


class ProcessBackend(EngineClient):
    """A ``Backend`` whose engine is a child process."""

    def __init__(self, settings: EngineSettings) -> None:
        self.link = ProcessLink(settings)
        super().__init__(self.link)
