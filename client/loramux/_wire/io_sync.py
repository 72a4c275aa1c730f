"""What the sync client does in its own way; ``_io_async`` has the same names for the async client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ..types import JobInfo

if TYPE_CHECKING:
    from .._sync.jobs import Job

T = TypeVar("T")
P = ParamSpec("P")

sleep = time.sleep


def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what reads or writes files: here, because waiting does no harm."""
    return function(*args, **kwargs)


def sent(items: Iterator[T]) -> Iterator[T]:
    """The requests of an upload; grpc reads them in a thread of its own."""
    return items


def latest(job: Job) -> JobInfo:
    """What a job's properties show: how it stands now."""
    return job.refresh()
