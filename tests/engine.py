"""An engine without a thread: the test turns the loop by hand and sees the logits behind every token."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loramux_server.core.backend import (
    EmbedCommand,
    EmbedResult,
    EngineStats,
    GenerateCommand,
    ScoreCommand,
    ScoreResult,
    SequenceTimes,
    TokenEvent,
)
from loramux_server.core.jobs import TrainCommand, TrainEvent, TrainRow
from loramux_server.core.settings import EngineSettings
from loramux_server.core.types import BASE, AdapterVersion, FinishReason, Pooling, SamplingParams, Stack, StackEntry
from loramux_server.engine.build import build_engine
from loramux_server.engine.scheduling.pages import tenant_salt
from loramux_server.engine.transport.protocol import Command, Failure, Output, StatsCommand, command_id
from loramux_server.model.base.quantize import prepare
from loramux_server.store.blobs.local import LocalBlobs
from loramux_server.training.job_scheduler import JobScheduler, make_job_scheduler

from .rows import FILES, JOBS

DEVICE: Any = os.environ.get("TEST_DEVICE", "cpu")
"""Where these engines compute: TEST_DEVICE=cuda takes most of tests/tensor to a GPU."""
ROOM: dict[str, Any] = {} if DEVICE == "cpu" else {"kv_cache_memory": 256 << 20, "adapter_memory": 64 << 20}
"""Elsewhere an engine takes all memory that is free, and some tests have several engines."""
AHEAD: Any = os.environ.get("TEST_ASYNC_SCHEDULING", "auto")
"""Whether these engines launch steps ahead: TEST_ASYNC_SCHEDULING=on takes all of tests/tensor there."""
BLOBS = LocalBlobs(FILES / "blobs", FILES / "tmp")
"""The adapters of engines that a test turns by hand."""
for _folder in ("blobs", "tmp"):
    (FILES / _folder).mkdir(parents=True, exist_ok=True)


def version_of(folder: Path, rank: int, name: str = "") -> AdapterVersion:
    """An adapter folder as the engine is told of it; its files are stored."""
    return AdapterVersion(name or folder.name, 1, BLOBS.put_folder(folder).digest, rank)


def stack_of(*entries: tuple[AdapterVersion, float]) -> Stack:
    return Stack(tuple(StackEntry(adapter, weight) for adapter, weight in entries))


class Engine:
    """Loop, scheduler and model of one folder. ``logits[id]`` has one row per token that ``id`` was given."""

    def __init__(self, folder: Path, state_dir: Path, **settings: object) -> None:
        self.outputs: dict[str, list[Output]] = defaultdict(list)
        self.logits: dict[str, list[Tensor]] = defaultdict(list)
        self._positions: dict[str, int] = {}  # of the next token
        self._rows: dict[str, dict[int, Tensor]] = defaultdict(dict)  # by position of the token that they select
        self.kinds: list[str] = []
        chosen = EngineSettings(model=str(folder), state_dir=str(state_dir), device=DEVICE, dtype="float32", **ROOM)
        chosen = replace(chosen, blobs=str(BLOBS.reader.folder), async_scheduling=AHEAD)
        self.loop, self.info = build_engine(
            replace(chosen, **settings),  # type: ignore[arg-type]
            self._make_jobs,
            partial(tenant_salt, b"secret of the tests"),
            self._take,
            lambda step, fraction: None,
            prepare(str(folder), state_dir),
        )
        self.scheduler = self.loop.scheduler
        self.runner = self.loop.runner
        self.base = self.runner.base
        self._watch()

    def _take(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.outputs[output.id].append(output)
            if isinstance(output.payload, TokenEvent) and output.payload.token_ids:
                for _ in output.payload.token_ids:
                    self.logits[output.id].append(self._rows[output.id].pop(self._positions[output.id]))
                    self._positions[output.id] += 1
            if output.done:
                self._positions.pop(output.id, None)
                self._rows.pop(output.id, None)

    def _make_jobs(self, *given: Any, **more: Any) -> JobScheduler:
        self.jobs = make_job_scheduler(*given, jobs_dir=JOBS, **more)
        return self.jobs

    def _watch(self) -> None:
        run = self.runner.run

        def watched(plan, *chosen):  # type: ignore[no-untyped-def]
            output = run(plan, *chosen)
            self.kinds.append(plan.kind)
            rows = iter(output.next_token)
            for work in plan.work:
                if work.samples:
                    self._positions.setdefault(work.id, work.end)
                    for position in range(work.end, work.positions.stop + 1):
                        self._rows[work.id][position] = next(rows).to("cpu", copy=True)
            assert next(rows, None) is None
            return output

        self.runner.run = watched  # type: ignore[method-assign]

    def submit(self, *commands: Command) -> None:
        for command in commands:
            self.loop.submit(command)

    def finish(self, *ids: str, turns: int = 5000) -> None:
        """Turn until every one of ``ids`` is done."""
        for _ in range(turns):
            if all(self.outputs[id] and self.outputs[id][-1].done for id in ids):
                return
            self.loop.turn()
        raise AssertionError(f"not done after {turns} turns: {ids}")

    def run(self, *commands: Command) -> None:
        self.submit(*commands)
        self.finish(*(command_id(c) for c in commands))

    def tokens(self, id: str) -> list[int]:
        return [t for o in self.outputs[id] if isinstance(o.payload, TokenEvent) for t in o.payload.token_ids]

    def times(self, id: str) -> SequenceTimes:
        """Where the time of a request went that is over."""
        last = self.outputs[id][-1].payload
        assert isinstance(last, TokenEvent | ScoreResult | EmbedResult), self.failure(id)
        assert last.times is not None
        return last.times

    def reason(self, id: str) -> FinishReason | None:
        last = self.outputs[id][-1].payload
        assert isinstance(last, TokenEvent)
        return last.finish_reason

    def failure(self, id: str) -> Failure | None:
        return self.outputs[id][-1].failure

    def generate(self, prompt: Sequence[int], max_tokens: int = 12, stack: Stack = BASE, **sampling: object):  # type: ignore[no-untyped-def]
        """Greedy tokens of one request run alone."""
        id = f"alone-{len(self.outputs)}"
        self.run(command(id, prompt, max_tokens, stack, **sampling))
        return self.tokens(id)

    def score(self, prompt: Sequence[int], continuation: Sequence[int], stack: Stack = BASE) -> ScoreResult:
        id = f"score-{len(self.outputs)}"
        self.run(ScoreCommand(id, tuple(prompt), tuple(continuation), stack, tenant="default"))
        result = self.outputs[id][-1].payload
        assert isinstance(result, ScoreResult), self.failure(id)
        return result

    def embedding(self, id: str) -> Tensor:
        """The embedding [hidden] that ``id`` was answered with."""
        result = self.outputs[id][-1].payload
        assert isinstance(result, EmbedResult), self.failure(id)
        return torch.frombuffer(bytearray(result.values), dtype=torch.float32)

    def stats(self) -> EngineStats:
        id = f"stats-{len(self.outputs)}"
        self.run(StatsCommand(id))
        found = self.outputs[id][-1].payload
        assert isinstance(found, EngineStats)
        return found

    def train(self, command: TrainCommand) -> list[TrainEvent]:
        self.run(command)
        assert self.failure(command.job_id) is None, self.failure(command.job_id)
        return [o.payload for o in self.outputs[command.job_id] if isinstance(o.payload, TrainEvent)]

    def close(self) -> None:
        self.loop.stop()
        self.loop.run()


def command(
    id: str, prompt: Sequence[int], max_tokens: int = 12, stack: Stack = BASE, **sampling: object
) -> GenerateCommand:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return GenerateCommand(id, tuple(prompt), stack, replace(params, **sampling), tenant="default")  # type: ignore[arg-type]


def embedding(
    id: str, prompt: Sequence[int], stack: Stack = BASE, pooling: Pooling = Pooling.MEAN, normalize: bool = True
) -> EmbedCommand:
    return EmbedCommand(id, tuple(prompt), stack, pooling, normalize, tenant="default")


def prompts(count: int, *, lengths: tuple[int, int] = (3, 40), vocab: int = 384, seed: int = 0) -> list[list[int]]:
    """Random prompts without special tokens."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(lengths[0], lengths[1], (count,), generator=draw).tolist()
    return [torch.randint(3, vocab, (n,), generator=draw).tolist() for n in sizes]


def rows(count: int, seed: int = 0) -> tuple[TrainRow, ...]:
    """Random training rows of 8 to 29 tokens; the loss counts the second half of each."""
    texts = prompts(count, lengths=(8, 30), seed=seed)
    return tuple(TrainRow(tuple(t), tuple(i >= len(t) // 2 for i in range(len(t)))) for t in texts)


def check_tokens(tokens: Sequence[int], expected: Sequence[tuple[int, float]], tie: float = 1e-4) -> None:
    """``tokens`` are the oracle's, up to the first place where its two best logits are a tie."""
    for i, (token, (best, gap)) in enumerate(zip(tokens, expected, strict=True)):
        if token != best:
            assert gap < tie, f"token {i}: {token} instead of {best}, which leads by {gap}"
            return
