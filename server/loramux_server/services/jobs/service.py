"""Training: datasets, jobs and their events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from weakref import WeakValueDictionary

from ...core.errors import Code, Error, FieldViolation, invalid
from ...core.jobs import JobState, TrainSpec
from ...core.principal import Principal
from ...core.types import Stack, StackItem
from ...core.watch import Watch
from ...store import job_rows
from ...store.records import JobRecord, NewJob
from ...store.refs import check_new_name, parse_ref
from ..adapters.views import AdapterViews
from ..common.checks import utf8_size
from ..common.context import Context
from ..common.shielding import nothing_collected, temporary_folder, to_the_end
from ..common.stacks import StackResolver, pinned_items
from ..common.types import Page
from ..common.uploads import receive_file
from ..common.workers import compute
from ..datasets.how_to_ask import how_to_ask
from ..datasets.training_data import JobData, load_data
from ..evaluation.comparison import prompted
from ..evaluation.gate import MIN_ACCURACY, Gate, kind_of_gate, make_gate
from ..evaluation.questions import questions
from .board import JobBoard
from .checks import job_violations
from .dataset_report import DatasetChecks
from .defaults import settled, with_replay
from .recipes import donor_violations, filled_in, with_recipe
from .types import CreateJobRequest, DatasetInfo, DatasetReport, JobEvent, JobInfo
from .views import dataset_info, job_event, job_info

MAX_KEY_BYTES = 255


class TrainingService:
    """Takes jobs in and tells how they go; ``runner.JobRunner`` does the work. Another tenant's job is NOT_FOUND.

    The runner gets the same ``board``.
    """

    def __init__(self, context: Context, board: JobBoard) -> None:
        self._store, self._text = context.store, context.text
        self._info, self._limits = context.info, context.limits
        self._board = board
        self._checks = DatasetChecks(context)
        self._stacks = StackResolver(context.store)
        self._views = AdapterViews(context.store, context.info)
        self._creating: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def upload_dataset(
        self, chunks: AsyncIterator[bytes], principal: Principal, *, name: str = "", sha256: str = ""
    ) -> DatasetInfo:
        """Store the bytes of a JSONL file. Rows are counted but not looked at yet; a given ``sha256`` is checked."""
        if utf8_size(name) is None:
            raise invalid([FieldViolation("header.name", "is not valid Unicode (lone surrogate)")])
        async with temporary_folder(self._store, "dataset") as folder:
            path = folder / "data"
            rows = await receive_file(chunks, path, self._limits.max_dataset_bytes, sha256)
            record = await to_the_end(
                asyncio.to_thread(self._store.datasets.put, path, principal.tenant, filename=name, rows=rows)
            )
        return dataset_info(record)

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
        spec = await asyncio.to_thread(with_replay, spec, given.__contains__, self._store, principal.tenant)
        return await self._checks.report(dataset_id, principal.tenant, spec, show, from_line, validation_id)

    async def create_job(self, request: CreateJobRequest) -> JobInfo:
        """Check everything, then queue a job; once this returns, the job survives a crash.

        The stacks of ``on_top_of`` are pinned to the versions of now; stacks that rows name mean the versions of
        when the job starts. Raises INVALID_ARGUMENT (settings by field, rows by line), NOT_FOUND (dataset, adapter
        underneath or to start from). The same idempotency key gives the same job, ALREADY_EXISTS when it came with
        other settings.
        """
        check_new_name(request.name)
        request = with_recipe(request, self._info)
        if (size := utf8_size(request.idempotency_key)) is None or size > MAX_KEY_BYTES:
            raise invalid([FieldViolation("idempotency_key", f"is not valid text of at most {MAX_KEY_BYTES} bytes")])
        if violations := job_violations(request, self._info, self._limits):
            raise invalid(violations)
        asked, request = request, await asyncio.to_thread(settled, request, self._info, self._store)
        if not request.idempotency_key:
            return await self._create(request)
        # A call that is sent again while the first still runs waits for the first one's job.
        lock = self._creating.setdefault((request.principal.tenant, request.idempotency_key), asyncio.Lock())
        async with lock:
            if (job := await asyncio.to_thread(self._made_before, request, asked.init_from)) is not None:
                return await self._info_of(job)
            return await self._create(request)

    async def get_job(self, job_id: str, principal: Principal) -> JobInfo:
        """A job as it stands."""
        job = await asyncio.to_thread(self._store.jobs.get, job_id, principal.tenant)
        info = await self._info_of(job)
        answers, replaced = await asyncio.to_thread(self._store.jobs.outcome, job_id)
        return replace(info, answers=answers, replaced=f"{info.name}@{replaced}" if replaced is not None else "")

    async def list_jobs(
        self,
        principal: Principal,
        *,
        states: tuple[JobState, ...] = (),
        name: str = "",
        page_size: int = 100,
        page_token: str = "",
    ) -> Page[JobInfo]:
        """Jobs, newest first, in one of ``states`` and for adapter ``name`` where these are given."""
        found, token = await asyncio.to_thread(self._list, principal.tenant, states, name, page_size, page_token)
        return Page(await asyncio.to_thread(lambda: tuple(self._view(job) for job in found)), token)

    async def cancel_job(self, job_id: str, principal: Principal) -> JobInfo:
        """Stop a job for good; a running one stops within one micro-step. Cancelled jobs stay cancelled (no error)."""
        job = await asyncio.to_thread(self._store.jobs.get, job_id, principal.tenant)
        if job.state is not JobState.CANCELLED:
            # The row first: whatever happens next, the job stays cancelled.
            job = await self._board.move(
                job_id, JobState.CANCELLED, message="cancelled by request", tenant=principal.tenant
            )
            self._board.interrupt(job_id)
        return await self._info_of(job)

    async def pause_job(self, job_id: str, principal: Principal) -> JobInfo:
        """Stop a job until it is resumed; it goes on from the step that it has come to."""
        job = await asyncio.to_thread(self._store.jobs.get, job_id, principal.tenant)
        if job.state is not JobState.PAUSED:
            job = await self._board.move(job_id, JobState.PAUSED, message="paused by request", tenant=principal.tenant)
            self._board.interrupt(job_id)
        return await self._info_of(job)

    async def resume_job(self, job_id: str, principal: Principal) -> JobInfo:
        """Queue a paused or failed job again; it goes on from its last checkpoint. A job under way stays as it is.

        FAILED_PRECONDITION for a job that was cancelled or has succeeded.
        """
        job = await asyncio.to_thread(self._store.jobs.get, job_id, principal.tenant)
        if job.state in (JobState.SUCCEEDED, JobState.CANCELLED):
            raise Error(Code.FAILED_PRECONDITION, f"job {job_id} is {job.state.value} and cannot go on")
        if job.state in (JobState.PAUSED, JobState.FAILED):
            job = await self._board.move(job_id, JobState.QUEUED, message="resumed by request", tenant=principal.tenant)
        return await self._info_of(job)

    async def watch_job(
        self, job_id: str, principal: Principal, *, after_sequence: int = 0
    ) -> AsyncGenerator[JobEvent]:
        """Events after ``after_sequence``: those stored, then live ones; ends after the event with the final state."""
        if after_sequence < 0:
            raise invalid([FieldViolation("after_sequence", f"is {after_sequence}; it must be at least 0")])
        async with aclosing(self._board.watch(job_id, principal.tenant, after_sequence)) as events:
            async for record in events:
                yield job_event(record)

    async def _create(self, request: CreateJobRequest) -> JobInfo:
        tenant = request.principal.tenant
        data = await self._load(request.spec, tenant, request.dataset_id, request.validation_dataset_id)
        stacks = await self._stacks.resolve_many(request.on_top_of, tenant)
        start = [[StackItem(request.init_from)]] if request.init_from else []
        first = await self._stacks.resolve_many(start, tenant)
        donors = Stack(tuple(entry for stack in (*first, *stacks) for entry in stack.entries))
        await self._stacks.resolve_many(data.row_stacks, tenant)
        if violations := [*donor_violations(request, data.row_stacks)]:
            raise invalid(violations)
        kind = kind_of_gate(request.gate, data.validation is not None and not data.by_heart)
        gate = make_gate(kind, request.min_accuracy, request.gate_match)
        await compute(lambda watch: self._check_questions(request, gate, data, watch))
        new = NewJob(
            name=request.name,
            dataset_id=request.dataset_id,
            owner=tenant,
            spec=request.spec,
            validation_dataset_id=request.validation_dataset_id,
            on_top_of=tuple(pinned_items(stack) for stack in stacks),
            init_from=request.init_from,
            gate=str(gate),
            compare_prompt=request.compare_prompt,
            metadata=dict(request.metadata),
            idempotency_key=request.idempotency_key,
            notes=how_to_ask(data.train.report, self._text, request.name) + data.notes,
            donors={entry.adapter.ref: entry.adapter.digest for entry in donors.entries},
        )
        async with nothing_collected(self._store), self._stacks.held(donors):
            job = await self._board.create(new)
        return await self._info_of(job)

    def _check_questions(self, request: CreateJobRequest, gate: Gate, data: JobData, watch: Watch) -> None:
        """Raise INVALID_ARGUMENT where answers are to be looked at, and held-out rows cannot be asked for them."""
        wanted = {"gate": gate.kind == MIN_ACCURACY, "compare_prompt": bool(request.compare_prompt)}
        if data.validation is None or not any(wanted.values()):
            return
        asked = questions(data.validation.rows, 1, self._text, self._info.max_context)
        if not asked:
            words = "no held-out row has a prompt before its answer to ask the model"
            raise invalid([FieldViolation(name, words) for name, given in wanted.items() if given])
        if request.compare_prompt:
            held_out, digest = data.validation.examples, data.validation_digest
            context, kwargs = request.compare_prompt, request.spec.chat_template_kwargs
            prompted(asked, held_out, digest, context, kwargs, self._store, self._text, self._info, watch=watch)

    async def _load(self, spec: TrainSpec, tenant: str, dataset_id: str, validation_id: str = "") -> JobData:
        return await compute(
            lambda watch: load_data(
                self._store,
                self._text,
                self._info,
                self._limits,
                spec,
                tenant,
                dataset_id,
                validation_id,
                watch=watch,
            )
        )

    def _made_before(self, request: CreateJobRequest, init_from: str) -> JobRecord | None:
        """The job that this idempotency key made. References are compared as they were written: names move on."""
        with self._store.database.read() as connection:
            row = job_rows.by_key(connection, request.principal.tenant, request.idempotency_key)
        if row is None:
            return None
        job = job_rows.record(row)
        made = job.request
        # What was not asked for was decided by the data, which are the same.
        gate = str(make_gate(request.gate, request.min_accuracy, request.gate_match)) if request.gate else made.gate
        same = (
            (made.name, made.dataset_id, made.validation_dataset_id, made.spec, made.gate, made.metadata)
            == (request.name, request.dataset_id, request.validation_dataset_id, request.spec, gate, request.metadata)
            and made.compare_prompt == request.compare_prompt
        ) and _same_stacks((*request.on_top_of, _one(init_from)), (*made.on_top_of, _one(made.init_from)))
        if not same:
            raise Error(
                Code.ALREADY_EXISTS,
                f"idempotency_key {request.idempotency_key[:80]!r} was used for job {job.id} with other settings;"
                " use a new key",
                reason="IDEMPOTENCY_KEY_REUSED",
            )
        return job

    def _list(
        self, tenant: str, states: tuple[JobState, ...], name: str, page_size: int, token: str
    ) -> tuple[list[JobRecord], str]:
        found: list[JobRecord] = []
        one = states[0] if len(states) == 1 else None
        while True:
            jobs, token = self._store.jobs.list(tenant, state=one, page_size=page_size - len(found), page_token=token)
            found += [j for j in jobs if (not states or j.state in states) and (not name or j.request.name == name)]
            if len(found) == page_size or not token:
                return found, token

    async def _info_of(self, job: JobRecord) -> JobInfo:
        return await asyncio.to_thread(self._view, job)

    def _view(self, job: JobRecord) -> JobInfo:
        adapter = None
        if job.adapter:
            try:
                adapter = self._views.version(self._store.adapters.get_version(job.adapter, job.request.owner), {})
            except Error as error:
                if error.code is not Code.NOT_FOUND:  # deleted since
                    raise
        return job_info(job, adapter, self._store.jobs.last_sequence(job.id))


def _one(ref: str) -> tuple[StackItem, ...]:
    return (StackItem(ref),) if ref else ()


def _same_stacks(asked: tuple[tuple[StackItem, ...], ...], pinned: tuple[tuple[StackItem, ...], ...]) -> bool:
    """Whether ``pinned`` can be what ``asked`` was resolved to."""

    def same(item: StackItem, other: StackItem) -> bool:
        ref = parse_ref(item.adapter)
        wanted = other.adapter if ref.version is not None else other.adapter.partition("@")[0]
        return item.weight == other.weight and (item.adapter if ref.version is not None else ref.name) == wanted

    return [len(stack) for stack in asked] == [len(stack) for stack in pinned] and all(
        same(item, other)
        for stack, others in zip(asked, pinned, strict=True)
        for item, other in zip(stack, others, strict=True)
    )
