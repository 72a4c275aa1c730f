"""One replica: an actor of Ray Serve with an engine in a child process of its own.

Commands and outputs cross as the frames that go between a front and its engine, so Ray carries bytes and every error
keeps its details.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, replace
from typing import Any

from ..core.backend import EngineInfo, EnginePhase, ReplicaState
from ..core.errors import Code, Error
from ..core.settings import EngineSettings
from ..engine.transport.process import ProcessBackend
from ..engine.transport.protocol import Command, Failure, Output, command_id
from ..engine.transport.wire import HEADER, Broken, Ready, decode, encode
from .commands import Refused
from .failures import draining
from .files.host import HostFiles
from .files.own import Crossing, OwnFiles
from .fronts import FRONT_SECONDS, Fronts
from .ports import listen_on_node_address
from .routing.affinity import Work
from .routing.fleet import REPORT_SECONDS, Report

log = logging.getLogger(__name__)

ABORT_SECONDS = 10.0
"""How long a front that starts waits for the end of what an earlier start of its server asked for."""

HEARD_SECONDS = 6 * REPORT_SECONDS
"""How long a replica that is being drained waits for commands of fronts that have not heard of it."""


class EngineReplica:
    """What Ray Serve makes replicas of. Methods with ``work`` are calls of fronts, routed by it."""

    # Ray Serve awaits it, and counts a replica as started then.
    async def __init__(self, settings: EngineSettings, own: OwnFiles | None = None) -> None:  # type: ignore[misc]
        from ray.serve import get_replica_context

        self._id = get_replica_context().replica_id.unique_id
        listen_on_node_address()
        self._files = None if own is None else await asyncio.to_thread(HostFiles, own)
        self._backend = ProcessBackend(settings if self._files is None else self._files.engine(settings))
        self._open: dict[str, tuple[Work, str]] = {}
        self._ended = asyncio.Event()
        """Set whenever a command is over."""
        self._fronts = Fronts()
        self._draining_since: float | None = None
        self._failure: Error | None = None
        self._info: EngineInfo | None = None
        self._watch = asyncio.create_task(self._watch_fronts())
        try:
            self._info = await self._backend.start()
        except Error as error:
            # Not raised: Ray would try again and again, and tell the front a traceback instead of the error.
            self._failure = error

    async def run(
        self, frame: bytes, work: Work, front: str, files: Sequence[Crossing] = ()
    ) -> AsyncIterator[bytes | Crossing | Refused]:
        """Give a command to the engine; gives frames of outputs until the last. Closing it aborts the command.

        A replica that is being drained takes no command but those for it alone, and answers ``Refused``. Where the
        front shares no folder with replicas, it sends ``files`` along, and what the command has written comes before
        the output that tells of it.
        """
        command: Command = decode(frame[HEADER.size :])
        id = command_id(command)
        self._fronts.hear(front, time.monotonic())
        if self._draining and not work.replica:
            yield Refused(self._id)
            return
        self._open[id] = work, front
        try:
            outputs: AsyncGenerator[Output | Crossing] = (
                self._backend.outputs(command)
                if self._files is None
                else self._files.outputs(self._backend, command, files)
            )
            async with aclosing(outputs):
                async for each in outputs:
                    yield each if isinstance(each, Crossing) else encode([each])
        except Error as error:
            yield encode([Output(id, failure=Failure.of(error), done=True)])
        finally:
            self._open.pop(id, None)
            self._ended.set()

    async def describe(self, work: Work) -> bytes:
        """A frame that says what the engine is, or why it did not start."""
        if self._failure is not None or self._info is None:
            return encode(Broken(Failure.of(self._failure or draining())))
        return encode(Ready(self._info))

    async def texts(self, work: Work) -> str:
        """Digest of a folder with what the front reads of the base, where it shares no folder with replicas."""
        assert self._files is not None
        assert self._info is not None
        return await asyncio.to_thread(self._files.texts, self._info.tokenizer_path)

    async def keep(self, work: Work, front: str) -> None:
        """Hear from a front: it lives, and wants what it asked for."""
        self._fronts.hear(front, time.monotonic())

    async def join(self, work: Work, front: str) -> None:
        """Hear from a front that starts. What an earlier start of its server asked for is over when this returns."""
        self._fronts.hear(front, time.monotonic())
        self._abort(earlier := self._fronts.earlier(front))
        with suppress(TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS):
                while any(owner in earlier for _, owner in self._open.values()):
                    self._ended.clear()
                    await self._ended.wait()

    async def leave(self, work: Work, front: str) -> int:
        """Forget a front that stops; gives how many others live."""
        return self._fronts.leave(front, time.monotonic())

    async def drain(self, work: Work) -> None:
        """Take nothing new and hand training jobs back; the replica is replaced once it has nothing left."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()
        for id, (open, _) in list(self._open.items()):
            if open.trains:
                self._backend.interrupt(id, draining())

    async def record_routing_stats(self) -> dict[str, Any]:
        """What routers are told, by way of Ray Serve's controller."""
        found = (await self._backend.replicas())[0]
        queued = sum(work.tokens for work, _ in self._open.values())
        report = Report(self._state(found.state), found.node, found.running, found.waiting, queued, found.resident)
        return asdict(replace(report, training_jobs=found.training_jobs))

    async def check_health(self) -> None:
        """Raise when Ray shall put another replica in this one's place."""
        since = self._draining_since
        if since is not None and not self._open and time.monotonic() - since > HEARD_SECONDS:
            raise RuntimeError("drained")
        if self._backend.phase is EnginePhase.FAILED:
            raise RuntimeError("the engine died again and again")

    async def __del__(self) -> None:
        self._watch.cancel()
        with suppress(Error):
            await self._backend.close()

    @property
    def _draining(self) -> bool:
        return self._draining_since is not None

    def _state(self, state: ReplicaState) -> str:
        if self._failure is not None:
            return ReplicaState.FAILED.value
        return ReplicaState.DRAINING.value if self._draining else state.value

    async def _watch_fronts(self) -> None:
        while True:
            await asyncio.sleep(FRONT_SECONDS / 4)
            self._abort(self._fronts.dead(time.monotonic()))

    def _abort(self, fronts: frozenset[str]) -> None:
        """Abort what these fronts asked for."""
        for id, (_, front) in list(self._open.items()):
            if front in fronts:
                log.warning("the front of a command is gone, the command is aborted")
                self._backend.interrupt(id, Error(Code.UNAVAILABLE, "the front is gone", reason="STOPPING"))
