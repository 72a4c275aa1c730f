"""Datasets, training jobs and their events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from loramux.v1 import training_pb2 as pb

from ...core.call import Call
from ...core.errors import invalid_field
from ...core.jobs import JobState, JudgedRow, TrainEventType, TrainSpec
from ...core.notes import Note
from ...services.jobs.types import CreateJobRequest, DatasetInfo, DatasetReport, JobEvent, JobInfo, MarkedText
from .adapters import version_to_proto
from .common import set_fields, stack_to_proto, stacks_from_proto

JOB_STATES: dict[JobState, pb.JobState.ValueType] = {
    JobState.VALIDATING_FILES: pb.JOB_STATE_VALIDATING_FILES,
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.PAUSED: pb.JOB_STATE_PAUSED,
    JobState.EVALUATING: pb.JOB_STATE_EVALUATING,
    JobState.PUBLISHING: pb.JOB_STATE_PUBLISHING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}
EVENT_TYPES: dict[TrainEventType, pb.JobEventType.ValueType] = {
    TrainEventType.STATE: pb.JOB_EVENT_TYPE_STATE,
    TrainEventType.STEP: pb.JOB_EVENT_TYPE_STEP,
    TrainEventType.EVALUATION: pb.JOB_EVENT_TYPE_EVALUATION,
    TrainEventType.MESSAGE: pb.JOB_EVENT_TYPE_MESSAGE,
    TrainEventType.CHECKPOINT: pb.JOB_EVENT_TYPE_CHECKPOINT,
    TrainEventType.CHECKPOINT_LOST: pb.JOB_EVENT_TYPE_CHECKPOINT_LOST,
}
GATES: dict[pb.Gate.Kind.ValueType, str] = {
    pb.Gate.KIND_UNSPECIFIED: "",
    pb.Gate.KIND_NONE: "none",
    pb.Gate.KIND_IMPROVES: "improves",
    pb.Gate.KIND_MIN_ACCURACY: "min_accuracy",
}
MATCHES: dict[pb.Gate.Match.ValueType, str] = {
    pb.Gate.MATCH_UNSPECIFIED: "",
    pb.Gate.MATCH_CONTAINED: "contained",
    pb.Gate.MATCH_EXACT: "exact",
}
_MATCHES_BACK = {word: match for match, word in MATCHES.items()}
_GATES_BACK = {word: kind for kind, word in GATES.items()}
_STATES_BACK = {value: state for state, value in JOB_STATES.items()}
_LISTS = ("target_modules", "layers")
_SCALARS = tuple(f.name for f in fields(TrainSpec) if f.name not in _LISTS)


def spec_from_proto(settings: pb.TrainSettings) -> TrainSpec:
    """The settings that are set, over the defaults."""
    given = set_fields(settings, _SCALARS)
    if settings.target_modules:
        given["target_modules"] = tuple(settings.target_modules)
    if settings.layers:
        given["layers"] = tuple(settings.layers)
    return replace(TrainSpec(), **given)


def spec_to_proto(spec: TrainSpec) -> pb.TrainSettings:
    """All settings, defaults filled in."""
    return pb.TrainSettings(
        **{name: getattr(spec, name) for name in _SCALARS},
        target_modules=spec.target_modules,
        layers=spec.layers or (),
    )


def job_from_proto(request: pb.CreateJobRequest, call: Call) -> CreateJobRequest:
    """A job as the services take it. Raises INVALID_ARGUMENT for a gate of a kind that does not exist."""
    if request.gate.kind not in GATES:
        raise invalid_field("gate.kind", f"{request.gate.kind} is no kind of gate")
    if request.gate.match not in MATCHES:
        raise invalid_field("gate.match", f"{request.gate.match} is no way to match")
    return CreateJobRequest(
        name=request.name,
        dataset_id=request.dataset_id,
        validation_dataset_id=request.validation_dataset_id,
        spec=spec_from_proto(request.settings),
        on_top_of=stacks_from_proto(request.on_top_of),
        init_from=request.init_from,
        gate=GATES[request.gate.kind],
        min_accuracy=request.gate.min_accuracy,
        gate_match=MATCHES[request.gate.match],
        compare_prompt=request.compare_prompt,
        recipe=request.recipe,
        metadata=dict(request.metadata),
        idempotency_key=request.idempotency_key,
        principal=call.principal,
        given=given_in(request.settings),
    )


def given_in(settings: pb.TrainSettings) -> frozenset[str]:
    """Names of the settings that the caller chose."""
    return frozenset(descriptor.name for descriptor, _ in settings.ListFields())


def job_to_proto(job: JobInfo) -> pb.Job:
    """A training job as it stands."""
    message = pb.Job(
        id=job.id,
        name=job.name,
        tenant=job.tenant,
        state=JOB_STATES[job.state],
        step=job.step,
        total_steps=job.total_steps,
        metrics=job.metrics,
        adapter=version_to_proto(job.adapter) if job.adapter else None,
        dataset_id=job.dataset_id,
        validation_dataset_id=job.validation_dataset_id,
        settings=spec_to_proto(job.spec),
        on_top_of=[stack_to_proto(s) for s in job.on_top_of],
        init_from=job.init_from,
        metadata=job.metadata,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        last_sequence=job.last_sequence,
        gate_result=job.gate_result,
        compare_prompt=job.compare_prompt,
        answers=map(_judged, job.answers),
        replaced=job.replaced,
        notes=map(_note, job.notes),
    )
    if job.gate:
        message.gate.kind = _GATES_BACK[job.gate]
        message.gate.min_accuracy = job.min_accuracy
        message.gate.match = _MATCHES_BACK[job.gate_match]
    if job.error or job.error_reason:
        message.error.reason = job.error_reason
        message.error.message = job.error
    return message


def event_to_proto(event: JobEvent) -> pb.JobEvent:
    """One thing that happened in a job."""
    what = event.event
    return pb.JobEvent(
        sequence=event.sequence,
        time=event.time,
        type=EVENT_TYPES[what.type],
        message=what.message,
        state=JOB_STATES[what.state] if what.state else pb.JOB_STATE_UNSPECIFIED,
        step=what.step,
        total_steps=what.total_steps,
        metrics=what.metrics,
        answers=map(_judged, what.answers),
    )


def _judged(row: JudgedRow) -> pb.JudgedRow:
    answers = [pb.JudgedRow.Answer(side=k, text=a.text, right=a.right) for k, a in row.answers.items()]
    return pb.JudgedRow(question=row.question, expected=row.expected, answers=answers)


def states_from_proto(states: Iterable[pb.JobState.ValueType]) -> tuple[JobState, ...]:
    """The states of a filter. Raises INVALID_ARGUMENT for one that does not exist."""
    found = []
    for i, value in enumerate(states):
        if value not in _STATES_BACK:
            raise invalid_field(f"states[{i}]", f"{value} is no state of a job")
        found.append(_STATES_BACK[value])
    return tuple(dict.fromkeys(found))


def dataset_to_proto(dataset: DatasetInfo) -> pb.Dataset:
    """A stored dataset."""
    return pb.Dataset(
        id=dataset.id,
        name=dataset.name,
        digest=dataset.digest,
        size_bytes=dataset.size_bytes,
        rows=dataset.rows,
        created_at=dataset.created_at,
    )


def report_to_proto(report: DatasetReport) -> pb.ValidateDatasetResponse:
    """What a dataset holds and what is wrong with it."""
    return pb.ValidateDatasetResponse(
        valid=report.ok,
        problems=[
            pb.DatasetProblem(line=p.line, field=p.field, description=p.description, in_list=p.in_list)
            for p in report.problems
        ],
        problems_total=report.problems_total,
        summary=pb.DatasetSummary(
            rows=report.rows,
            tokens=report.tokens,
            trained_tokens=report.trained_tokens,
            longest_tokens=report.longest,
            duplicates=report.duplicates,
            estimated_steps=report.estimated_steps,
            estimated_seconds=report.estimated_seconds,
            estimated_memory_bytes=report.estimated_memory_bytes,
            too_long=report.too_long,
            estimated_from=report.estimated_from,
            warnings=report.warnings,
            pairs=report.pairs,
            notes=map(_note, report.notes),
        ),
        rows=[
            pb.MarkedRow(
                line=row.line, text=map(_marked, row.text), rejected=map(_marked, row.rejected), tokens=row.tokens
            )
            for row in report.shown
        ],
    )


def _note(note: Note) -> pb.DatasetNote:
    return pb.DatasetNote(code=note.code, text=note.text, count=note.count, line=note.line)


def _marked(part: MarkedText) -> pb.MarkedText:
    return pb.MarkedText(text=part.text, trained=part.trained)
