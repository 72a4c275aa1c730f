"""From the store's records to what the services answer about datasets and jobs."""

from __future__ import annotations

from ...store.records import DatasetRecord, EventRecord, JobRecord
from ..adapters.types import AdapterVersionInfo
from ..evaluation.gate import read_gate
from .types import DatasetInfo, JobEvent, JobInfo


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
        compare_prompt=request.compare_prompt,
        notes=request.notes,
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
