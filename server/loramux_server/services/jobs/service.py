"""Training: datasets, jobs and their events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import BinaryIO
from weakref import WeakValueDictionary

from ...core.bounds import NOT_UNICODE, utf8_size
from ...core.call import about, trace
from ...core.callers.principal import Principal
from ...core.errors import Code, Error, FieldViolation, invalid
from ...core.jobs import JobRequest, JobState, TrainSpec
from ...core.types import Stack, StackItem
from ...store.records import DatasetRecord, EventRecord, JobRecord
from ..adapters.views import AdapterViews
from ..common.checks import check_result_name
from ..common.context import Context
from ..common.shielding import nothing_collected, temporary_folder, to_the_end
from ..common.stacks import pinned_items
from ..common.types import Page
from ..common.uploads import receive_file
from ..datasets.how_to_ask import how_to_ask
from ..datasets.worker import DatasetWorker
from .board import JobBoard
from .checking.dataset_report import DatasetChecks
from .checking.defaults import settled, with_replay
from .checking.recipes import donor_violations, filled_in, with_recipe
from .checking.settings import job_violations
from .checking.types import DatasetReport

MAX_KEY_BYTES = 255


class TrainingService:
    """Takes jobs in and tells how they go; ``runner.JobRunner`` does the work.

    Another tenant's job is NOT_FOUND, and so is one for an adapter that is not on the key's list. The runner gets
    the same ``board``.
    """

    def __init__(self, context: Context, board: JobBoard) -> None:
        self._store, self._text = context.store, context.text
        self._info, self._limits = context.info, context.limits
        self._board = board
        self._unused = context.unused
        self._worker = DatasetWorker(context)
        self._checks = DatasetChecks(context, self._worker)
        self._stacks = context.stacks
        self._views = AdapterViews(context.store, context.info)
        self._creating: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def upload_dataset(
        self,
        chunks: AsyncIterator[bytes],
        principal: Principal,
        *,
        name: str = "",
        sha256: str = "",
        upload_id: str = "",
        announced: tuple[int, int] = (0, 0),
    ) -> DatasetRecord:
        """Store the bytes of a JSONL file. Rows are counted but not looked at yet; a given ``sha256`` is checked.

        ``announced`` is the least and the most bytes that will come: what is over the tenant's quota is refused
        before it comes. ``upload_id`` is the upload in parts that they come from, which is completed with it.
        """
        if utf8_size(name) is None:
            raise invalid([FieldViolation("header.name", NOT_UNICODE)])
        if announced != (0, 0):
            await asyncio.to_thread(self._store.quotas.check_announced, principal.tenant, *announced)
        async with temporary_folder(self._store, "dataset") as folder:
            path = folder / "data"
            rows = await receive_file(chunks, path, self._limits.max_dataset_bytes, sha256)
            put = self._store.datasets.put
            dataset = await to_the_end(
                asyncio.to_thread(put, path, principal.tenant, filename=name, rows=rows, upload_id=upload_id)
            )
        about(dataset.id)
        return dataset

    async def get_dataset(self, dataset_id: str, principal: Principal) -> DatasetRecord:
        """A stored dataset."""
        return await asyncio.to_thread(self._store.datasets.get, dataset_id, principal.tenant)

    async def open_dataset(self, dataset_id: str, principal: Principal) -> BinaryIO:
        """The bytes of a stored dataset, checked. Raises DATA_LOSS when they are not what was stored."""
        return await asyncio.to_thread(self._store.datasets.open_checked, dataset_id, principal.tenant)

    async def delete_dataset(self, dataset_id: str, principal: Principal) -> DatasetRecord:
        """Forget a dataset; gives what it was. FAILED_PRECONDITION while a job that may still run has it."""
        about(dataset_id)
        gone = await asyncio.to_thread(self._store.datasets.delete, dataset_id, principal)
        self._unused.set()
        return gone

    async def list_datasets(
        self,
        principal: Principal,
        *,
        page_size: int = 100,
        page_token: str = "",
        after: str = "",
        oldest_first: bool = False,
    ) -> Page[DatasetRecord]:
        """Datasets, newest first, those behind the dataset ``after`` where it is given."""
        found = await asyncio.to_thread(
            self._store.datasets.list,
            principal.tenant,
            page_size=page_size,
            page_token=page_token,
            after=after,
            oldest_first=oldest_first,
        )
        return Page(*found)

    async def validate_dataset(
        self,
        dataset_id: str,
        principal: Principal,
        *,
        spec: TrainSpec | None = None,
        recipe: str = "",
        given: frozenset[str] = frozenset(),
        show: int = 0,
        from_line: int = 0,
        validation_id: str = "",
    ) -> DatasetReport:
        """Report on a dataset, as ``DatasetChecks.report``. A ``recipe`` fills in what is not in ``given``."""
        spec = spec or TrainSpec()
        if recipe:
            spec = filled_in(spec, recipe, given.__contains__, self._info)
        if (spec.context or spec.on_policy) and "method" not in given:
            spec = replace(spec, method="distill")
        spec = await asyncio.to_thread(with_replay, spec, given.__contains__, self._store, principal.tenant)
        return await self._checks.report(dataset_id, principal, spec, show, from_line, validation_id)

    async def create_job(self, request: JobRequest, principal: Principal) -> JobRecord:
        """Check everything, then queue a job; once this returns, the job survives a crash.

        The stacks of ``on_top_of`` are pinned to the versions of now; stacks that rows name mean the versions of
        when the job starts. Raises INVALID_ARGUMENT (settings by field, rows by line), NOT_FOUND (dataset, adapter
        underneath or to start from), PERMISSION_DENIED (a name that is not on the key's list). The same idempotency
        key gives the same job, ALREADY_EXISTS when it came with other settings.
        """
        about("", adapter=request.name, dataset=request.dataset_id)
        check_result_name(request.name, principal)
        request = with_recipe(request, self._info)
        if (size := utf8_size(request.idempotency_key)) is None or size > MAX_KEY_BYTES:
            raise invalid([FieldViolation("idempotency_key", f"is not valid text of at most {MAX_KEY_BYTES} bytes")])
        if violations := job_violations(request, self._info, self._limits):
            raise invalid(violations)
        asked, request = request, await asyncio.to_thread(settled, request, principal, self._info, self._store)
        if not request.idempotency_key:
            return await self._create(request, principal)
        # A call that is sent again while the first still runs waits for the first one's job.
        lock = self._creating.setdefault((request.tenant, request.idempotency_key), asyncio.Lock())
        async with lock:
            as_written = replace(request, init_from=asked.init_from)
            if (job := await asyncio.to_thread(self._store.jobs.made_with, as_written)) is not None:
                about(job.id)
                return await self._shown(job)
            return await self._create(request, principal)

    async def get_job(self, job_id: str, principal: Principal) -> JobRecord:
        """A job as it stands."""
        job = await self._shown(await asyncio.to_thread(self._store.jobs.get, job_id, principal))
        answers, replaced = await asyncio.to_thread(self._store.jobs.outcome, job_id)
        return replace(job, answers=answers, replaced=f"{job.request.name}@{replaced}" if replaced is not None else "")

    async def list_jobs(
        self,
        principal: Principal,
        *,
        states: tuple[JobState, ...] = (),
        name: str = "",
        page_size: int = 100,
        page_token: str = "",
        after: str = "",
    ) -> Page[JobRecord]:
        """Jobs, newest first, in one of ``states``, for adapter ``name`` and behind the job ``after`` where given."""
        found, token = await asyncio.to_thread(
            self._store.jobs.list,
            principal,
            states=states,
            name=name,
            page_size=page_size,
            page_token=page_token,
            after=after,
        )
        return Page(await asyncio.to_thread(lambda: tuple(map(self._with_version, found))), token)

    async def cancel_job(self, job_id: str, principal: Principal) -> JobRecord:
        """Stop a job for good; a running one stops within one micro-step. Cancelled jobs stay cancelled (no error)."""
        about(job_id)
        job = await asyncio.to_thread(self._store.jobs.get, job_id, principal)
        if job.state is not JobState.CANCELLED:
            # The row first: whatever happens next, the job stays cancelled.
            job = await self._board.move(job_id, JobState.CANCELLED, message="cancelled by request", viewer=principal)
            self._board.interrupt(job_id)
        return await self._shown(job)

    async def pause_job(self, job_id: str, principal: Principal) -> JobRecord:
        """Stop a job until it is resumed; it goes on from the step that it has come to."""
        about(job_id)
        job = await asyncio.to_thread(self._store.jobs.get, job_id, principal)
        if job.state is not JobState.PAUSED:
            job = await self._board.move(job_id, JobState.PAUSED, message="paused by request", viewer=principal)
            self._board.interrupt(job_id)
        return await self._shown(job)

    async def resume_job(self, job_id: str, principal: Principal) -> JobRecord:
        """Queue a paused or failed job again; it goes on from its last checkpoint. A job under way stays as it is.

        FAILED_PRECONDITION for a job that was cancelled or has succeeded.
        """
        about(job_id)
        job = await asyncio.to_thread(self._store.jobs.get, job_id, principal)
        if job.state in (JobState.SUCCEEDED, JobState.CANCELLED):
            raise Error(
                Code.FAILED_PRECONDITION,
                f"job {job_id} is {job.state.value}; only a paused or failed job can be resumed",
            )
        if job.state in (JobState.PAUSED, JobState.FAILED):
            job = await self._board.move(job_id, JobState.QUEUED, message="resumed by request", viewer=principal)
        return await self._shown(job)

    async def list_events(
        self, job_id: str, principal: Principal, *, before: int | None = None, limit: int = 100
    ) -> tuple[EventRecord, ...]:
        """The newest ``limit`` events of a job, of those with numbers below ``before``; newest first."""
        find = self._store.jobs.events_back
        return await asyncio.to_thread(find, job_id, before, viewer=principal, limit=limit)

    async def watch_job(
        self, job_id: str, principal: Principal, *, after_sequence: int = 0
    ) -> AsyncGenerator[EventRecord]:
        """Events after ``after_sequence``: those stored, then live ones; ends after the event with the final state."""
        if after_sequence < 0:
            raise invalid([FieldViolation("after_sequence", f"is {after_sequence}; it must be at least 0")])
        async with aclosing(self._board.watch(job_id, principal, after_sequence)) as events:
            async for record in events:
                yield record

    async def _create(self, request: JobRequest, principal: Principal) -> JobRecord:
        stacks = await self._stacks.resolve_many(request.on_top_of, principal)
        start = [[StackItem(request.init_from)]] if request.init_from else []
        first = await self._stacks.resolve_many(start, principal)
        donors = Stack(tuple(entry for stack in (*first, *stacks) for entry in stack.entries))
        async with temporary_folder(self._store, "job") as folder:
            started = time.monotonic()
            rows = await self._worker.make_rows(request, folder)
            validation = time.monotonic() - started
            await self._stacks.resolve_many(rows.row_stacks, principal)
            if violations := [*donor_violations(request, rows.row_stacks)]:
                raise invalid(violations)
            gate = request.gate.settled(rows.held_out is not None and not rows.by_heart)
            request = replace(request, gate=gate, on_top_of=tuple(map(pinned_items, stacks)), given=None, trace=trace())
            notes = how_to_ask(rows.train, self._text, request.name) + rows.notes
            digests = {entry.adapter.ref: entry.adapter.digest for entry in donors.entries}
            async with nothing_collected(self._store), self._stacks.held(donors):
                job = await self._board.create(request, digests, notes, folder, validation=validation)
        about(job.id)
        return await self._shown(job)

    async def _shown(self, job: JobRecord) -> JobRecord:
        return await asyncio.to_thread(self._with_version, job)

    def _with_version(self, job: JobRecord) -> JobRecord:
        """The job with the version that it published; blocking."""
        if not job.adapter:
            return job
        try:
            version = self._store.adapters.get_version(job.adapter, job.request.tenant)
        except Error as error:
            if error.code is not Code.NOT_FOUND:  # deleted since
                raise
            return job
        return replace(job, published=self._views.version(version, {}))
