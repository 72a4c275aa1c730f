"""OpenAI's files, uploads and fine-tuning jobs by type, as the clients read them and ``/openapi.json`` tells them."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict


class File(TypedDict):
    """A dataset as a file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: None
    filename: str
    purpose: str
    status: str
    status_details: None


class DeletedFile(TypedDict):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class Upload(TypedDict):
    """A file that comes in parts; ``file`` is what it became."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled"]
    file: File | None


class UploadPart(TypedDict):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


class JobError(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class FineTuningJob(TypedDict):
    """A job as it stands; ``loramux`` has what OpenAI has no field for."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    model: str
    fine_tuned_model: str | None
    trained_tokens: int | None
    error: JobError | None
    training_file: str
    validation_file: str | None
    result_files: list[str]
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int
    metadata: dict[str, str] | None
    integrations: list[Any] | None
    organization_id: str
    loramux: dict[str, Any]


class FineTuningEvent(TypedDict):
    """An event of a job."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]


class Checkpoint(TypedDict):
    """A version that a job published."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]


class _Page(TypedDict):
    object: Literal["list"]
    has_more: bool


class _PageWithIds(_Page):
    first_id: str | None
    last_id: str | None


class FilePage(_PageWithIds):
    """Files."""

    data: list[File]


class JobPage(_Page):
    """Jobs, newest first."""

    data: list[FineTuningJob]


class EventPage(_Page):
    """Events, newest first."""

    data: list[FineTuningEvent]


class CheckpointPage(_PageWithIds):
    """Checkpoints."""

    data: list[Checkpoint]
