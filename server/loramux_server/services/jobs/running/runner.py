"""Runs the queued jobs, some at a time: train, verify, publish."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import structlog

from ....core.errors import ROWS_DAMAGED, Code, Error, internal_error
from ....core.jobs import JobState, TrainCommand
from ....core.observing.outage import Outage
from ....host.failpoints import reach
from ....store.jobs.table import LEASE_LOST
from ....store.records import JobRecord
from ....telemetry.logs import get_logger
from ...common.context import Context
from ...common.shielding import temporary_folder, to_the_end
from ..board import JobBoard
from .attempt import TrainingRun
from .daily_tokens import queue_again_when_spent
from .lock import ReadersWriterLock
from .preparation import Preparation, versions
from .trouble import Trouble

log = get_logger(__name__)

LEASE_SECONDS = 30.0
"""How long a job stays with a server that says nothing. It is renewed three times as often."""


class JobRunner:
    """Takes queued jobs, tenants in turn, and sees each to a final state, or back into the queue without an engine.

    The app starts ``run`` as a task once the engine is up and cancels it to stop: the jobs at work are queued again
    then. Call ``recover`` once before, when nothing runs yet.
    """

    def __init__(
        self,
        context: Context,
        board: JobBoard,
        *,
        max_jobs: int = 1,
        retry_seconds: float = 1.0,
        checkpoint_seconds: float = 30.0,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._context = context
        self._store = context.store
        self.board = board
        self._max_jobs = max_jobs
        self._attempts = ReadersWriterLock()
        self._outage = Outage()
        self._away_until = 0.0  # by the event loop's clock: the engine is given time to come back
        self._preparation = Preparation(context, board, checkpoint_seconds)
        self._retry_seconds = retry_seconds
        self._lease_seconds = lease_seconds
        self._troubles: dict[str, Trouble] = {}
        self._runs: dict[str, TrainingRun] = {}

    async def recover(self) -> int:
        """Queue again what ran when the server died; gives how many jobs that were."""
        await asyncio.to_thread(self._store.sweep_job_folders)
        found = await asyncio.to_thread(self._store.jobs.requeue_interrupted, self._store.state.id)
        for job in found:
            log.info("interrupted job queued again", job_id=job.id, tenant=job.request.tenant, adapter=job.request.name)
        return len(found)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._max_jobs):
                group.create_task(self._take_jobs(), name=f"jobs {number}")

    async def _take_jobs(self) -> None:
        while True:
            try:
                await self._turn()
            except Error as error:
                # The store failed, not a job: nothing can be noted now, but there may be a later.
                self._store_failed("job store unavailable, no job is started", error)
                await asyncio.sleep(self._retry_seconds)

    async def _turn(self) -> None:
        await asyncio.sleep(self._away_until - asyncio.get_running_loop().time())
        self.board.queued.clear()
        job = await self.board.claim(self._lease_seconds)
        self._store_answers()
        if job is None:
            # Servers that share the database may have left something: looked for now and then.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease_seconds):
                    await self.board.queued.wait()
            await asyncio.to_thread(self._store.jobs.requeue_interrupted, "")
            return
        self.board.queued.set()  # there may be more, and others who look for it
        with structlog.contextvars.bound_contextvars(job_id=job.id):
            await self._attempt(job)

    async def _attempt(self, job: JobRecord) -> None:
        """Run a job to a final state, or back into the queue when the engine was lost."""
        work = asyncio.create_task(self._work(job), name=f"job {job.id}")
        lease = asyncio.create_task(self._keep(job, work), name=f"lease of {job.id}")
        day = asyncio.create_task(queue_again_when_spent(self._context, self.board, job), name=f"day of {job.id}")
        self.board.running(job.id, work.cancel)
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            # The server stops. What is being published is published; anything else is taken up again next time.
            work.cancel()
            await asyncio.wait({work})
            with suppress(Error):  # the store is away: the next start queues it
                await self._move(job, JobState.QUEUED, message="the server is stopping; queued again")
            raise
        finally:
            lease.cancel()
            day.cancel()
            run = self._runs.pop(job.id, None)
            self.board.ended(job.id)
        if work.cancelled():
            return  # cancelled or paused by request, or lost to another server, and its row says so
        error = work.exception()
        if error is None:
            self._troubles.pop(job.id, None)
            return
        await self._settle(job, error, begun=run is not None and run.begun)

    async def _keep(self, job: JobRecord, work: asyncio.Task[None]) -> None:
        """Renew the lease of a job at work; stop the work once the job is not ours any more."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await asyncio.to_thread(self._store.jobs.renew, job.id, job.fence, self._lease_seconds)
                self._store_answers()
            except Error as error:
                if error.reason == LEASE_LOST:
                    log.warning("lease lost to another server, job stopped here")
                    work.cancel()
                    return
                self._store_failed("lease of a job not renewed", error)

    async def _settle(self, job: JobRecord, error: BaseException, begun: bool) -> None:
        """Decide what a failed attempt means for the job; ``begun``: the engine was at work on it."""
        if not isinstance(error, Error):
            id, internal = internal_error()
            log.error("job failed by a defect", error_id=id, exc_info=error)
            error = internal
        now = await asyncio.to_thread(self._store.jobs.get, job.id)
        state = now.state
        if state.final or state is JobState.PAUSED or (isinstance(error, Error) and error.reason == LEASE_LOST):
            return  # stopped by request while the attempt failed by itself
        if error.code is Code.UNAVAILABLE:
            trouble = self._troubles.setdefault(job.id, Trouble())
            if trouble.again(now.step, begun):
                delay = trouble.delay(self._retry_seconds)
                self._away_until = asyncio.get_running_loop().time() + delay
                log.warning("engine away, jobs wait", retry_in_seconds=delay)
                await self._insist(job, JobState.QUEUED, message=f"{error.message}; queued again")
                return
            words = f"the engine died {trouble.deaths} times at the work on this job, which got no further in between"
            error = Error(error.code, f"{words}; it may be too large for this machine", reason="ENGINE_LOST")
        self._troubles.pop(job.id, None)
        await self._insist(job, JobState.FAILED, error=error)

    async def _insist(self, job: JobRecord, state: JobState, *, message: str = "", error: Error | None = None) -> None:
        """Move a job as soon as the store can take it, however long its disk is full or its database away."""
        while True:
            try:
                await self._move(job, state, message=message, error=error)
                self._store_answers()
                return
            except Error as failure:
                self._store_failed("state of a job not stored yet", failure, state=state.value)
                await asyncio.sleep(self._retry_seconds)

    def _store_failed(self, what: str, error: Error, **about: str) -> None:
        """Tell it, unless a failure of the store, of whatever job, was told a moment ago."""
        if self._outage.failed():
            log.error(what, **about, error=error.message, times=self._outage.failures)

    def _store_answers(self) -> None:
        if (seconds := self._outage.over()) is not None:
            log.warning("job store available again", after_seconds=round(seconds, 1))

    async def _move(self, job: JobRecord, state: JobState, *, message: str = "", error: Error | None = None) -> None:
        """Move a job, unless a request to stop it came first, or another server took it."""
        try:
            await self.board.move(job.id, state, message=message, error=error, fence=job.fence)
        except Error as refused:
            if refused.reason not in (Code.FAILED_PRECONDITION.name, LEASE_LOST):
                raise

    async def _work(self, job: JobRecord) -> None:
        trouble = self._troubles.get(job.id)
        async with (
            self._attempts.hold(exclusive=trouble is not None and trouble.suspect),
            temporary_folder(self._store, "job") as folder,
        ):
            command, run = await self._train(job, folder / "adapter")
            words = "checking and publishing the adapter"
            await self.board.move(job.id, JobState.PUBLISHING, message=words, fence=job.fence)
            # A commit cannot be taken back.
            await to_the_end(run.publish(command))

    async def _train(self, job: JobRecord, output: Path) -> tuple[TrainCommand, TrainingRun]:
        """Train and evaluate, the rows made anew where the engine finds the file of these damaged."""
        lost: Error | None = None
        while True:
            command, rows = await self._preparation.command(job, output, lost)
            self._runs[job.id] = run = TrainingRun(self._context, self.board, job, rows)
            async with self._context.stacks.held(versions(command)):
                try:
                    await run.train(command)
                except Error as error:
                    if error.reason != ROWS_DAMAGED or lost is not None:
                        raise
                    lost = error
                    continue
                reach("job.trained")
                await run.question(command)
                reach("job.evaluated")
                return command, run
