"""A cooperative scheduler of training jobs: jobs are generators, and take turns on the resident base."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from ..core.background import Ended, Report
from ..core.errors import Code, Error, internal_error
from ..core.jobs import TrainCommand
from ..core.observing.timeline import TIMELINE
from ..model.out_of_memory import device_lost, out_of_memory, release_cached
from ..model.resident import ResidentBase
from ..store.blobs.reader import BlobReader
from ..telemetry.logs import get_logger
from .backprop.micro_batch_size import IDLE_SECONDS, MicroBatchSizer
from .checkpoints.reporter import ReportedProgress
from .gradient_check import gradient_fault
from .gradients import Batch, NeedsGradients, accumulate_gradients, select_rows
from .trainer import Training, train
from .work import Held, Interruptible, Pause
from .work_queue import make_queue

log = get_logger(__name__)

OUT_OF_MEMORY: Final = "OUT_OF_MEMORY"


@dataclass(slots=True)
class Job:
    """A job at work. It runs alone, or waits for the gradients of ``batch``."""

    command: TrainCommand
    training: Training
    report: ReportedProgress
    sizer: MicroBatchSizer  # of the micro-batches that it runs alone
    batch: Batch | None = None
    nbytes: int = 0
    max_tokens: int | None = None  # of a micro-batch, once one failed: the job shares none from then on

    @property
    def id(self) -> str:
        return self.command.job_id


class JobScheduler:
    """Runs several jobs on one thread, a work item at a time.

    A task is either something that one job does alone (reading adapters, evaluating, writing), or one micro-batch of
    rows of all jobs that wait for gradients. Jobs join between two tasks. When a job is removed in the middle of a
    micro-batch that it shares, the micro-batch is dropped and the batches of the others begin anew. A job that is
    suspended keeps nothing but its command: it starts again as after a crash, and goes on from its checkpoint.
    """

    def __init__(
        self,
        base: ResidentBase,
        jobs_dir: Path,
        blobs: BlobReader,
        fault: Error | None = None,
        activation_memory: int | None = None,
    ) -> None:
        """``jobs_dir`` has the jobs' folders with their rows, ``blobs`` the donors; ``fault``: why no job can be taken.

        ``activation_memory``: see :class:`~.layerwise.ActivationPolicy`.
        """
        self._base, self._jobs_dir, self._blobs = base, jobs_dir, blobs
        self._fault, self._activation_memory = fault, activation_memory
        self._queue = make_queue(base.device)
        self._sizer = MicroBatchSizer(1, lambda: self.device_seconds)  # of shared micro-batches
        self._jobs: dict[str, Job] = {}  # the next one's turn first
        self._suspended: dict[str, tuple[TrainCommand, Report]] = {}
        self._micro_batch_next = False
        self._task: Interruptible[list[Ended]] | None = None  # under way
        self._settle = False  # whether the task reads results next
        self._participants: list[Job] = []  # of the task
        self._tokens = 0  # of the last shared micro-batch
        self._doing = ""  # what kind of task

    @property
    def jobs(self) -> tuple[str, ...]:
        return (*self._jobs, *self._suspended)

    @property
    def suspended(self) -> tuple[str, ...]:
        return tuple(self._suspended)

    @property
    def device_seconds(self) -> float | None:
        return self._queue.device_seconds

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self._jobs.values())

    def add(self, command: TrainCommand, report: Report) -> None:
        """Start a job. Raises FAILED_PRECONDITION where gradients do not pass through the base."""
        if self._fault is not None:
            raise self._fault
        self._start(command, report)

    def _start(self, command: TrainCommand, report: Report) -> None:
        progress = ReportedProgress(report, command.stored)
        # Alone a job runs forward, and through about half of the layers at least.
        sizer = MicroBatchSizer(len(self._base.layers) / 2, lambda: self.device_seconds)
        training = train(self._base, command, self._jobs_dir, self._blobs, progress, sizer, self._activation_memory)
        self._jobs[command.job_id] = Job(command, training, progress, sizer)

    def remove(self, job_id: str) -> None:
        """Stop a job, if it is here: it leaves a checkpoint and reports nothing."""
        self._suspended.pop(job_id, None)
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        with self._queue.entered():
            if job in self._participants:
                self._drop_task()
            job.training.close()

    def drop_activations(self) -> bool:
        if self._task is None or any(job.batch is None for job in self._participants):
            return False  # a job that runs alone keeps the activations of one layer only
        self._drop_task()
        self._sizer.limit(max(1, self._tokens // 2))
        return True

    def suspend(self) -> str | None:
        able = [job for job in self._jobs.values() if job.command.checkpoint_dir]
        job = max(able, key=lambda job: job.nbytes, default=None)
        if job is None:
            return None
        self.remove(job.id)
        job.report.message("suspended, because requests need its memory; it goes on from here when they do not")
        self._suspended[job.id] = replace(job.command, stored=job.report.stored), job.report.inner
        return job.id

    def resume(self) -> None:
        self._sizer.lift()
        suspended, self._suspended = self._suspended, {}
        for command, report in suspended.values():
            self._start(command, report)

    def advance(self, seconds: float | None) -> list[Ended]:
        """Run work items for about ``seconds``, at least one; None: for IDLE_SECONDS. Returns the jobs that ended.

        On a device as many are queued as may be; beside requests nothing here waits until they are done.
        """
        started = time.monotonic()
        most = IDLE_SECONDS if seconds is None else seconds
        with self._queue.entered():
            try:
                while True:
                    settled = self._settle or self._task is None
                    if seconds is None:
                        self._queue.wait(settled)
                    elif not self._queue.ready(settled):
                        return []
                    before = time.monotonic()
                    ended = self._queue.run(partial(self._run_work_item, serving=seconds is not None))
                    now = time.monotonic()
                    # The next work item takes about as long as this one.
                    if ended or not self._jobs or 2 * now - before - started > most:
                        return ended
            finally:
                self._base.release()

    def _drop_task(self) -> None:
        """End the task under way, if there is one: batches that it computed gradients for begin anew."""
        if self._task is None:
            return
        self._task.close()
        self._task = None
        for job in self._participants:
            if job.batch is not None:
                job.batch.restart()

    def _run_work_item(self, *, serving: bool) -> list[Ended]:
        if self._task is None:
            self._task = self._next_task(serving)
        started = time.time_ns()
        self._settle = False
        try:
            self._settle = next(self._task).settled
        except StopIteration as done:
            self._task = None
            ended: list[Ended] = done.value
            return ended
        except BaseException:
            self._task = None
            raise
        finally:
            TIMELINE.ended(self._doing, started, jobs=[job.id for job in self._participants])
        return []

    def _next_task(self, serving: bool) -> Interruptible[list[Ended]]:
        """Tasks of one job and shared micro-batches take turns, where both wait."""
        waiting = any(job.batch is not None for job in self._jobs.values())
        alone = next((job for job in self._jobs.values() if job.batch is None), None)
        if alone is None or (self._micro_batch_next and waiting):
            self._micro_batch_next, self._doing = False, "micro-batch"
            return self._shared_micro_batch(serving)
        alone.sizer.serving = serving
        self._jobs[alone.id] = self._jobs.pop(alone.id)  # its next turn is after the others'
        self._participants, self._doing = [alone], "task of one job"
        return self._run_alone(alone)

    def _run_alone(self, job: Job) -> Interruptible[list[Ended]]:
        ended = yield from self._continue(job)
        self._micro_batch_next = bool(ended) or job.batch is None
        return ended

    def _shared_micro_batch(self, serving: bool) -> Interruptible[list[Ended]]:
        """Gradients for the waiting job whose turn it is, and for the jobs after it whose rows still fit.

        A job whose batch is not done keeps its turn.
        """
        sharing = self._sharing()
        if not sharing:
            return []
        # The backward of a layer takes two thirds of the time that its forward and backward take.
        first = sharing[0][1].first_layer
        self._sizer.serving, self._sizer.work_items = serving, 1.5 * (len(self._base.layers) - first)
        limits = [job.max_tokens for job, _ in sharing if job.max_tokens is not None]
        most = min([self._sizer.max_tokens, *limits])
        selection, tokens = select_rows([batch for _, batch in sharing], min(self._sizer.tokens, most), most)
        selected = {id(batch) for batch, _ in selection}
        sharing = [(job, batch) for job, batch in sharing if id(batch) in selected]
        self._tokens = tokens
        self._participants = [job for job, _ in sharing]
        failure: Exception
        try:
            yield from self._sizer.timed(tokens, accumulate_gradients(self._base, selection))
        except Exception as error:  # a defect of one job must not stop serving
            if device_lost(error):
                raise
            failure = error.with_traceback(None)
        else:
            for job, batch in sharing:
                if batch.done:
                    job.batch = None
            return []
        # Outside of the handler, so that the failed micro-batch and its activations are freed.
        ended: list[Ended] = []
        for job, batch in sharing:
            ended += yield from self._retry(job, batch, failure, tokens, alone=len(sharing) == 1)
        return ended

    def _sharing(self) -> list[tuple[Job, Batch]]:
        """The waiting job whose turn it is, and those that may share its micro-batch, with their batches."""
        waiting = [(job, job.batch) for job in self._jobs.values() if job.batch is not None]
        if not waiting or waiting[0][0].max_tokens is not None:
            return waiting[:1]
        first = waiting[0][1].first_layer
        return [(job, batch) for job, batch in waiting if job.max_tokens is None and batch.first_layer == first]

    def _retry(
        self, job: Job, batch: Batch, error: Exception, tokens: int, *, alone: bool
    ) -> Interruptible[list[Ended]]:
        """After a failed micro-batch: do the batch once more, alone and in halves of the size, or fail the job."""
        batch.restart()
        release_cached()
        memory = out_of_memory(error)
        if job.max_tokens is None and (memory or not alone):
            job.max_tokens = max(1, tokens // 2)
            job.sizer.limit(job.max_tokens)
            if memory:
                job.report.message("out of memory in an optimizer step: it is done again in smaller micro-batches")
            return []
        return (yield from self._continue(job, error))

    def _continue(self, job: Job, error: Exception | None = None) -> Interruptible[list[Ended]]:
        """Run the job's next task, or raise ``error`` in it. Returns the job if it ended."""
        job.batch = None
        while True:
            try:
                signal = next(job.training) if error is None else job.training.throw(error)
            except StopIteration:
                reason = None
            except Exception as failure:  # a defect of one job must not stop serving or the other jobs
                if device_lost(failure):
                    raise
                reason = _reason(job.id, failure)
            else:
                error = None
                match signal:
                    case Pause():
                        yield signal
                        continue
                    case NeedsGradients(batch):
                        job.batch, job.nbytes = batch, batch.run.nbytes
                    case Held(nbytes):
                        job.nbytes = nbytes
                return []
            del self._jobs[job.id]
            job.training.close()
            return [(job.id, reason)]


def _reason(job: str, failure: Exception) -> Error:
    """The error that a failed job reports."""
    if isinstance(failure, Error):
        return failure
    if out_of_memory(failure):
        return Error(
            Code.RESOURCE_EXHAUSTED,
            "out of memory, also with smaller micro-batches; train on shorter rows, on fewer"
            " layers or with a lower rank",
            reason=OUT_OF_MEMORY,
        )
    id, error = internal_error()
    log.error("job failed by a defect", job_id=job, error_id=id, exc_info=failure)
    return error


def make_job_scheduler(
    base: ResidentBase, blobs: BlobReader, activation_memory: int | None, *, jobs_dir: Path
) -> JobScheduler:
    """The training side of an engine on ``base``. If gradients do not pass through it, every job is refused.

    For the others see :class:`JobScheduler`.
    """
    fault = gradient_fault(base)
    if fault is not None:
        log.error("training is not possible", error=fault.message)
    return JobScheduler(base, jobs_dir, blobs, fault, activation_memory)
