"""OpenAI's objects of files, fine-tuning jobs, their events and checkpoints."""

from __future__ import annotations

import math
from typing import Any

from ....core.backend import EngineInfo
from ....core.jobs import JobState, TrainEvent, TrainEventType
from ....core.types import BASE_NAME
from ....services.jobs.checking.recipes import chosen_rate
from ....store.records import DatasetRecord, EventRecord, JobRecord, PartRecord, UploadRecord
from .ids import event_id, file_id, job_id

PURPOSE = "fine-tune"
_STATUS = {JobState.EVALUATING: "running", JobState.PUBLISHING: "running"}
"""States that OpenAI has no word for; the others are called alike."""
_METRICS = {
    "loss": "train_loss",
    "token_accuracy": "train_mean_token_accuracy",
    "eval_loss": "full_valid_loss",
    "eval_token_accuracy": "full_valid_mean_token_accuracy",
}
"""OpenAI's names of metrics; any other keeps its own."""
_METRIC_EVENTS = (TrainEventType.STEP, TrainEventType.EVALUATION)


def file_object(dataset: DatasetRecord) -> dict[str, Any]:
    """A dataset as a file."""
    id = file_id(dataset.id)
    return {
        "id": id,
        "object": "file",
        "bytes": dataset.size_bytes,
        "created_at": int(dataset.created),
        "expires_at": None,
        "filename": dataset.filename or f"{id}.jsonl",
        "purpose": PURPOSE,
        "status": "processed",
        "status_details": None,
    }


def upload_object(upload: UploadRecord, dataset: DatasetRecord | None = None) -> dict[str, Any]:
    """A dataset that comes in parts, with the file that it became."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.size_bytes,
        "created_at": int(upload.created),
        "expires_at": int(upload.expires),
        "filename": upload.filename,
        "purpose": PURPOSE,
        "status": upload.state.value,
        "file": None if dataset is None else file_object(dataset),
    }


def part_object(part: PartRecord) -> dict[str, Any]:
    """A part of an upload."""
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": int(part.created),
        "upload_id": part.upload_id,
    }


def job_object(job: JobRecord, info: EngineInfo) -> dict[str, Any]:
    """A job as it stands; ``loramux`` has what OpenAI has no field for."""
    request, failed = job.request, job.state is JobState.FAILED
    eta = job.metrics.get("eta_seconds") if job.state is JobState.RUNNING else None
    succeeded = job.state is JobState.SUCCEEDED
    method = _method(job, info)
    numbers = method[method["type"]]["hyperparameters"]
    return {
        "id": job_id(job.id),
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "finished_at": None if job.finished is None else int(job.finished),
        "estimated_finish": int(job.updated + eta) if eta is not None and math.isfinite(eta) else None,
        "status": _STATUS.get(job.state, job.state.value),
        "model": request.init_from or BASE_NAME,
        "fine_tuned_model": (job.adapter or None) if succeeded else None,
        "trained_tokens": int(job.metrics.get("trained_tokens", 0)) if succeeded else None,
        "error": {"code": job.error_code.lower(), "message": job.error, "param": None} if failed else None,
        "training_file": file_id(request.dataset_id),
        "validation_file": file_id(request.validation_dataset_id) if request.validation_dataset_id else None,
        "result_files": [],
        "method": method,
        "hyperparameters": {name: value for name, value in numbers.items() if name != "beta"},
        "seed": request.spec.seed,
        "metadata": request.metadata or None,
        "integrations": [],
        "organization_id": request.tenant,
        "loramux": {
            "name": request.name,
            "state": job.state.value,
            "epochs": request.spec.epochs,
            "step": job.step,
            "total_steps": job.total_steps,
            "metrics": _finite(job.metrics),
            "gate_result": job.gate_result or None,
            "notes": [note.text for note in job.notes],
        },
    }


def event_object(record: EventRecord) -> dict[str, Any]:
    """An event; steps and evaluations are of type ``metrics``."""
    event = record.event
    metrics = event.type in _METRIC_EVENTS
    level = "error" if event.state is JobState.FAILED else "info"
    if event.type is TrainEventType.CHECKPOINT_LOST:
        level = "warn"
    data: dict[str, Any] = {}
    if metrics:
        renamed = {_METRICS.get(name, name): value for name, value in _finite(event.metrics).items()}
        data = {"step": event.step, "total_steps": event.total_steps, **renamed}
    elif event.state is not None:
        data = {"state": event.state.value}
    return {
        "id": event_id(record.job_id, record.sequence),
        "object": "fine_tuning.job.event",
        "created_at": int(record.at),
        "level": level,
        "type": "metrics" if metrics else "message",
        "message": _message(event),
        "data": data,
    }


def checkpoint_object(job: JobRecord) -> dict[str, Any]:
    """The published version as the one checkpoint that can be asked: those of a run under way are for resuming."""
    metrics = {theirs: job.metrics[ours] for ours, theirs in _METRICS.items() if ours in _finite(job.metrics)}
    return {
        "id": f"ftckpt-{job.id.removeprefix('job-')}-{job.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(job.finished or job.updated),
        "fine_tuned_model_checkpoint": job.adapter,
        "fine_tuning_job_id": job_id(job.id),
        "step_number": job.step,
        "metrics": {"step": job.step, **metrics},
    }


def _method(job: JobRecord, info: EngineInfo) -> dict[str, Any]:
    """The method with its hyperparameters as they were settled; ``auto`` is a number by now."""
    spec = job.request.spec
    rate = chosen_rate(spec.method, job.request.recipe, info)
    numbers: dict[str, Any] = {
        "n_epochs": math.ceil(spec.epochs),
        "batch_size": spec.batch_size,
        "learning_rate_multiplier": float(f"{spec.learning_rate / rate:.6g}"),
    }
    if spec.method == "dpo":
        return {"type": "dpo", "dpo": {"hyperparameters": {**numbers, "beta": spec.beta}}}
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def _message(event: TrainEvent) -> str:
    where = f"Step {event.step}/{event.total_steps}"
    for name, words in (("eval_loss", "validation loss"), ("loss", "training loss")):
        if event.type in _METRIC_EVENTS and name in event.metrics:
            return f"{where}: {words}={event.metrics[name]:.4g}"
    return event.message or where


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Those that JSON can say."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
