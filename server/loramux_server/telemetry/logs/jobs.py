"""One line for each state that a training job comes to: whose it is, how far it has come, and why it failed."""

from __future__ import annotations

from ...core.jobs import JobState
from ...core.observing.observer import JobMoved, NullObserver
from . import write
from .lines import Event, cut

FIGURES = ("loss", "eval_loss")
"""Numbers of a job that its lines have, the latest value of each."""


class JobLog(NullObserver):
    """Writes moves of jobs as lines."""

    def job_moved(self, event: JobMoved) -> None:
        fields: Event = {
            "job_id": event.job_id,
            "state": event.new.value,
            "tenant": event.tenant,
            "adapter": event.adapter or event.name,
            "seconds": round(event.at - event.created, 1),
        }
        if event.old is not None:
            fields["before"] = event.old.value
        if event.attempt:
            fields |= {"attempt": event.attempt, "step": event.step, "total_steps": event.total_steps}
        fields |= {name: round(event.metrics[name], 4) for name in FIGURES if name in event.metrics}
        if event.error_code:
            fields |= {"reason": event.error_code, "error": cut(event.error)}
        write("warning" if event.new is JobState.FAILED else "info", __name__, "job", fields)
