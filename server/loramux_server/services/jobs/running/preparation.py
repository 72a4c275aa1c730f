"""What an attempt of a job starts from: its rows, answered where they were not, and the versions it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ....core.errors import ROWS_DAMAGED, Error
from ....core.jobs import TrainCommand, TrainEvent, TrainEventType
from ....core.types import AdapterVersion, Stack, StackEntry, StackItem
from ....data.rows_file import discard_rows
from ....host.failpoints import reach
from ....store.records import JobRecord
from ....telemetry.logs import get_logger
from ...common.context import Context
from ...datasets.stored_rows import StoredRows, build_command, stored_rows
from ...datasets.worker import DatasetWorker
from ...evaluation.questions import Asker
from ...evaluation.teacher_answers import answer_rows
from ..board import JobBoard

log = get_logger(__name__)


class Preparation:
    """Makes the commands of attempts."""

    def __init__(self, context: Context, board: JobBoard, checkpoint_seconds: float) -> None:
        self._context, self._board, self._checkpoint_seconds = context, board, checkpoint_seconds
        self._store, self._info, self._stacks = context.store, context.info, context.stacks
        self._worker = DatasetWorker(context)

    async def command(self, job: JobRecord, output: Path, lost: Error | None) -> tuple[TrainCommand, StoredRows]:
        """The command and rows of an attempt that writes to ``output``; ``lost``: why its rows are read again."""
        request, tenant = job.request, job.request.tenant
        place = await asyncio.to_thread(self._store.state.job_folder, job.id)
        rows = await self._rows(job, place, lost)
        names = rows.summary.row_stacks
        donors = await self._donors(job, names)
        stacks = await self._stacks.resolve_many(request.on_top_of, tenant, donors)
        row_stacks = await self._stacks.resolve_many(names, tenant, donors)
        command = replace(
            build_command(job, rows.file, stacks, row_stacks, self._info, output),
            checkpoint_dir=str(place),
            checkpoint_seconds=self._checkpoint_seconds,
            stored=await asyncio.to_thread(self._store.jobs.stored, job.id),
            init=await asyncio.to_thread(self._store.adapters.resolve, request.init_from, tenant, donors)
            if request.init_from
            else None,
            current=await asyncio.to_thread(self._current, request.name, tenant),
        )
        if rows.summary.unanswered:
            async with self._stacks.held(versions(command)):
                await self._answer(job, rows, command, place)
            rows = await asyncio.to_thread(stored_rows, place, self._info.base_fingerprint)
            command = replace(command, rows=rows.file)
        return command, rows

    async def _answer(self, job: JobRecord, rows: StoredRows, command: TrainCommand, place: Path) -> None:
        """Have the teacher answer the rows that have no answer."""
        count = rows.summary.unanswered
        words = f"the teacher answers {count} row{'s' * (count != 1)} that {'have' if count != 1 else 'has'} no answer"
        await self._board.append(job, TrainEvent(TrainEventType.MESSAGE, words))
        request, most = job.request, min(self._info.max_context, self._context.limits.max_row_tokens)
        asker = Asker(
            self._context.backend, self._context.text, prefix=f"{job.id}-{job.fence}/taught", tenant=request.tenant
        )
        await answer_rows(asker, rows, command, place, min(request.spec.max_length or most, most))
        reach("job.taught")

    async def _rows(self, job: JobRecord, place: Path, lost: Error | None) -> StoredRows:
        """The rows of a job; those that are ``lost``, gone or damaged are read from its dataset again."""
        if lost is None:
            try:
                return await asyncio.to_thread(stored_rows, place, self._info.base_fingerprint)
            except Error as error:
                if error.reason != ROWS_DAMAGED:
                    raise
                lost = error
        words = f"{lost.message}; the dataset is read again"
        log.warning("the rows of a job are made anew", error=lost.message)
        await self._board.append(job, TrainEvent(TrainEventType.MESSAGE, words))
        await asyncio.to_thread(discard_rows, place)
        await self._worker.make_rows(job.request, place)
        return await asyncio.to_thread(stored_rows, place, self._info.base_fingerprint)

    async def _donors(self, job: JobRecord, row_stacks: Iterable[tuple[StackItem, ...]]) -> dict[str, str]:
        """The versions of a job: those that rows name mean what they mean at its first attempt, from then on."""
        donors = (await asyncio.to_thread(self._store.jobs.get, job.id)).donors
        names = sorted({item.adapter for stack in row_stacks for item in stack} - donors.keys())
        if not names:
            return donors
        found = await asyncio.to_thread(self._store.adapters.resolve_all, names, job.request.tenant)
        new = {name: version.digest for name, version in zip(names, found, strict=True)}
        await asyncio.to_thread(self._store.jobs.add_donors, job.id, new, job.fence)
        return {**donors, **new}

    def _current(self, name: str, tenant: str) -> AdapterVersion | None:
        """The version that a job's result would replace, if it can be measured beside it."""
        try:
            record = self._store.adapters.get_version(name, tenant)
            if record.owner == tenant and record.meta.base_fingerprint in ("", self._info.base_fingerprint):
                return self._store.adapters.resolve(record.ref, tenant)
        except Error:
            pass  # there is none, or none that may be used
        return None


def versions(command: TrainCommand) -> Stack:
    """Every version whose files the engine reads for a job."""
    own = [StackEntry(version) for version in (command.init, command.current) if version is not None]
    return Stack((*own, *(entry for stack in command.stacks for entry in stack.entries)))
