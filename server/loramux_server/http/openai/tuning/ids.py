"""Ids of OpenAI's objects: those of the server's own with OpenAI's prefixes, so that every door means the same."""

from __future__ import annotations

import re

from ....core.errors import Code, Error

_EVENT = re.compile(r"ftevent-([0-9a-f]{1,40})-([1-9][0-9]{0,11})", re.ASCII)
FILE, FINE_TUNING = "file-", "ft"


def file_id(dataset_id: str) -> str:
    """``file-ds-0123456789abcdef``."""
    return FILE + dataset_id


def dataset_id(file: str) -> str:
    """The dataset of a file; the dataset's own id is taken too."""
    return file.removeprefix(FILE)


def job_id(job: str) -> str:
    """``ftjob-...`` of ``job-...``."""
    return FINE_TUNING + job


def own_job_id(job: str) -> str:
    """The job's own id, which is taken too."""
    return job.removeprefix(FINE_TUNING)


def event_id(job: str, sequence: int) -> str:
    """``ftevent-<job>-<number>``."""
    return f"ftevent-{job.removeprefix('job-')}-{sequence}"


def sequence_of(event: str, job: str) -> int:
    """The number of an event of ``job``. Raises NOT_FOUND for what is no event of it."""
    found = _EVENT.fullmatch(event)
    if found is None or f"job-{found[1]}" != job:
        raise Error(Code.NOT_FOUND, f"after: event {event[:80]!r} of job {job[:80]} not found")
    return int(found[2])
