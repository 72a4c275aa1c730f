"""loramux's engine without its front: as a process behind ``ProcessBackend``, or turned by hand on this thread.

Both take token ids and give token ids: no gRPC, no text, no registry. What the front adds is the difference to
``remote.py``; what the socket between the two processes adds is the difference between these two.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from loramux_server.core.backend import EngineInfo, GenerateCommand, TokenEvent
from loramux_server.core.callers.principal import DEFAULT_TENANT
from loramux_server.core.settings import EngineSettings
from loramux_server.core.types import AdapterVersion, SamplingParams, Stack, StackEntry
from loramux_server.engine.transport.process import ProcessBackend
from loramux_server.engine.transport.protocol import AbortCommand, Command, LoadCommand, Output
from loramux_server.store.blobs.local import LocalBlobs
from loramux_server.text import TextTokenizer

from ..job import Job
from ..processes import tree
from ..samples import Sample, Stopwatch
from ..workloads import RANK, Ask, Cell, closed_loop


class _Commands:
    """Requests as the engine takes them, the way the front would put them."""

    def __init__(self, info: EngineInfo, adapters: Sequence[AdapterVersion]) -> None:
        self._text = TextTokenizer.load(info.tokenizer_path)
        self._adapters = adapters
        self._ids = itertools.count()

    def __call__(self, ask: Ask) -> GenerateCommand:
        return GenerateCommand(
            id=f"bench-{next(self._ids)}",
            prompt_ids=tuple(self._text.encode(ask.prompt)),
            stack=Stack(tuple(StackEntry(self._adapters[number], weight) for number, weight in ask.stack)),
            sampling=SamplingParams(max_tokens=ask.tokens, ignore_eos=True),
            tenant=DEFAULT_TENANT,
        )


class ProcessSystem:
    """The engine's process, asked from this process's event loop."""

    def __init__(self, backend: ProcessBackend, info: EngineInfo, commands: _Commands) -> None:
        self.facts = {"dtype": info.dtype, "device": info.device}
        self._backend, self._commands = backend, commands

    def refuses(self, cell: Cell) -> str:
        return ""

    def pids(self) -> list[int]:
        return [] if self._backend.link.pid is None else tree(self._backend.link.pid)

    async def run(self, asks: Sequence[Ask], concurrency: int) -> tuple[list[Sample], float]:
        return await closed_loop(asks, concurrency, self._one)

    async def _one(self, ask: Ask) -> Sample:
        watch = Stopwatch()
        command = self._commands(ask)
        async for event in self._backend.generate(command):
            watch.tokens(event.token_ids)
        return watch.sample(len(command.prompt_ids))


class InlineSystem:
    """The engine's loop, turned on this thread: nothing but the engine itself."""

    def __init__(self, settings: EngineSettings, load: Sequence[AdapterVersion]) -> None:
        from loramux_server.engine_factory import build

        self._take: Callable[[Output], object] = lambda output: None
        self._engine, info = build(settings, os.urandom(32), self._emit, lambda step, fraction: None)
        self.facts = {"dtype": info.dtype, "device": info.device}
        self._commands = _Commands(info, load)
        self._endless: dict[str, Ask] = {}  # by the id of the request under way
        self._load(load)

    def refuses(self, cell: Cell) -> str:
        return ""

    def pids(self) -> list[int]:
        return [os.getpid()]

    async def run(self, asks: Sequence[Ask], concurrency: int) -> tuple[list[Sample], float]:
        begin = time.perf_counter()
        waiting = deque(enumerate(asks))
        watches: dict[str, tuple[int, Stopwatch, int]] = {}
        samples: dict[int, Sample] = {}

        def submit() -> None:
            number, ask = waiting.popleft()
            watch = Stopwatch()
            command = self._commands(ask)
            watches[command.id] = number, watch, len(command.prompt_ids)
            self._engine.submit(command)

        def take(output: Output) -> None:
            number, watch, prompt_tokens = watches[output.id]
            if output.failure is not None:
                raise output.failure.error()
            if isinstance(output.payload, TokenEvent):
                watch.tokens(output.payload.token_ids)
            if output.done:
                samples[number] = watch.sample(prompt_tokens)
                if waiting:
                    submit()

        self._take = take
        for _ in range(min(concurrency, len(waiting))):
            submit()
        while len(samples) < len(asks):
            self._engine.turn()
        return [samples[i] for i in range(len(asks))], time.perf_counter() - begin

    def begin(self, asks: Sequence[Ask], *, endless: bool = False) -> None:
        """Take requests in and turn until all of them decode; their tokens are dropped.

        ``endless``: those that are done are asked again, until :meth:`clear`.
        """
        left: set[str] = set()

        def take(output: Output) -> None:
            if output.failure is not None:
                raise output.failure.error()
            left.discard(output.id)

        self._take = take
        for ask in asks:
            command = self._commands(ask)
            left.add(command.id)
            if endless:
                self._endless[command.id] = ask
            self._engine.submit(command)
        while left:
            self._engine.turn()

    def submit(self, command: Command, take: Callable[[Output], object]) -> None:
        """Hand in a command; all outputs from now on go to ``take``."""
        self._take = take
        self._engine.submit(command)

    def clear(self) -> None:
        """End all requests unanswered."""
        self._endless.clear()
        for seq in list(self._engine.scheduler.sequences):
            self._engine.submit(AbortCommand(seq.id))
        while self._engine.scheduler.sequences:
            self._engine.turn()

    def turn(self) -> None:
        """One turn of the engine's loop."""
        self._engine.turn()

    def close(self) -> None:
        self._take = lambda output: None
        self._engine.stop()
        self._engine.run()

    def _emit(self, outputs: list[Output]) -> None:
        for output in outputs:
            self._take(output)
            if output.done and (ask := self._endless.pop(output.id, None)) is not None:
                command = self._commands(ask)
                self._endless[command.id] = ask
                self._engine.submit(command)

    def _load(self, adapters: Sequence[AdapterVersion]) -> None:
        left = {f"load-{i}" for i in range(len(adapters))}

        def loaded(output: Output) -> None:
            if output.failure is not None:
                raise output.failure.error()
            left.discard(output.id)

        self._take = loaded
        for id, adapter in zip(sorted(left), adapters, strict=True):
            self._engine.submit(LoadCommand(id, adapter))
        while left:
            self._engine.turn()


