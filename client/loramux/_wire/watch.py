"""Following a job through lost connections: what to ask for next, and whether another try makes sense. No I/O."""

from __future__ import annotations

import random
import time

from ..errors import DeadlineExceeded, InternalError, JobFailed, LoramuxError, Unavailable
from ..types import FINAL_STATES, AdapterVersion, JobEvent, JobInfo
from ..v1 import training_pb2
from .messages import responses

PATIENCE = 300.0
"""Seconds without an event from the server after which a watch gives up reconnecting."""


class Watch:
    """The state of one watch. Events are handed out once each, in order of sequence numbers."""

    def __init__(self, job_id: str, after_sequence: int = 0, timeout: float | None = None) -> None:
        self.job_id = job_id
        self.last = after_sequence
        self._ended = False
        self._failures = 0
        self._alive_at = time.monotonic()
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def request(self) -> training_pb2.WatchJobRequest:
        """What to ask the server for now."""
        return training_pb2.WatchJobRequest(job_id=self.job_id, after_sequence=self.last)

    def ended(self) -> bool:
        """Whether the last event that came has a final state, and so, once the stream is over, the job has ended."""
        return self._ended

    def remaining(self) -> float | None:
        """Seconds until the timeout; None: there is none."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def take(self, message: training_pb2.JobEvent) -> JobEvent | None:
        """The event of a message; None when it was handed out before."""
        self._failures, self._alive_at = 0, time.monotonic()
        if message.sequence <= self.last:
            return None
        self.last = message.sequence
        event = responses.job_event(message)
        self._ended = event.state in FINAL_STATES
        return event

    def retry_delay(self, error: LoramuxError | None) -> float:
        """Seconds to wait before asking again after ``error`` (None: the stream just ended).

        Raises the error when asking again is of no use.
        """
        if isinstance(error, DeadlineExceeded) and self._deadline is not None:
            raise DeadlineExceeded(f"job {self.job_id} is not done after the given time; it goes on") from None
        if error is not None and not isinstance(error, Unavailable | InternalError):
            raise error
        if time.monotonic() - self._alive_at > PATIENCE:
            raise error or Unavailable(f"the server sends no events of job {self.job_id}")
        # A defect of the server is worth one more try (a connection cut off mid-frame looks like one), not many.
        if isinstance(error, InternalError) and self._failures >= 1:
            raise error
        delay = min(0.1 * 2**self._failures, 5.0) * random.uniform(0.8, 1.2)
        self._failures += 1
        if (remaining := self.remaining()) is not None:
            delay = min(delay, remaining)
        return delay


def published(info: JobInfo) -> AdapterVersion:
    """What a finished job published. Raises JobFailed with the reason when it published nothing."""
    if info.state == "succeeded" and info.adapter is not None:
        return info.adapter
    why = info.error or {"cancelled": "it was cancelled"}.get(info.state, "the server gave no reason")
    raise JobFailed(
        f"training {info.name!r} {info.state} (job {info.id}): {why}",
        job_id=info.id,
        state=info.state,
        reason=info.error_reason,
    )
