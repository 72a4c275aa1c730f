"""The front's end of the engine: the ``Backend`` protocol over any link that carries commands and outputs.

Knows no tensor. Everything here runs on the front's event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from socket import gethostname
from typing import Protocol, TypeVar

from ...core.backend import (
    EmbedCommand,
    EmbedResult,
    EngineInfo,
    EnginePhase,
    EngineState,
    EngineStats,
    GenerateCommand,
    ProfileCommand,
    ProfileResult,
    Replica,
    ReplicaState,
    ScoreCommand,
    ScoreResult,
    TokenEvent,
)
from ...core.errors import Code, Error, replica_not_found
from ...core.jobs import TrainCommand, TrainEvent
from ...core.types import AdapterVersion
from .protocol import (
    AbortCommand,
    Command,
    Failure,
    LoadCommand,
    Output,
    Payload,
    PinCommand,
    StatsCommand,
    UnloadCommand,
    command_id,
)

P = TypeVar("P", bound=Payload)

ONLY = "engine"
"""Id of the only replica of an embedded backend."""


class Link(Protocol):
    """Carries commands to an engine. Outputs come back through ``EngineClient.deliver``, on the front's loop."""

    async def start(self, client: EngineClient) -> EngineInfo: ...

    def send(self, command: Command) -> None: ...

    async def close(self) -> None: ...


