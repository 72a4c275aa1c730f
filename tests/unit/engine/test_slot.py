"""The training slot: its share of the time by a scripted clock, jobs in turn, errors that end their own job."""

from __future__ import annotations

import pytest
import torch

from loramux_server.core.errors import Code, Error
from loramux_server.engine.slot import TrainingSlot

SLICE = 0.25


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Task:
    """Takes as long as it is allowed to, or ``whole`` seconds when there is no limit."""

    def __init__(
        self, clock: Clock, pieces: int = 10**9, error: BaseException | None = None, whole: float = 2.0
    ) -> None:
        self.clock, self.pieces, self.error, self.whole = clock, pieces, error, whole
        self.asked: list[float | None] = []
        self.closed = 0
        self.nbytes = 7

    def advance(self, seconds: float | None) -> bool:
        assert not self.closed
        self.asked.append(seconds)
        self.clock.now += self.whole if seconds is None else seconds
        if len(self.asked) >= self.pieces:
            if self.error is not None:
                raise self.error
            return False
        return True

    def close(self) -> None:
        self.closed += 1


class Bench:
    """A slot, its clock, and what it said of jobs that ended."""

    def __init__(self, share: float = 0.3) -> None:
        self.clock = Clock()
        self.done: list[tuple[str, Error | None]] = []
        self.slot = TrainingSlot(share, SLICE, lambda job, error: self.done.append((job, error)), self.clock)

    def add(self, job: str, **settings: object) -> Task:
        task = Task(self.clock, **settings)  # type: ignore[arg-type]
        self.slot.add(job, task)
        return task

    def serve(self, seconds: float = 0.02) -> None:
        """A serve step, then training's turn."""
        self.clock.now += seconds
        self.slot.turn(serving=True)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("step", [0.003, 0.04, 0.4])
def test_the_share_is_kept_while_serving(share: float, step: float) -> None:
    """Exact over time, up to one slice, and never more than one slice between two serve steps."""
    bench = Bench(share)
    bench.add("job")
    started = bench.clock.now
    while bench.clock.now - started < 60 * SLICE:
        before = bench.slot.seconds
        bench.serve(step)
        assert bench.slot.seconds - before <= SLICE + 1e-9
    total = bench.clock.now - started
    if step * share / (1 - share) <= SLICE:
        assert bench.slot.seconds == pytest.approx(share * total, abs=SLICE)
    assert bench.slot.seconds <= share * total + SLICE


def test_nothing_to_serve_is_full_speed() -> None:
    bench = Bench(0.1)
    task = bench.add("job", pieces=5)
    for _ in range(5):
        bench.slot.turn(serving=False)
    assert task.asked == [None] * 5
    assert bench.done == [("job", None)]
    assert (bench.slot.steps, bench.slot.seconds) == (5, 10.0)


def test_time_taken_while_idle_is_not_owed() -> None:
    bench = Bench(0.5)
    bench.add("job")
    bench.slot.turn(serving=False)
    bench.serve()
    assert bench.slot.steps == 2


def test_time_without_a_job_saves_up_one_slice_at_most() -> None:
    bench = Bench(0.5)
    for _ in range(500):
        bench.serve()
    bench.add("job")
    started = bench.clock.now
    for _ in range(100):
        bench.serve()
    total = bench.clock.now - started
    assert bench.slot.seconds <= 0.5 * total + 2 * SLICE


def test_no_share_waits_for_idle_time() -> None:
    bench = Bench(0.0)
    bench.add("job")
    for _ in range(100):
        bench.serve()
    assert bench.slot.steps == 0
    bench.slot.turn(serving=False)
    assert bench.slot.steps == 1


def test_the_whole_share_trains_after_every_step() -> None:
    bench = Bench(1.0)
    bench.add("job")
    bench.slot.turn(serving=True)  # no time has passed at all
    for _ in range(20):
        bench.serve(1e-6)
    assert bench.slot.steps >= 20


def test_jobs_take_turns() -> None:
    bench = Bench()
    tasks = [bench.add(f"j{i}", pieces=3) for i in range(3)]
    counts = []
    for _ in range(9):
        bench.slot.turn(serving=False)
        counts.append([len(t.asked) for t in tasks])
    assert all(max(c) - min(c) <= 1 for c in counts)
    assert [job for job, _ in bench.done] == ["j0", "j1", "j2"]
    assert not bench.slot.busy


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Error(Code.FAILED_PRECONDITION, "loss"), Code.FAILED_PRECONDITION),
        (torch.OutOfMemoryError("big"), Code.RESOURCE_EXHAUSTED),
        (RuntimeError("shapes"), Code.INTERNAL),
        (OSError("disk"), Code.INTERNAL),
    ],
)
def test_an_error_ends_its_job_alone(error: Exception, code: Code) -> None:
    bench = Bench()
    bad, good = bench.add("bad", pieces=1, error=error), bench.add("good", pieces=3)
    for _ in range(4):
        bench.slot.turn(serving=False)
    ended = dict(bench.done)
    assert ended["good"] is None
    assert ended["bad"] is not None
    assert ended["bad"].code is code
    assert (bad.closed, good.closed, len(good.asked)) == (1, 1, 3)
    assert (bench.slot.jobs, bench.slot.nbytes) == ((), 0)


def test_a_lost_device_is_not_a_jobs_error() -> None:
    bench = Bench()
    bench.add("job", pieces=1, error=torch.AcceleratorError("CUDA error: an illegal memory access", 700))
    with pytest.raises(torch.AcceleratorError):
        bench.slot.turn(serving=False)


def test_a_removed_job_is_closed_without_a_word() -> None:
    bench = Bench()
    task, other = bench.add("job"), bench.add("other")
    assert (bench.slot.jobs, bench.slot.nbytes) == (("job", "other"), 14)
    bench.slot.turn(serving=False)
    bench.slot.remove("job")
    bench.slot.remove("job")
    bench.slot.turn(serving=False)
    assert (task.closed, len(task.asked), len(other.asked)) == (1, 1, 1)
    assert (bench.done, bench.slot.jobs) == ([], ("other",))
