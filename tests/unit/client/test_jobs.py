"""Following a job: events, lost connections, the end."""

from __future__ import annotations

import grpc
import pytest

import loramux
from loramux import AsyncClient, Client
from loramux._wire import watch

from .fake import FAILED, RUNNING, SUCCEEDED, Fake, moved, step, version


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.random, "uniform", lambda a, b: 0.01)


def succeed(fake: Fake) -> None:
    fake.job.state = SUCCEEDED
    fake.job.adapter.CopyFrom(version())


def test_a_failed_job_that_was_resumed_is_followed_to_its_end(fake: Fake, client: Client) -> None:
    """The end of a job is the last event's state: one that failed before may have gone on."""
    resumed = [moved(1, RUNNING), moved(2, FAILED), moved(3, RUNNING), moved(4, SUCCEEDED)]
    fake.watches = [resumed[:2], list(resumed)]
    job = client.jobs.get("job-1")
    assert [e.sequence for e in job.events()] == [1, 2]
    fake.job.state = FAILED
    assert job.refresh().state == "failed"
    assert job.resume().state == "queued"
    succeed(fake)
    assert job.wait().ref == "acme@2"


STORY = [moved(1, RUNNING), step(2, 1), step(3, 2), step(4, 3), moved(5, SUCCEEDED)]


@pytest.mark.parametrize(
    "watches",
    [
        [STORY],
        # Lost after two events; the second call repeats one of them.
        [[*STORY[:2], grpc.StatusCode.UNAVAILABLE], STORY[1:]],
        # The server ends the stream without an end of the job, dies twice, comes back.
        [STORY[:1], [grpc.StatusCode.UNAVAILABLE], [grpc.StatusCode.UNAVAILABLE], STORY[1:]],
    ],
)
def test_each_event_comes_once_and_in_order(fake: Fake, client: Client, watches: list[list[object]]) -> None:
    fake.watches = [list(w) for w in watches]  # type: ignore[arg-type]
    events = list(client.jobs.get("job-1").events())
    assert [e.sequence for e in events] == [1, 2, 3, 4, 5]
    assert (events[1].type, events[1].metrics, events[4].state) == ("step", {"loss": 1.0}, "succeeded")
    asked = [r.after_sequence for name, r in fake.requests if name == "WatchJob"]
    assert len(asked) == len(watches)
    assert asked == sorted(asked)


async def test_the_async_watch_reconnects_too(fake: Fake) -> None:
    fake.watches = [[*STORY[:2], grpc.StatusCode.UNAVAILABLE], list(STORY[1:])]
    succeed(fake)
    async with AsyncClient(fake.address) as client:
        job = await client.jobs.get("job-1")
        assert [e.sequence async for e in job.events()] == [1, 2, 3, 4, 5]


def test_other_errors_end_the_watch(fake: Fake, client: Client) -> None:
    fake.watches = [[grpc.StatusCode.NOT_FOUND]]
    with pytest.raises(loramux.NotFound):
        list(client.jobs.get("job-1").events())
    assert fake.count("WatchJob") == 1


def test_a_server_that_stays_away_ends_the_watch(fake: Fake, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE", -1.0)
    fake.watches = [[grpc.StatusCode.UNAVAILABLE]]
    with pytest.raises(loramux.Unavailable):
        list(client.jobs.get("job-1").events())


def test_leaving_the_events_cancels_the_call(fake: Fake, client: Client) -> None:
    fake.watches = [list(STORY)]
    events = client.jobs.get("job-1").events()
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert fake.cancelled.wait(10)


def test_wait_gives_what_was_published(fake: Fake, client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    fake.watches = [list(STORY)]
    job = client.jobs.get("job-1")
    succeed(fake)
    assert job.wait(progress=True).ref == "acme@2"
    assert job.state == "succeeded"
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "acme: running"
    assert lines[-2:] == ["acme: step 3/3  loss 0.3333", "acme: succeeded"]


def test_wait_says_why_a_job_failed(fake: Fake, client: Client) -> None:
    fake.watches = [[moved(1, FAILED, "loss is nan")]]
    job = client.jobs.get("job-1")
    fake.job.state = FAILED
    fake.job.error.message, fake.job.error.reason = "the loss is NaN at step 3", "LOSS_NOT_FINITE"
    with pytest.raises(loramux.JobFailed, match="the loss is NaN at step 3") as caught:
        job.wait()
    assert (caught.value.reason, caught.value.state, caught.value.job_id) == ("LOSS_NOT_FINITE", "failed", "job-1")


def test_wait_with_a_timeout(fake: Fake, client: Client) -> None:
    fake.watches = [[moved(1, RUNNING)] for _ in range(1000)]
    with pytest.raises(loramux.DeadlineExceeded, match="goes on"):
        client.jobs.get("job-1").wait(timeout=0.2)


def test_steering(fake: Fake, client: Client) -> None:
    job = client.jobs.get("job-1")
    assert (job.pause().state, job.resume().state, job.state) == ("paused", "queued", "queued")
    assert job.cancel().state == "cancelled"
    asked = len(fake.requests)
    assert (job.state, job.metrics) == ("cancelled", {})
    assert len(fake.requests) == asked
    assert [j.state for j in client.jobs.list(states=["cancelled"], name="acme")] == ["cancelled"]
