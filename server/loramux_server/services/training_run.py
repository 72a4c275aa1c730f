"""One attempt at a job: the engine's events stored as they come, then the result checked and published."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from ..core.backend import Backend, EngineInfo
from ..core.failpoints import reach
from ..core.files import storage_errors, sync_folder, write_durable
from ..core.jobs import JobState, TrainCommand, TrainEvent, TrainEventType
from ..core.types import Stack, StackItem
from ..lora.peft_schema import CARD_FILE, AdapterConfig
from ..store.records import AdapterMeta, JobRecord, VersionRecord
from ..store.store import Store
from .card import CardFacts, render_card
from .job_board import JobBoard
from .limits import Limits
from .plan import JobData
from .publishing import publish
from .stacks import pinned_items
from .verify import verify_trained

PASSING = frozenset({"learning_rate", "grad_norm", "epoch", "tokens", "tokens_per_second", "eta_seconds"})
"""Figures of a moment, which say nothing about the finished adapter."""


class TrainingRun:
    """What happens between RUNNING and SUCCEEDED."""

    def __init__(
        self,
        backend: Backend,
        store: Store,
        info: EngineInfo,
        limits: Limits,
        board: JobBoard,
        job: JobRecord,
        data: JobData,
    ) -> None:
        self._backend = backend
        self._store = store
        self._info = info
        self._limits = limits
        self._board = board
        self._job = job
        self._data = data
        self._state = JobState.RUNNING
        self._metrics: dict[str, float] = {}
        self._steps = 0

    async def train(self, command: TrainCommand) -> None:
        """Run the command to its end; afterwards the job is EVALUATING. Cancelling this stops the engine's work."""
        async with aclosing(cast("Any", self._backend.train(command))) as events:
            async for event in events:
                await self._take(event)
        await self._evaluating()

    async def publish(self, command: TrainCommand) -> VersionRecord:
        """Check what the engine wrote, add the card, and publish version and success in one transaction."""
        folder = Path(command.output)
        config = await asyncio.to_thread(verify_trained, folder, self._info, self._limits)
        await asyncio.to_thread(self._write_card, folder, command)
        meta = self._meta(command, config)
        reach("job.before_publish")
        version, _ = await publish(
            self._backend,
            self._store,
            self._job.request.name,
            folder,
            config.rank,
            lambda: self._store.publish_job_result(self._job.id, folder, meta, fence=self._job.fence),
        )
        self._board.moved(self._job.id, JobState.PUBLISHING, JobState.SUCCEEDED)
        return version

    async def _take(self, event: TrainEvent) -> None:
        if event.type is TrainEventType.STATE:
            if event.state is JobState.EVALUATING:
                return await self._evaluating()
            # States are the job table's; what the engine adds is that it began, and how many steps it will take.
            event = TrainEvent(TrainEventType.MESSAGE, event.message, None, event.step, event.total_steps)
        self._metrics.update(event.metrics)
        self._steps = max(self._steps, event.step)
        await self._board.append(self._job, event)

    async def _evaluating(self) -> None:
        if self._state is JobState.RUNNING:
            words = "measuring on held-out rows" if self._data.validation else "no held-out rows to measure on"
            await self._board.move(self._job.id, JobState.EVALUATING, message=words, fence=self._job.fence)
            self._state = JobState.EVALUATING

    def _meta(self, command: TrainCommand, config: AdapterConfig) -> AdapterMeta:
        request = self._job.request
        return AdapterMeta(
            rank=config.rank,
            alpha=config.alpha,
            base_fingerprint=self._info.base_fingerprint,
            target_modules=config.target_modules,
            layers=request.spec.layers,
            job_id=self._job.id,
            dataset_digest=self._data.train_digest,
            trained_on=_trained_on(command.stacks),
            metrics=self._final_metrics(),
            metadata=request.metadata,
        )

    def _write_card(self, folder: Path, command: TrainCommand) -> None:
        request, data = self._job.request, self._data
        card = render_card(
            CardFacts(
                name=request.name,
                base_name=self._info.base_name,
                base_fingerprint=self._info.base_fingerprint,
                spec=request.spec,
                dataset_digest=data.train_digest,
                dataset_rows=data.train.report.rows,
                job_id=self._job.id,
                validation_digest=data.validation_digest,
                validation_rows=data.validation.report.rows if data.validation else 0,
                on_top_of=_trained_on(command.stacks),
                steps=self._steps,
                metrics=self._final_metrics(),
                metadata=request.metadata,
            )
        )
        with storage_errors("cannot write the model card"):
            (folder / CARD_FILE).unlink(missing_ok=True)
            write_durable(folder / CARD_FILE, card.encode())
            sync_folder(folder)

    def _final_metrics(self) -> dict[str, float]:
        return {name: value for name, value in self._metrics.items() if name not in PASSING}


def _trained_on(stacks: tuple[Stack, ...]) -> tuple[tuple[StackItem, ...], ...]:
    """The frozen stacks of a command with their versions; none at all for the bare base."""
    return tuple(pinned_items(stack) for stack in stacks) if any(stacks) else ()
