"""Scripted training: events as an engine reports them, and a real PEFT folder at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from loramux_server.core.backend import EngineInfo
from loramux_server.core.jobs import JobState, TrainCommand, TrainEvent, TrainEventType
from tests.rows import rows_of

from .adapter_files import CONFIG, WEIGHTS, config_bytes, weights_bytes


@dataclass
class ScriptedTraining:
    """Plays ``steps`` steps; fails or waits before step ``at``; writes an adapter whose B is filled with ``b``."""

    info: EngineInfo
    steps: int = 3
    at: int = 0
    error: BaseException | None = None
    times: int = 1
    """How often ``error`` happens before all goes well."""
    hang: bool = False
    b: float = 0.5
    fingerprint: str = ""
    measured: dict[str, float] = field(default_factory=lambda: {"eval_loss": 0.25, "base_loss": 2.0})
    """What the evaluation on held-out rows finds."""
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0
    stopped: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a run was left before its end."""

    async def __call__(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        self.runs += 1
        finished = False
        try:
            yield TrainEvent(TrainEventType.STATE, "training", JobState.RUNNING, 0, self.steps)
            for step in range(1, self.steps + 1):
                await asyncio.sleep(0)
                if step == self.at:
                    await self._trouble()
                metrics = {"loss": 1.0 / step, "eta_seconds": float(self.steps - step), "trained_tokens": 10.0 * step}
                yield TrainEvent(TrainEventType.STEP, step=step, total_steps=self.steps, metrics=metrics)
            yield TrainEvent(TrainEventType.STATE, "measuring", JobState.EVALUATING, self.steps, self.steps)
            if rows_of(command).held_out:
                measured = dict(self.measured)
                yield TrainEvent(TrainEventType.EVALUATION, step=self.steps, total_steps=self.steps, metrics=measured)
            self._write(Path(command.output))
            finished = True
        finally:
            if not finished:
                self.stopped += 1
                self.gone.set()

    def _write(self, folder: Path) -> None:
        folder.mkdir()
        (folder / CONFIG).write_bytes(config_bytes())
        (folder / WEIGHTS).write_bytes(weights_bytes(self.info, b=self.b, fingerprint=self.fingerprint))

    async def _trouble(self) -> None:
        if self.hang:
            self.waiting.set()
            await asyncio.Event().wait()
        if self.error is not None and self.runs <= self.times:
            raise self.error
