"""Jobs whose work items are queued on a device: the same losses, few items ahead, and no step waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loramux_server.core.jobs import TrainEvent, TrainSpec
from loramux_server.training.work_queue import AHEAD, DeviceQueue
from tests.device_clock import FakeDevice
from tests.engine import Engine, command, prompts, rows
from tests.rows import train_command

SPEC = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, max_steps=4, epochs=99, batch_size=4, seed=3)
ITEM = 0.02


class Watched(DeviceQueue):
    """A queue on a fake device, where every work item takes ITEM seconds."""

    def __init__(self, device: FakeDevice) -> None:
        inner = device.queue()
        super().__init__(inner._mark, inner.entered)
        self.device, self.most, self.asked = device, 0, list[bool]()

    def run(self, item: Callable[[], Any]) -> Any:
        def launched() -> Any:
            self.device.launch(ITEM)
            return item()

        found = super().run(launched)
        self.most = max(self.most, len(self._queued))
        return found

    def ready(self, settled: bool) -> bool:
        self.asked.append(settled)
        return super().ready(settled)


@pytest.fixture
def engine(tiny_base, tmp_path: Path) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path / "state")
    yield made
    made.close()


def losses(events: list[TrainEvent]) -> list[float]:
    return [e.metrics["loss"] for e in events if e.type == "step"]


def test_jobs_on_a_device_have_the_losses_of_jobs_on_a_host(engine: Engine, tmp_path: Path) -> None:
    """Also from a higher layer on, whose inputs are kept, and with evaluations."""
    job = train_command("host", replace(SPEC, layers=(1, 2)), rows(8), rows(3, seed=5), output=str(tmp_path / "host"))
    expected = losses(engine.train(job))
    queue = Watched(FakeDevice())
    engine.jobs._queue, before = queue, engine.stats().steps["train"][1]
    got = engine.train(replace(job, job_id="device", output=str(tmp_path / "device")))
    assert losses(got) == pytest.approx(expected, rel=1e-6)
    assert queue.most == AHEAD
    assert queue.asked.count(True) > SPEC.max_steps < queue.asked.count(False)
    assert 0 < engine.stats().steps["train"][1] - before <= queue.device.now - 1000.0


def test_steps_never_wait_for_the_device_and_training_pays_its_time(engine: Engine, tmp_path: Path) -> None:
    device = FakeDevice()
    engine.jobs._queue = queue = Watched(device)
    engine.submit(train_command("job", replace(SPEC, max_steps=400), rows(8), output=str(tmp_path / "out")))
    engine.submit(command("stream", prompts(1)[0], 120))
    while not engine.outputs["stream"]:
        engine.loop.turn()
    waits, before = device.waits, queue.device_seconds
    turns = 0
    while not engine.outputs["stream"][-1].done:
        engine.loop.turn()
        device.now += ITEM / 4
        turns += 1
    assert before is not None
    assert queue.device_seconds is not None
    assert turns >= 100
    assert device.waits == waits
    assert queue.most <= AHEAD
    assert queue.device_seconds > before
    engine.jobs.remove("job")