class EngineClient:
    """An engine somewhere else, as a ``Backend``."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: dict[str, _Mailbox] = {}
        self._calls = itertools.count()
        self._listeners: list[Callable[[EngineState], None]] = []
        self.phase = EnginePhase.STARTING
        """That of the last state that was reported."""

    @property
    def in_flight(self) -> int:
        """Requests whose outputs somebody waits for."""
        return len(self._open)

    async def start(self) -> EngineInfo:
        return await self._link.start(self)

    async def close(self) -> None:
        await self._link.close()
        self.fail_all(Error(Code.UNAVAILABLE, "the server is stopping"))

    def subscribe(self, listener: Callable[[EngineState], None]) -> None:
        self._listeners.append(listener)

    def report(self, state: EngineState) -> None:
        """Tell those who subscribed of a new state. For the link."""
        self.phase = state.phase
        for listener in self._listeners:
            listener(state)

    def deliver(self, outputs: Iterable[Output]) -> None:
        """Take outputs in. One that nobody waits for any more is dropped."""
        for output in outputs:
            if (mailbox := self._open.get(output.id)) is not None:
                mailbox.put(output)

    def interrupt(self, id: str, error: Error) -> None:
        """Fail what is open under ``id``, and abort it in the engine."""
        if (mailbox := self._open.get(id)) is not None:
            mailbox.put(Output(id, failure=Failure.of(error)))

    def fail_all(self, error: Error) -> None:
        """Fail everything open: the engine is gone."""
        for id, mailbox in self._open.items():
            mailbox.put(Output(id, failure=Failure.of(error), done=True))

    def generate(self, command: GenerateCommand) -> AsyncIterator[TokenEvent]:
        return self._stream(command, TokenEvent)

    async def score(self, command: ScoreCommand) -> ScoreResult:
        result = await self._once(command)
        assert isinstance(result, ScoreResult)
        return result

    async def embed(self, command: EmbedCommand) -> EmbedResult:
        result = await self._once(command)
        assert isinstance(result, EmbedResult)
        return result

    async def load(self, adapter: AdapterVersion) -> None:
        await self._once(LoadCommand(self._call_id(), adapter))

    async def unload(self, digest: str) -> None:
        await self._once(UnloadCommand(self._call_id(), digest))

    async def pin(self, adapters: Sequence[AdapterVersion]) -> None:
        await self._once(PinCommand(self._call_id(), tuple(adapters)))

    def train(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        return self._stream(command, TrainEvent)

    async def stats(self) -> EngineStats:
        stats = await self._once(StatsCommand(self._call_id()))
        assert isinstance(stats, EngineStats)
        return stats

    async def profile(self, seconds: float, output: str, *, most_events: int, kernels: bool) -> ProfileResult:
        result = await self._once(ProfileCommand(self._call_id(), seconds, output, most_events, kernels))
        assert isinstance(result, ProfileResult)
        return result

    async def replicas(self) -> tuple[Replica, ...]:
        states = {EnginePhase.READY: ReplicaState.READY, EnginePhase.FAILED: ReplicaState.FAILED}
        found = Replica(ONLY, states.get(self.phase, ReplicaState.RESTARTING), gethostname())
        with suppress(Error):  # it is starting again: its state says so
            stats = await self.stats()
            found = replace(
                found,
                running=stats.running,
                waiting=stats.waiting,
                resident=tuple(sorted({digest for tier in stats.resident.values() for digest in tier})),
                training_jobs=stats.training_jobs,
            )
        return (found,)

    async def drain(self, replica_id: str) -> None:
        if replica_id != ONLY:
            raise replica_not_found(replica_id)
        raise Error(
            Code.FAILED_PRECONDITION,
            "the engine is the only one of this server, and nothing could take its place; stop the server with "
            "SIGTERM, which drains it, or start it with --backend ray",
            reason="ONLY_REPLICA",
        )

    def _call_id(self) -> str:
        return f"call-{next(self._calls)}"

    async def _once(self, command: Command) -> Payload | None:
        found: Payload | None = None
        async for output in self.outputs(command):
            found = output.payload
        return found

    async def _stream(self, command: Command, kind: type[P]) -> AsyncIterator[P]:
        # aclosing: a caller's aclose() must not return before the abort is on its way.
        async with aclosing(self.outputs(command)) as outputs:
            async for output in outputs:
                if isinstance(output.payload, kind):
                    yield output.payload

    async def outputs(self, command: Command) -> AsyncGenerator[Output]:
        """Send a command and give its outputs until the last; abort it when the caller leaves before that."""
        id = command_id(command)
        if id in self._open:
            raise Error(Code.ALREADY_EXISTS, f"request id {id!r} is in use")
        mailbox = self._open[id] = _Mailbox()
        done = False
        try:
            self._link.send(command)
            while not done:
                output = await mailbox.get()
                done = output.done
                if output.failure is not None:
                    raise output.failure.error()
                yield output
        finally:
            del self._open[id]
            if not done:
                with suppress(Error):  # an engine that is gone has forgotten it anyway
                    self._link.send(AbortCommand(id))


class _Mailbox:
    """Outputs that came for one command. Tokens that came while the reader was busy are given as one event."""

    def __init__(self) -> None:
        self._outputs: deque[Output] = deque()
        self._came = asyncio.Event()

    def put(self, output: Output) -> None:
        self._outputs.append(output)
        self._came.set()

    async def get(self) -> Output:
        while not self._outputs:
            self._came.clear()
            await self._came.wait()
        first = last = self._outputs.popleft()
        events = [first.payload]
        while self._outputs and _adds_tokens(last) and _adds_tokens(self._outputs[0]):
            last = self._outputs.popleft()
            events.append(last.payload)
        return first if last is first else Output(last.id, _join(events), done=last.done)


def _adds_tokens(output: Output) -> bool:
    return isinstance(output.payload, TokenEvent) and output.failure is None


def _join(events: Sequence[Payload | None]) -> TokenEvent:
    """Token events of one generation as the reader would have seen them one after the other."""
    parts = [event for event in events if isinstance(event, TokenEvent)]
    return replace(
        parts[-1],
        token_ids=tuple(token for part in parts for token in part.token_ids),
        logprobs=tuple(entry for part in parts for entry in part.logprobs),
        cached_tokens=max(part.cached_tokens for part in parts),
        times=next((part.times for part in reversed(parts) if part.times is not None), None),
    )
