"""Training: datasets, jobs and their events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..core.backend import EngineInfo
from ..core.jobs import JobState, TrainSpec
from .limits import Limits
from .observer import Observer
from .views import CreateJobRequest, DatasetInfo, DatasetReport, JobEvent, JobInfo, Page


class TrainingService:
    """Takes jobs in and tells how they go; ``runner.JobRunner`` does the work. Another tenant's job is NOT_FOUND."""

    def __init__(
        self, store: Any, text: Any, info: EngineInfo, limits: Limits, observer: Observer | None = None
    ) -> None: ...

    async def upload_dataset(
        self, chunks: AsyncIterator[bytes], tenant: str = "default", *, name: str = "", sha256: str = ""
    ) -> DatasetInfo:
        """Store the bytes of a JSONL file. Rows are counted but not looked at yet; a given ``sha256`` is checked."""
        raise NotImplementedError

    async def validate_dataset(
        self, dataset_id: str, tenant: str = "default", *, spec: TrainSpec | None = None
    ) -> DatasetReport:
        """Parse and tokenise a dataset and report what is wrong with it and what it holds."""
        raise NotImplementedError

    async def create_job(self, request: CreateJobRequest) -> JobInfo:
        """Check everything, then queue a job; once this returns, the job survives a crash.

        Raises INVALID_ARGUMENT (settings by field, rows by line), NOT_FOUND (dataset, adapter underneath),
        UNIMPLEMENTED (``gate``, ``compare_prompt``, ``init_from``). The same idempotency key gives the same job.
        """
        raise NotImplementedError

    async def get_job(self, job_id: str, tenant: str = "default") -> JobInfo:
        raise NotImplementedError

    async def list_jobs(
        self,
        tenant: str = "default",
        *,
        states: tuple[JobState, ...] = (),
        name: str = "",
        page_size: int = 100,
        page_token: str = "",
    ) -> Page[JobInfo]:
        """Jobs, newest first, in one of ``states`` and for adapter ``name`` where these are given."""
        raise NotImplementedError

    async def cancel_job(self, job_id: str, tenant: str = "default") -> JobInfo:
        """Stop a job for good; a running one stops within one micro-step. Cancelled jobs stay cancelled (no error)."""
        raise NotImplementedError

    async def pause_job(self, job_id: str, tenant: str = "default") -> JobInfo:
        raise NotImplementedError

    async def resume_job(self, job_id: str, tenant: str = "default") -> JobInfo:
        raise NotImplementedError

    def watch_job(self, job_id: str, tenant: str = "default", *, after_sequence: int = 0) -> AsyncIterator[JobEvent]:
        """Events after ``after_sequence``: those stored, then live ones; ends after the event with the final state."""
        raise NotImplementedError