@asynccontextmanager
async def open_engine(job: Job) -> AsyncIterator[ProcessSystem | InlineSystem]:
    """Start the engine and make the adapters resident."""
    settings, adapters = settings_of(job), versions_of(job)
    if job.system == "inline":
        inline = InlineSystem(settings, adapters)
        try:
            yield inline
        finally:
            inline.close()
        return
    backend = ProcessBackend(settings)
    info = await backend.start()
    try:
        await asyncio.gather(*map(backend.load, adapters))
        yield ProcessSystem(backend, info, _Commands(info, adapters))
    finally:
        await backend.close()


def settings_of(job: Job) -> EngineSettings:
    """What the engine is built from."""
    return EngineSettings(
        model=job.base.folder,
        state_dir=job.scratch,
        blobs=f"{job.scratch}/blobs",
        device=job.device,
        dtype=job.dtype,  # type: ignore[arg-type]
        threads=job.threads,
        speculate="off",  # every system computes each token of the answers
    )


def versions_of(job: Job) -> list[AdapterVersion]:
    """The base's adapters as the engine is told of them; their files are stored."""
    root, tmp = Path(job.scratch) / "blobs", Path(job.scratch) / "tmp"
    for folder in (root, tmp):
        folder.mkdir(parents=True, exist_ok=True)
    blobs = LocalBlobs(root, tmp)
    found = [(Path(folder).name, blobs.put_folder(Path(folder)).digest) for folder in job.base.adapters]
    return [AdapterVersion(name, 1, digest, RANK) for name, digest in found]
