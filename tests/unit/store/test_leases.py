"""A job belongs to one runner at a time: claims, leases that end, and fences that keep the former owner out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState, TrainEvent, TrainEventType
from loramux_server.store.jobs.table import LEASE_LOST
from loramux_server.store.records import AdapterMeta, JobRecord
from loramux_server.store.store import Store

NEW = JobRequest(name="acme", dataset_id="ds-1", tenant="t")
META = AdapterMeta(rank=4, alpha=8.0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store.open(tmp_path / "leased", now=clock)
    yield opened
    opened.close()


def claim(store: Store, runner: str = "a") -> JobRecord:
    job = store.jobs.claim(runner, 30.0)
    assert job is not None
    return job


def test_runners_at_once_never_get_the_same_job(store: Store) -> None:
    made = {store.jobs.create(NEW).id for _ in range(12)}
    found: list[str] = []
    start = threading.Barrier(4)

    def work(name: str) -> None:
        start.wait()
        while (job := store.jobs.claim(name, 30.0)) is not None:
            found.append(job.id)

    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert set(found) == made


def test_a_lease_ends_unless_it_is_renewed(store: Store, clock: Clock) -> None:
    store.jobs.create(NEW)
    job = claim(store)
    assert job.state is JobState.RUNNING
    clock.now += 20
    store.jobs.renew(job.id, job.fence, 30.0)
    clock.now += 20
    assert store.jobs.requeue_interrupted("b") == ()
    clock.now += 11
    assert [j.id for j in store.jobs.requeue_interrupted("b")] == [job.id]
    assert claim(store, "b").fence > job.fence


def test_a_server_takes_its_own_jobs_back_at_once(store: Store) -> None:
    store.jobs.create(NEW)
    store.jobs.create(NEW)
    mine, other = claim(store, "a"), claim(store, "b")
    assert [j.id for j in store.jobs.requeue_interrupted("a")] == [mine.id]
    assert store.jobs.get(other.id).state is JobState.RUNNING


@pytest.mark.parametrize("taken_by", ["another", "pause"])
def test_whoever_lost_a_job_writes_nothing_more(
    store: Store, clock: Clock, folder: Callable[[str], Path], taken_by: str
) -> None:
    store.jobs.create(NEW)
    lost = claim(store)
    clock.now += 31
    if taken_by == "another":
        store.jobs.requeue_interrupted("b")
        now = claim(store, "b")
        for state in (JobState.EVALUATING, JobState.PUBLISHING):
            now = store.jobs.move(lost.id, state, fence=now.fence)
    else:
        now = store.jobs.move(lost.id, JobState.PAUSED)
    before = store.jobs.events(lost.id)
    for write in (
        lambda: store.jobs.renew(lost.id, lost.fence, 30.0),
        lambda: store.jobs.move(lost.id, JobState.FAILED, fence=lost.fence),
        lambda: store.jobs.move(lost.id, JobState.QUEUED, fence=lost.fence),
        lambda: store.publish_job_result(lost.id, folder("late"), META, fence=lost.fence),
    ):
        with pytest.raises(Error) as caught:
            write()
        assert (caught.value.code, caught.value.reason) == (Code.ABORTED, LEASE_LOST)
    store.jobs.append_event(lost.id, TrainEvent(TrainEventType.STEP, step=99, metrics={"loss": 0.0}), lost.fence)
    store.jobs.append_event(lost.id, TrainEvent(TrainEventType.MESSAGE, "late"), lost.fence)
    assert store.jobs.events(lost.id) == before
    assert store.jobs.get(lost.id) == now
    assert store.adapters.list("t")[0] == ()


def test_the_directory_keeps_its_name(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        opened = Store.open(tmp_path / "named")
        names.append(opened.state.id)
        opened.close()
    assert names[0] == names[1] != ""
