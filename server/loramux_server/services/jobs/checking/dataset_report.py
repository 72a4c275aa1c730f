"""Checks of datasets before anything is queued: what is wrong, what the good rows hold, cost and look like."""

from __future__ import annotations

import asyncio
import time

from ....core.backend import ScoreCommand
from ....core.callers.principal import SERVER_TENANT, Principal
from ....core.errors import Error, FieldViolation, invalid
from ....core.jobs import JobState, TrainSpec
from ....data.dataset import DatasetSummary
from ....training.schedule import Schedule
from ...common.context import Context
from ...datasets.how_to_ask import how_to_ask
from ...datasets.worker import DatasetWorker
from .estimate import Estimate, Shape, Speed, estimate, speed_of_job
from .settings import spec_violations
from .types import DatasetReport, RowProblem

MAX_SHOWN = 100
PROBE_TOKENS = 256
"""Length of the prompt whose forward is timed where no job has told how fast this machine is."""
PROBE_SECONDS = 20.0
LOOK_BACK = 20
"""Jobs that are looked at for their speed."""
MIN_STEPS = 5
"""Steps from which on a job's speed says something."""


class DatasetChecks:
    """Reports on stored datasets."""

    def __init__(self, context: Context, worker: DatasetWorker) -> None:
        self._worker = worker
        self._store, self._text, self._backend = context.store, context.text, context.backend
        self._info, self._limits = context.info, context.limits
        self._stacks = context.stacks
        self._probed: Speed | None = None

    async def report(
        self,
        dataset_id: str,
        principal: Principal,
        spec: TrainSpec,
        show: int = 0,
        from_line: int = 0,
        validation_id: str = "",
    ) -> DatasetReport:
        """What is wrong with a dataset, and what its good rows hold and cost with ``spec``, those it replays included.

        With held-out data, what is wrong with these is told too, and how many of their rows are training rows.
        ``show`` good rows from line ``from_line`` on come with it as they are trained on. Raises INVALID_ARGUMENT for
        bad settings, NOT_FOUND for the dataset, or for an adapter that a row names.
        """
        violations = [*spec_violations(spec, self._info, self._limits)]
        if not dataset_id:
            violations.append(FieldViolation("dataset_id", "is empty; name a dataset that was uploaded"))
        if not 0 <= show <= MAX_SHOWN:
            violations.append(FieldViolation("show_rows", f"is {show}; it must be between 0 and {MAX_SHOWN}"))
        if from_line < 0:
            violations.append(FieldViolation("show_from_line", f"is {from_line}; it must be at least 0"))
        if violations:
            raise invalid(violations)
        checked = await self._worker.check(
            principal.tenant, spec, dataset_id, validation_id, show=show, from_line=from_line
        )
        if checked.refused:
            return DatasetReport(problems=tuple(RowProblem(0, why) for why in checked.refused), problems_total=1)
        await self._stacks.resolve_many(checked.row_stacks, principal)
        found, trained, cost = checked.report, checked.trained, Estimate(None, 0, "")
        if found.examples:
            free = await self._free()
            speed = await asyncio.to_thread(self._speed_of_jobs, trained, principal) or await self._probe()
            cost = estimate(self._info, spec, trained, speed, free, self._limits.max_activation_bytes)
        problems, others = checked.problems, checked.held_out_problems
        return DatasetReport(
            rows=found.rows,
            tokens=found.tokens,
            trained_tokens=found.trained_tokens,
            longest_tokens=found.longest,
            duplicates=found.duplicates,
            too_long=found.too_long,
            pairs=found.pairs,
            notes=how_to_ask(found, self._text) + checked.repeats + found.notes,
            estimated_steps=Schedule(spec, trained.examples).total_steps if trained.examples else 0,
            estimated_seconds=cost.seconds,
            estimated_memory_bytes=cost.memory_bytes or None,
            estimated_from=cost.basis,
            problems=tuple(
                RowProblem(line, description, field, in_list=each.unit == "row")
                for field, each in (("", problems), ("validation", others))
                for line, description in each.listed
            ),
            problems_total=problems.count + others.count,
            shown=checked.shown,
        )

    def _speed_of_jobs(self, report: DatasetSummary, principal: Principal) -> Speed | None:
        """The speed of the caller's latest job that tells one and ran on this base."""
        jobs, _ = self._store.jobs.list(principal, states=[JobState.SUCCEEDED], page_size=LOOK_BACK)
        for job in jobs:
            rate = job.metrics.get("tokens_per_second", 0.0)
            if (
                rate <= 0
                or job.step < MIN_STEPS
                or _kind(job.request.spec.method) != (report.pairs, bool(report.teacher_tokens))
            ):
                continue
            try:
                base = self._store.adapters.get_version(job.adapter, principal).meta.base_fingerprint
            except Error:
                continue  # deleted since
            if base == self._info.base_fingerprint:
                spec = job.request.spec
                return speed_of_job(Shape.of(self._info, spec), spec, report, rate, f"job {job.id}")
        return None

    async def _probe(self) -> Speed | None:
        """Time one forward of the engine. Training does the same products, three times as many."""
        if self._probed is not None:
            return self._probed
        length = min(PROBE_TOKENS, self._info.max_context - 1)
        for attempt in range(2):  # the first one pays for what is done once
            ids = _probe_ids(length, self._info.vocab_size, attempt)
            started = time.monotonic()
            command = ScoreCommand(f"probe-{attempt}-{time.monotonic_ns()}", ids[:-1], ids[-1:], tenant=SERVER_TENANT)
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._backend.score(command)
            except (Error, TimeoutError):
                return None  # the engine is away or busy: there is a report without an estimate then
            seconds = max(time.monotonic() - started, 1e-6)
        shape = Shape.of(self._info, TrainSpec())
        self._probed = Speed(shape.forward(length) / seconds, f"one forward of {length} tokens")
        return self._probed

    async def _free(self) -> int:
        try:
            return (await self._backend.stats()).memory.get("free", 1 << 62)
        except Error:
            return 1 << 62


def _kind(method: str) -> tuple[bool, bool]:
    """Whether a method trains on preference pairs, and whether it has a teacher."""
    return method == "dpo", method == "distill"


def _probe_ids(length: int, vocabulary: int, salt: int) -> tuple[int, ...]:
    """Token ids that no prompt before them had, so that none of their keys and values are known already."""
    return tuple((7919 * i + 104_729 * salt + time.monotonic_ns()) % vocabulary for i in range(length))
