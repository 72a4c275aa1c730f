"""Datasets, training jobs and their events."""

from __future__ import annotations

from collections.abc import Iterable

from loramux.v1 import training_pb2 as pb

from ...core.call import Call
from ...core.errors import invalid_field
from ...core.jobs import JobRequest, JobState, JudgedRow, TrainSpec
from ...services.jobs.checking.types import DatasetReport
from ...store.records import DatasetRecord, EventRecord, JobRecord
from .adapters import version_to_proto
from .common import from_proto, to_proto, word


def spec_from_proto(settings: pb.TrainSettings) -> TrainSpec:
    """The settings that are set, over the defaults."""
    return from_proto(TrainSpec, settings)


def given_in(settings: pb.TrainSettings) -> frozenset[str]:
    """Names of the settings that the caller chose."""
    return frozenset(descriptor.name for descriptor, _ in settings.ListFields())


def job_from_proto(request: pb.CreateJobRequest, call: Call) -> JobRequest:
    """A job as the services take it. Raises INVALID_ARGUMENT for a gate of a kind that does not exist."""
    spec, given = spec_from_proto(request.settings), given_in(request.settings)
    return from_proto(JobRequest, request, spec=spec, given=given, tenant=call.principal.tenant)


def job_to_proto(job: JobRecord) -> pb.Job:
    """A training job as it stands."""
    request, reason = job.request, job.error_code.upper()
    return to_proto(
        pb.Job,
        job,
        request,
        settings=request.spec,
        adapter=version_to_proto(job.published) if job.published else None,
        error=pb.JobError(reason=reason, message=job.error) if job.error or reason else None,
        answers=map(_judged, job.answers),
        created_at=job.created,
        started_at=job.started,
        finished_at=job.finished,
    )


def event_to_proto(record: EventRecord) -> pb.JobEvent:
    """One thing that happened in a job."""
    event = record.event
    return to_proto(pb.JobEvent, record, event, time=record.at, answers=map(_judged, event.answers))


def _judged(row: JudgedRow) -> pb.JudgedRow:
    answers = [to_proto(pb.JudgedRow.Answer, answer, side=side) for side, answer in row.answers.items()]
    return to_proto(pb.JudgedRow, row, answers=answers)


def states_from_proto(states: Iterable[pb.JobState.ValueType]) -> tuple[JobState, ...]:
    """The states of a filter. Raises INVALID_ARGUMENT for one that does not exist."""
    words = [word(pb.JobState.DESCRIPTOR, number, f"states[{i}]") for i, number in enumerate(states)]
    if "" in words:
        raise invalid_field(
            f"states[{words.index('')}]", "is JOB_STATE_UNSPECIFIED; leave the list empty for all states"
        )
    for i, state in enumerate(words):
        if state not in set(JobState):
            raise invalid_field(f"states[{i}]", f"is {state}, a state that no job has; leave it out")
    return tuple(dict.fromkeys(map(JobState, words)))


def dataset_to_proto(dataset: DatasetRecord) -> pb.Dataset:
    """A stored dataset."""
    return to_proto(pb.Dataset, dataset, name=dataset.filename, created_at=dataset.created)


def report_to_proto(report: DatasetReport) -> pb.ValidateDatasetResponse:
    """What a dataset holds and what is wrong with it."""
    summary = to_proto(pb.DatasetSummary, report)
    return to_proto(pb.ValidateDatasetResponse, report, valid=report.ok, summary=summary, rows=report.shown)
