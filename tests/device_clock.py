"""A device that computes in its own time, and the events that tell of it: what ``torch.cuda.Event`` does, on a CPU."""

from __future__ import annotations

from contextlib import nullcontext

from loramux_server.training.work_queue import DeviceQueue


class FakeDevice:
    """Work that is queued takes seconds of the device's ``now``, which goes on when somebody lets it or waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.free_at = self.now
        """When all that is queued is done."""
        self.waits = 0
        """How often the host waited for the device."""

    def launch(self, seconds: float) -> None:
        """Queue work."""
        self.free_at = max(self.free_at, self.now) + seconds

    def queue(self) -> DeviceQueue:
        return DeviceQueue(lambda: FakeEvent(self), nullcontext)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device, self.at = device, 0.0

    def record(self) -> None:
        self.at = max(self._device.free_at, self._device.now)

    def query(self) -> bool:
        return self._device.now >= self.at

    def synchronize(self) -> None:
        self._device.waits += not self.query()
        self._device.now = max(self._device.now, self.at)

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.query()
        assert end.query()
        return 1000 * (end.at - self.at)
