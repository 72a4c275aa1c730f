"""The training share: its part of the time by a scripted clock, and the jobs that it says have ended."""

from __future__ import annotations

import pytest

from loramux_server.core.background import Ended, Report
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import TrainCommand, TrainSpec
from loramux_server.engine.training_share import TrainingShare
from tests.rows import NO_ROWS

SLICE = 0.25


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Jobs whose pieces take as long as they may, or ``whole`` seconds when there is no limit."""

    device_seconds: float | None = None

    def __init__(self, clock: Clock, whole: float = 2.0) -> None:
        self.clock, self.whole = clock, whole
        self.left: dict[str, int] = {}
        self.suspended: tuple[str, ...] = ()
        self.asked: list[float | None] = []

    @property
    def jobs(self) -> tuple[str, ...]:
        return tuple(self.left)

    @property
    def nbytes(self) -> int:
        return 7 * len(self.left)

    def add(self, command: TrainCommand, report: Report) -> None:
        if command.output:
            raise Error(Code.FAILED_PRECONDITION, "no")
        self.left[command.job_id] = command.checkpoint_every

    def remove(self, job_id: str) -> None:
        self.left.pop(job_id, None)

    def advance(self, seconds: float | None) -> list[Ended]:
        self.asked.append(seconds)
        self.clock.now += self.whole if seconds is None else seconds
        self.left = {job: pieces - 1 for job, pieces in self.left.items()}
        ended = [job for job, pieces in self.left.items() if not pieces]
        for job in ended:
            del self.left[job]
        return [(job, Error(Code.INTERNAL, "a defect") if job == "bad" else None) for job in ended]


class Bench:
    """A training share, its clock, and the jobs that it said have ended."""

    def __init__(self, share: float = 0.3) -> None:
        self.clock = Clock()
        self.done: list[tuple[str, Error | None]] = []
        self.work = Work(self.clock)
        self.share = TrainingShare(
            self.work, share, SLICE, lambda job, error: self.done.append((job, error)), self.clock
        )

    def add(self, job: str, pieces: int = 10**9) -> Work:
        self.share.add(TrainCommand(job, TrainSpec(), NO_ROWS, checkpoint_every=pieces), lambda event: None)
        return self.work

    def serve(self, seconds: float = 0.02) -> None:
        """A serve step, then training's turn."""
        self.clock.now += seconds
        self.share.turn(serving=True)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("step", [0.003, 0.04, 0.4])
def test_the_share_is_kept_while_serving(share: float, step: float) -> None:
    """Exact over time, up to one slice, and never more than one slice between two serve steps."""
    bench = Bench(share)
    bench.add("job")
    started = bench.clock.now
    while bench.clock.now - started < 60 * SLICE:
        before = bench.share.seconds
        bench.serve(step)
        assert bench.share.seconds - before <= SLICE + 1e-9
    total = bench.clock.now - started
    if step * share / (1 - share) <= SLICE:
        assert bench.share.seconds == pytest.approx(share * total, abs=SLICE)
    assert bench.share.seconds <= share * total + SLICE


def test_nothing_to_serve_is_full_speed() -> None:
    bench = Bench(0.1)
    task = bench.add("job", pieces=5)
    for _ in range(5):
        bench.share.turn(serving=False)
    assert task.asked == [None] * 5
    assert bench.done == [("job", None)]
    assert (bench.share.stretches, bench.share.seconds) == (5, 10.0)


def test_time_taken_while_idle_is_not_owed() -> None:
    bench = Bench(0.5)
    bench.add("job")
    bench.share.turn(serving=False)
    bench.serve()
    assert bench.share.stretches == 2


def test_time_without_a_job_saves_up_one_slice_at_most() -> None:
    bench = Bench(0.5)
    for _ in range(500):
        bench.serve()
    bench.add("job")
    started = bench.clock.now
    for _ in range(100):
        bench.serve()
    total = bench.clock.now - started
    assert bench.share.seconds <= 0.5 * total + 2 * SLICE


def test_no_share_waits_for_idle_time() -> None:
    bench = Bench(0.0)
    bench.add("job")
    for _ in range(100):
        bench.serve()
    assert bench.share.stretches == 0
    bench.share.turn(serving=False)
    assert bench.share.stretches == 1


def test_the_whole_share_trains_after_every_step() -> None:
    bench = Bench(1.0)
    bench.add("job")
    bench.share.turn(serving=True)  # no time has passed at all
    for _ in range(20):
        bench.serve(1e-6)
    assert bench.share.stretches >= 20


def test_what_ends_is_told_with_its_reason() -> None:
    bench = Bench()
    bench.add("bad", pieces=1)
    bench.add("good", pieces=2)
    for _ in range(4):
        bench.share.turn(serving=False)
    (first, error), second = bench.done
    assert (first, second) == ("bad", ("good", None))
    assert error is not None
    assert error.code is Code.INTERNAL
    assert not bench.share.busy
    assert len(bench.work.asked) == 2


def test_a_removed_job_gets_no_more_time_and_no_word() -> None:
    bench = Bench()
    work = bench.add("job")
    bench.add("other")
    assert (bench.share.jobs, bench.share.nbytes) == (("job", "other"), 14)
    bench.share.turn(serving=False)
    bench.share.remove("job")
    bench.share.remove("job")
    bench.share.turn(serving=False)
    assert (bench.done, bench.share.jobs, len(work.asked)) == ([], ("other",), 2)


def test_a_refusal_is_raised() -> None:
    bench = Bench()
    with pytest.raises(Error, match="no"):
        bench.share.add(TrainCommand("job", TrainSpec(), NO_ROWS, output="x"), lambda event: None)
    assert not bench.share.busy
