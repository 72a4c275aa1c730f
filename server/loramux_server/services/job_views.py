"""From the store's records to what the services answer about datasets and jobs."""

from __future__ import annotations

import re

from ..core.errors import Error
from ..core.jobs import TrainSpec
from ..store.records import DatasetRecord, EventRecord, JobRecord
from ..training.dataset import Dataset
from ..training.order import Order
from .gate import read_gate
from .views import AdapterVersionInfo, DatasetInfo, DatasetReport, JobEvent, JobInfo, RowProblem

_LINE = re.compile(r"\[line (\d+)\](.*)", re.DOTALL)
_TOTAL = re.compile(r"(\d+) problem")


def dataset_info(record: DatasetRecord) -> DatasetInfo:
    """A stored dataset."""
    return DatasetInfo(
        id=record.id,
        digest=record.digest,
        size_bytes=record.size_bytes,
        rows=record.rows or 0,
        name=record.filename,
        created_at=record.created,
    )


def job_info(record: JobRecord, adapter: AdapterVersionInfo | None, last_sequence: int) -> JobInfo:
    """A job; ``adapter`` is what it published, ``last_sequence`` the number of its latest event."""
    request, gate = record.request, read_gate(record.request.gate)
    return JobInfo(
        id=record.id,
        name=request.name,
        tenant=request.owner,
        state=record.state,
        spec=request.spec,
        dataset_id=request.dataset_id,
        validation_dataset_id=request.validation_dataset_id,
        on_top_of=request.on_top_of,
        init_from=request.init_from,
        created_at=record.created,
        started_at=record.started or 0.0,
        finished_at=record.finished or 0.0,
        step=record.step,
        total_steps=record.total_steps,
        metrics=record.metrics,
        adapter=adapter,
        error_reason=record.error_code.upper(),
        error=record.error,
        metadata=request.metadata,
        last_sequence=last_sequence,
        gate=gate.kind,
        min_accuracy=gate.min_accuracy,
        gate_match=gate.match,
        gate_result=record.gate_result,
    )


def job_event(record: EventRecord) -> JobEvent:
    """A stored event."""
    return JobEvent(record.job_id, record.sequence, record.at, record.event)


def good_report(dataset: Dataset, spec: TrainSpec) -> DatasetReport:
    """The report of a dataset that can be trained on with ``spec``."""
    report = dataset.report
    return DatasetReport(
        rows=report.rows,
        tokens=report.tokens,
        trained_tokens=report.trained_tokens,
        longest=report.longest,
        duplicates=report.duplicates,
        estimated_steps=Order(spec, report.examples).total_steps,
        problems=(),
        problems_total=0,
    )


def bad_report(error: Error) -> DatasetReport:
    """The report of a dataset that was refused with ``error``; what its good rows hold is not counted."""
    problems: list[RowProblem] = []
    for violation in error.violations:
        match = _LINE.search(violation.field)
        if match is not None:
            problems.append(RowProblem(int(match[1]), violation.description, match[2].lstrip(".")))
        elif len(error.violations) == 1:
            problems.append(RowProblem(0, violation.description))
    total = _TOTAL.match(error.message)
    return DatasetReport(
        rows=0,
        tokens=0,
        trained_tokens=0,
        longest=0,
        duplicates=0,
        estimated_steps=0,
        problems=tuple(problems),
        problems_total=max(len(problems), int(total[1]) if total else 1),
    )
