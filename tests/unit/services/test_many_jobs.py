"""Several jobs at work at a time: how many, whose, and what the end of one means for the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState, TrainCommand, TrainEvent, TrainEventType
from loramux_server.services.jobs.running.lock import ReadersWriterLock
from loramux_server.services.jobs.running.runner import JobRunner
from loramux_server.services.jobs.running.trouble import MAX_ENGINE_LOSSES
from loramux_server.store.records import JobRecord
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer

from .fakes import caller
from .test_training_jobs import ROWS, Server, in_pieces, jsonl, states


class SlowEngine:
    """Jobs that run until they are let go of; knows who is at work."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.at_work: list[str] = []
        self.begun: list[str] = []
        self.changed = asyncio.Event()
        self.doors: dict[str, asyncio.Event] = {}
        self.failures: dict[str, Error] = {}
        server.backend.training = self

    async def __call__(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        id = command.job_id
        self.at_work.append(id)
        self.begun.append(id)
        self.changed.set()
        try:
            yield TrainEvent(TrainEventType.STATE, "training", JobState.RUNNING, 0, 3)
            await self.doors.setdefault(id, asyncio.Event()).wait()
            if id in self.failures:
                self.doors[id].clear()
                raise self.failures[id]
            async for event in self.server.training(command):
                yield event
        finally:
            self.at_work.remove(id)
            self.changed.set()

    async def busy_with(self, *jobs: JobRecord) -> None:
        """Wait until exactly these jobs are at work."""
        await self.until(lambda: set(self.at_work) == {job.id for job in jobs})

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not reached():
                self.changed.clear()
                await self.changed.wait()

    def let_go(self, *jobs: JobRecord) -> None:
        for job in jobs:
            self.doors.setdefault(job.id, asyncio.Event()).set()


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    made = Server.over(store, text, info)
    board = made.runner.board
    made.runner = JobRunner(made.context, board, max_jobs=3, retry_seconds=0.0001)
    return made


async def job(server: Server, name: str, tenant: str = "default") -> JobRecord:
    data = await server.service.upload_dataset(in_pieces(jsonl(ROWS)), caller(tenant))  # type: ignore[arg-type]
    return await server.service.create_job(JobRequest(name, data.id, tenant), caller(tenant))


@pytest.mark.slow
async def test_as_many_as_may_run_at_a_time(server: Server) -> None:
    engine = SlowEngine(server)
    jobs = [await job(server, f"j{i}") for i in range(5)]
    async with server.working():
        await engine.busy_with(*jobs[:3])
        late = await job(server, "late")
        engine.let_go(jobs[1])
        await engine.busy_with(jobs[0], jobs[2], jobs[3])
        engine.let_go(*jobs, late)
        for one in (*jobs, late):
            assert states(await server.finished(one))[-1] is JobState.SUCCEEDED
    taken = [(await server.service.get_job(one.id, LOCAL)).started for one in (*jobs, late)]
    assert taken == sorted(taken)  # in the order of the queue
    # Those that may begin together are then set up side by side, and come to the engine in any order.
    begun = [set(engine.begun[:3]), {engine.begun[3]}, set(engine.begun[4:])]
    assert begun == [{one.id for one in jobs[:3]}, {jobs[3].id}, {jobs[4].id, late.id}]


async def test_tenants_take_turns(server: Server) -> None:
    """One who queues many waits for those who have fewer at work, then for those served longer ago."""
    engine = SlowEngine(server)
    many = [await job(server, f"m{i}", "many") for i in range(4)]
    few = [await job(server, f"f{i}", "few") for i in range(2)]
    one = await job(server, "o", "one")
    async with server.working():
        await engine.busy_with(many[0], few[0], one)
        engine.let_go(one)
        await engine.busy_with(many[0], few[0], many[1])  # served before "few"
        engine.let_go(many[0])
        await engine.busy_with(many[1], few[0], few[1])  # longer ago
        engine.let_go(few[0])
        await engine.busy_with(many[1], few[1], many[2])


async def test_pause_cancel_and_failure_of_one_leave_the_others(server: Server) -> None:
    engine = SlowEngine(server)
    paused, cancelled, failed = jobs = [await job(server, f"j{i}") for i in range(3)]
    last = await job(server, "last")
    engine.failures[failed.id] = Error(Code.FAILED_PRECONDITION, "no number", reason="LOSS_NOT_FINITE")
    async with server.working():
        await engine.busy_with(*jobs)
        await server.service.pause_job(paused.id, LOCAL)
        await engine.busy_with(cancelled, failed, last)
        await server.service.cancel_job(cancelled.id, LOCAL)
        engine.let_go(failed)
        await engine.busy_with(last)
        await server.service.resume_job(paused.id, LOCAL)
        await engine.busy_with(last, paused)
        engine.let_go(last, paused)
        assert states(await server.finished(last))[-1] is JobState.SUCCEEDED
        assert states(await server.finished(paused))[-1] is JobState.SUCCEEDED
    assert server.store.jobs.get(cancelled.id).state is JobState.CANCELLED
    assert server.store.jobs.get(failed.id).error_code == "LOSS_NOT_FINITE"


async def test_a_server_that_stops_queues_all_of_them(server: Server) -> None:
    engine = SlowEngine(server)
    jobs = [await job(server, f"j{i}") for i in range(3)]
    async with server.working():
        await engine.busy_with(*jobs)
    assert [server.store.jobs.get(one.id).state for one in jobs] == [JobState.QUEUED] * 3


async def test_who_was_beside_a_job_that_kills_the_engine_is_spared(server: Server) -> None:
    """Before it would fail for good, each is tried alone: only the guilty one loses the engine then."""
    engine = SlowEngine(server)
    jobs = [await job(server, name) for name in ("guilty", "neighbour")]
    gone = Error(Code.UNAVAILABLE, "the engine died")
    engine.failures = {one.id: gone for one in jobs}
    together = 2 * (MAX_ENGINE_LOSSES - 1)
    async with server.working():
        for begun in range(2, together + 1, 2):
            await engine.until(lambda: len(engine.begun) == begun and len(engine.at_work) == 2)  # noqa: B023
            engine.let_go(*jobs)
        await engine.until(lambda: len(engine.begun) > together)
        assert len(engine.at_work) == 1
        engine.failures = {jobs[0].id: gone}
        engine.let_go(*jobs)
        events = await asyncio.gather(*(server.finished(one) for one in jobs))
    assert [states(found)[-1] for found in events] == [JobState.FAILED, JobState.SUCCEEDED]
    assert len(engine.begun) == 2 * MAX_ENGINE_LOSSES


async def test_a_lock_is_shared_or_held_alone() -> None:
    lock, inside = ReadersWriterLock(), []

    async def visit(name: str, *, alone: bool, leave: asyncio.Event) -> None:
        async with lock.hold(exclusive=alone):
            inside.append(name)
            await leave.wait()
            inside.remove(name)

    leave = [asyncio.Event() for _ in range(5)]
    plan = [("a", False), ("b", False), ("alone", True), ("c", False), ("given up", True)]
    visits = [
        asyncio.create_task(visit(name, alone=alone, leave=event))
        for (name, alone), event in zip(plan, leave, strict=True)
    ]

    async def settled() -> list[str]:
        for _ in range(10):
            await asyncio.sleep(0)
        return sorted(inside)

    assert await settled() == ["a", "b"]
    leave[0].set()
    assert await settled() == ["b"]
    leave[1].set()
    assert await settled() == ["alone"]
    leave[2].set()
    assert await settled() == ["given up"]
    visits[4].cancel()
    inside.clear()
    assert await settled() == ["c"]
    leave[3].set()
    await asyncio.wait(visits)
    assert await settled() == []
