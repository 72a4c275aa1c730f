"""Work items on a device: few of them wait there, and their time is the device's, by a scripted clock of events."""

from __future__ import annotations

import pytest

from loramux_server.training.backprop.micro_batch_size import WORK_ITEM_SECONDS, MicroBatchSizer
from loramux_server.training.work import PAUSE, SETTLE, Interruptible
from loramux_server.training.work_queue import AHEAD, HostQueue
from tests.device_clock import FakeDevice


def test_two_items_at_most_are_not_done() -> None:
    device = FakeDevice()
    queue = device.queue()
    for _ in range(AHEAD):
        assert queue.ready(settled=False)
        queue.run(lambda: device.launch(0.1))
    assert not queue.ready(settled=False)
    device.now += 0.1
    assert queue.ready(settled=False)
    assert not queue.ready(settled=True)
    device.now += 0.1
    assert queue.ready(settled=True)
    assert device.waits == 0


def test_time_is_the_devices_and_what_is_done() -> None:
    device = FakeDevice()
    queue = device.queue()
    queue.run(lambda: device.launch(0.25))
    queue.run(lambda: device.launch(0.5))
    assert queue.device_seconds == 0  # launched, and not done
    device.now += 0.3
    assert queue.device_seconds == pytest.approx(0.25)
    device.now += 5  # idle time is nobody's
    assert queue.device_seconds == pytest.approx(0.75)


def test_waiting_ends_as_soon_as_there_is_room() -> None:
    device = FakeDevice()
    queue = device.queue()
    for seconds in (0.1, 0.4):
        queue.run(lambda seconds=seconds: device.launch(seconds))  # type: ignore[misc]
    queue.wait(settled=False)
    assert device.now == pytest.approx(1000.1)
    queue.wait(settled=True)
    assert device.now == pytest.approx(1000.5)
    queue.wait(settled=True)
    assert device.waits == 2


def test_an_item_that_fails_is_in_the_queue_like_any_other() -> None:
    device = FakeDevice()
    queue = device.queue()

    def fails() -> None:
        device.launch(0.2)
        raise MemoryError

    with pytest.raises(MemoryError):
        queue.run(fails)
    assert not queue.ready(settled=True)
    device.now += 0.2
    assert queue.device_seconds == pytest.approx(0.2)


def test_on_a_host_an_item_is_done_when_it_returns() -> None:
    queue = HostQueue()
    assert queue.run(lambda: 7) == 7
    assert queue.ready(settled=True)
    assert queue.device_seconds is None


@pytest.mark.parametrize("on_device", [0.02, 0.2])
def test_micro_batches_are_sized_by_the_devices_time_and_not_by_launching(on_device: float) -> None:
    """Launching takes no time here; a micro-batch of 200 tokens takes ten work items of ``on_device`` seconds."""
    device = FakeDevice()
    queue = device.queue()
    sizer = MicroBatchSizer(10, lambda: queue.device_seconds)
    sizer.serving = True

    def work() -> Interruptible[str]:
        for i in range(10):
            device.launch(on_device)
            if i < 9:
                yield PAUSE
        return "done"

    for _ in range(30):
        task, settle, result = sizer.timed(200, work()), False, ""
        while not result:
            queue.wait(settle)

            def item(task: Interruptible[str] = task) -> tuple[bool, str]:
                try:
                    return next(task).settled, ""
                except StopIteration as done:
                    return True, str(done.value)

            settle, result = queue.run(item)
        assert result == "done"
    assert sizer.tokens == pytest.approx(200 * WORK_ITEM_SECONDS / on_device, abs=1)
    assert SETTLE.settled
