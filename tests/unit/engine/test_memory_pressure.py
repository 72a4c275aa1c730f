"""What is given up when memory runs out and how it comes back: a scripted allocator, a fake clock, a real scheduler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from loramux_server.core.background import Ended, Report
from loramux_server.core.jobs import TrainCommand
from loramux_server.engine.memory_pressure import CALM, LONGEST, MemoryPressure
from loramux_server.engine.scheduling.sequence import State
from loramux_server.engine.training_share import TrainingShare

from .simulation import make_scheduler, sequence

TOKENS = 64


def on_device() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def on_host() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def in_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


class Rig:
    """A step of n tokens takes n of ``memory``, and training takes what it holds. It is the background, too."""

    device_seconds: float | None = None

    def __init__(self, memory: int, fail: Callable[[], None] = on_device) -> None:
        self.memory, self.fail, self.now = memory, fail, 1000.0
        self.activations = 0
        self.held: dict[str, int] = {}
        self.suspended: tuple[str, ...] = ()
        self.sizes: list[int] = []
        self.scheduler = make_scheduler(pages=512, max_batch_tokens=TOKENS, max_running=16)
        self.share = TrainingShare(self, 0.3, 0.1, lambda job, error: None, lambda: self.now)
        self.pressure = MemoryPressure(self.scheduler, self.share, lambda: self.now)

    # -- the background

    @property
    def jobs(self) -> tuple[str, ...]:
        return (*self.held, *self.suspended)

    @property
    def nbytes(self) -> int:
        return sum(self.held.values())

    def add(self, command: TrainCommand, report: Report) -> None:
        raise NotImplementedError

    def remove(self, job_id: str) -> None:
        raise NotImplementedError

    def advance(self, seconds: float | None) -> list[Ended]:
        raise NotImplementedError

    def drop_activations(self) -> bool:
        dropped, self.activations = self.activations, 0
        return bool(dropped)

    def suspend(self) -> str | None:
        if not self.held:
            return None
        largest = max(self.held, key=lambda job: self.held[job])
        del self.held[largest]
        self.suspended += (largest,)
        return largest

    def resume(self) -> None:
        self.held |= dict.fromkeys(self.suspended, 10)
        self.suspended = ()

    # -- the engine

    def compute(self, tokens: int) -> int:
        self.sizes.append(tokens)
        if tokens + self.activations + self.nbytes > self.memory:
            self.fail()
        return tokens

    def serve(self) -> int | None:
        """A turn of the loop with much to do: the tokens of its step, None where that found no memory."""
        self.pressure.recover()
        if not self.scheduler.sequences:
            for i in range(20):
                self.scheduler.add(sequence(f"s{len(self.sizes)}-{i}", 40, 1))
        plan = self.scheduler.schedule()
        found = self.pressure.attempt(lambda: self.compute(plan.tokens))
        if found is None:
            assert plan.tokens > 1
            self.pressure.halve(plan.tokens)
            return None
        self.scheduler.advance(plan)
        for seq in [s for s in self.scheduler.sequences if s.state is State.RUNNING and not s.num_left]:
            self.scheduler.finish(seq)
        return found

    @property
    def limits(self) -> tuple[int, int]:
        return self.scheduler.limits.max_batch_tokens, self.scheduler.limits.max_running


@pytest.mark.parametrize("fail", [on_device, on_host, in_cublas])
def test_training_gives_way_before_steps_do(fail: Callable[[], None]) -> None:
    """Activations, then the job that holds most; each time the very step is tried again."""
    rig = Rig(memory=100, fail=fail)
    rig.activations, rig.held = 50, {"small": 10, "large": 40}
    assert rig.serve() == TOKENS
    assert rig.sizes == [TOKENS] * 3
    assert (rig.activations, rig.held, rig.suspended) == (0, {"small": 10}, ("large",))
    assert rig.pressure.counts == {"errors": 2, "micro_batches": 1, "jobs": 1, "steps": 0}
    assert rig.limits == (TOKENS, 16)
    assert rig.scheduler.preemptions == 0


def test_without_training_steps_are_halved_and_come_back_one_by_one() -> None:
    rig = Rig(memory=20)
    assert [rig.serve() for _ in range(3)] == [None, None, 16]
    assert rig.limits == (16, 16)
    rig.memory = 100
    found = []
    for _ in range(6):
        assert rig.pressure.moment() == CALM
        rig.now += CALM - 0.1
        rig.serve()
        found.append(rig.limits[0])
        rig.now += 0.1
        rig.serve()
        found.append(rig.limits[0])
        if rig.limits[0] == TOKENS:
            break
    assert found == [16, 32, 32, 64]
    assert rig.pressure.moment() == CALM
    rig.now += CALM
    rig.serve()
    assert rig.pressure.moment() is None
    assert rig.limits == (TOKENS, 16)


def test_an_error_soon_after_doubles_the_wait_up_to_a_bound() -> None:
    """Memory for 40 tokens for ever: steps are tried at 64 less and less often, and never fail in between."""
    rig = Rig(memory=40)
    assert [rig.serve(), rig.serve()] == [None, 32]
    waits = []
    for _ in range(9):
        started, failed = rig.now, rig.pressure.counts["steps"]
        while rig.pressure.counts["steps"] == failed:
            rig.now += 1.0
            rig.serve()
        waits.append(rig.now - started)
    assert waits == pytest.approx([10, 20, 40, 80, 160, 320, LONGEST, LONGEST, LONGEST], abs=2)


def test_an_error_long_after_is_another_event() -> None:
    rig = Rig(memory=40)
    for _ in range(2):
        assert rig.serve() is None
        rig.memory = 100
        for _ in range(3):
            rig.now += CALM
            rig.serve()
        assert rig.limits[0] == TOKENS
        assert rig.pressure.moment() is None
        rig.now += 10 * CALM
        rig.memory = 40


def test_suspended_jobs_go_on_at_last_and_need_no_request_for_it() -> None:
    rig = Rig(memory=20)
    rig.held = {"job": 30}
    assert [rig.serve() for _ in range(3)] == [None, None, 16]
    assert not rig.share.busy
    assert rig.share.suspended == ("job",)
    for limit in (32, 64):
        rig.now += CALM
        rig.pressure.recover()
        assert (rig.limits[0], rig.suspended) == (limit, ("job",))
    rig.now += CALM
    assert rig.pressure.moment() == 0
    rig.pressure.recover()
    assert (rig.suspended, rig.pressure.moment()) == ((), None)
    assert rig.share.busy


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
def test_rows_come_in_order_in_parts_that_fit(most: int) -> None:
    rig = Rig(memory=most)
    found = list(rig.pressure.in_halves(13, lambda rows: list(range(13))[rows][: rig.compute(rows.stop - rows.start)]))
    assert [i for _, part in found if part is not None for i in part] == list(range(13))
    assert all(len(part or ()) <= most for _, part in found)
    assert len(found) == 1 or most < 13


def test_a_row_that_never_fits_is_told_and_no_other() -> None:
    rig = Rig(memory=100)

    def compute(rows: slice) -> range:
        if rows.start <= 5 < rows.stop:
            on_device()
        return range(13)[rows]

    found = list(rig.pressure.in_halves(13, compute))
    assert [rows for rows, part in found if part is None] == [slice(5, 6)]
    assert [i for _, part in found if part is not None for i in part] == [i for i in range(13) if i != 5]
    assert list(rig.pressure.in_halves(0, compute)) == []


def test_a_defect_is_no_lack_of_memory() -> None:
    rig = Rig(memory=100)

    def defect() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        rig.pressure.attempt(defect)
    assert rig.pressure.counts["errors"] == 0
