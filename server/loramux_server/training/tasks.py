"""The training jobs of the engine loop: each goes its own way, and they share the passes that make gradients."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from ..core.background import Ended, Report
from ..core.errors import Code, Error
from ..core.jobs import TrainCommand, TrainEvent, TrainEventType
from ..model.resident import ResidentBase
from .gradients import Batch, out_of_memory, pick, run_pass
from .layers import Units
from .pace import IDLE_SECONDS, Pace
from .run import Pieces
from .selftest import gradient_fault
from .trainer import train

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "OUT_OF_MEMORY"


@dataclass(slots=True)
class Job:
    """A run in progress. It goes on by itself, unless it waits for the gradients of a ``batch``."""

    id: str
    run: Pieces[None]
    report: Report
    pace: Pace  # of what it does by itself
    batch: Batch | None = None
    nbytes: int = 0
    limit: int | None = None  # most tokens of a pass, since one with this job failed: it runs alone from then on


class TrainingJobs:
    """The jobs at work, advanced a piece at a time, and a piece a unit at a time.

    A piece is either something that one job does by itself (reading, evaluating, writing) or a pass over rows of all
    jobs that wait for gradients. A job joins between two pieces. One that leaves in the middle of a pass takes it
    along: the others' batches begin anew.
    """

    def __init__(self, base: ResidentBase, fault: Error | None = None, activation_memory: int | None = None) -> None:
        """With a ``fault`` of the base no job is taken. ``activation_memory``: see :class:`.layers.LayerPlan`."""
        self._base, self._fault, self._activation_memory = base, fault, activation_memory
        self._pace = Pace(1)  # of the passes
        self._jobs: dict[str, Job] = {}  # those whose turn is next first
        self._pass_is_due = False
        self._piece: Units[list[Ended]] | None = None  # that is under way
        self._taking_part: list[Job] = []  # in it

    @property
    def jobs(self) -> tuple[str, ...]:
        return tuple(self._jobs)

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self._jobs.values())

    def add(self, command: TrainCommand, report: Report) -> None:
        """Start a job. Raises FAILED_PRECONDITION where gradients do not pass through the base."""
        if self._fault is not None:
            raise self._fault
        # By itself a job runs forward, through about half of the layers at least.
        pace = Pace(len(self._base.layers) / 2)
        run = train(self._base, command, report, pace, self._activation_memory)
        self._jobs[command.job_id] = Job(command.job_id, run, report, pace)

    def remove(self, job_id: str) -> None:
        """Drop a job, if it is here: its state is saved, and nothing told."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        if self._piece is not None and job in self._taking_part:
            self._piece.close()
            self._piece = None
            for other in self._taking_part:
                if other is not job and other.batch is not None:
                    other.batch.restart()
        job.run.close()

    def advance(self, seconds: float | None) -> list[Ended]:
        """Units for about ``seconds``, one at least, or when None for as long as somebody who comes may wait.

        Gives the jobs that ended.
        """
        started = time.monotonic()
        most = IDLE_SECONDS if seconds is None else seconds
        try:
            while True:
                before = time.monotonic()
                ended = self._unit(serving=seconds is not None)
                if self._base.device.type == "cuda":
                    torch.cuda.synchronize(self._base.device)  # what was only queued would take the others' time
                now = time.monotonic()
                # The next unit takes about as long as this one.
                if ended or not self._jobs or 2 * now - before - started > most:
                    return ended
        finally:
            self._base.release()

    def _unit(self, *, serving: bool) -> list[Ended]:
        """What runs without a pause."""
        if self._piece is None:
            self._piece = self._next(serving)
        try:
            next(self._piece)
        except StopIteration as done:
            self._piece = None
            ended: list[Ended] = done.value
            return ended
        except BaseException:
            self._piece = None
            raise
        return []

    def _next(self, serving: bool) -> Units[list[Ended]]:
        """What one job does by itself and passes take turns, where both wait."""
        for job in [job for job in self._jobs.values() if job.batch is None]:
            if self._pass_is_due and self._waiting():
                break
            job.pace.serving = serving
            self._last(job)
            self._taking_part = [job]
            return self._alone(job)
        self._pass_is_due = False
        return self._pass(serving)

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.batch is not None]

    def _last(self, job: Job) -> None:
        self._jobs[job.id] = self._jobs.pop(job.id)

    def _alone(self, job: Job) -> Units[list[Ended]]:
        ended = yield from self._resume(job)
        self._pass_is_due = bool(ended) or job.batch is None
        return ended

    def _pass(self, serving: bool) -> Units[list[Ended]]:
        """Gradients for the job whose turn it is, and for those after it that still fit into its pass.

        One whose batch is not done keeps its turn.
        """
        together = self._together()
        if not together:
            return []
        first = together[0].batch.first if together[0].batch else 0
        # A layer's backward takes two parts of three of its share.
        self._pace.serving, self._pace.units = serving, 1.5 * (len(self._base.layers) - first)
        limits = [job.limit for job in together if job.limit is not None]
        most = min([self._pace.most, *limits])
        picked, tokens = pick([job.batch for job in together if job.batch], min(self._pace.room, most), most)
        taken = {id(batch) for batch, _ in picked}
        self._taking_part = together = [job for job in together if id(job.batch) in taken]
        failure: Exception
        try:
            yield from self._pace.measure(tokens, run_pass(self._base, picked))
        except torch.AcceleratorError:
            raise  # the device is lost, and with it everything
        except Exception as error:  # a defect in a job is no reason to stop serving
            failure = error.with_traceback(None)
        else:
            for job in together:
                if job.batch and job.batch.done:
                    job.batch = None
            return []
        # Out of the handler, so that the failed pass and its activations are gone.
        ended: list[Ended] = []
        for job in together:
            ended += yield from self._again(job, failure, tokens, alone=len(together) == 1)
        return ended

    def _together(self) -> list[Job]:
        """The waiting job whose turn it is, and those that start at the same layer."""
        waiting = self._waiting()
        if not waiting or waiting[0].limit is not None:
            return waiting[:1]
        return [
            job
            for job in waiting
            if job.limit is None and job.batch and waiting[0].batch and job.batch.first == waiting[0].batch.first
        ]

    def _again(self, job: Job, error: Exception, tokens: int, *, alone: bool) -> Units[list[Ended]]:
        """After a pass that failed: the step is done once more, alone and in parts half as large, or the job fails."""
        assert job.batch is not None
        job.batch.restart()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        memory = out_of_memory(error)
        if job.limit is None and (memory or not alone):
            job.limit = max(1, tokens // 2)
            job.pace.shrink(job.limit)
            if memory:
                words = "out of memory in a training step: it is done again in smaller parts"
                job.report(TrainEvent(TrainEventType.MESSAGE, words, None, job.batch.run.step, job.batch.run.total))
            return []
        return (yield from self._resume(job, error))

    def _resume(self, job: Job, error: Exception | None = None) -> Units[list[Ended]]:
        """Let a job do its next piece, or end it with ``error``; gives it if it ended."""
        job.batch = None
        while True:
            try:
                step = next(job.run) if error is None else job.run.throw(error)
            except StopIteration:
                reason = None
            except torch.AcceleratorError:
                raise
            except Exception as failure:  # a defect in a job is no reason to stop serving, or its neighbours
                reason = _reason(job.id, failure)
            else:
                error = None
                if step is None:
                    yield
                    continue
                job.batch = step if isinstance(step, Batch) else None
                job.nbytes = step.run.nbytes if isinstance(step, Batch) else step
                return []
            del self._jobs[job.id]
            job.run.close()
            return [(job.id, reason)]


def _reason(job: str, failure: Exception) -> Error:
    """What to tell of a job that failed."""
    if isinstance(failure, Error):
        return failure
    if out_of_memory(failure):
        return Error(
            Code.RESOURCE_EXHAUSTED,
            "out of memory in a training step, also with smaller parts of the batch; train on shorter rows, on fewer"
            " layers or with a lower rank",
            reason=OUT_OF_MEMORY,
        )
    log.error("training job %s failed", job, exc_info=failure)
    return Error(Code.INTERNAL, "the job failed by a defect; the server's log says why")


def make_tasks(base: ResidentBase, activation_memory: int | None) -> TrainingJobs:
    """The training side of an engine on ``base``. Tries once whether gradients pass through; without, jobs fail.

    ``activation_memory``: see :class:`.layers.LayerPlan`.
    """
    fault = gradient_fault(base)
    if fault is not None:
        log.error("no training: %s", fault.message)
    return TrainingJobs(base, fault, activation_memory)
