"""Memory that runs out at a chosen operation, on a device or really on this host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def on_device() -> None:
    raise torch.OutOfMemoryError("pretended")


def on_host() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


class Scarce(TorchDispatchMode):
    """Inside, the torch operation of a name fails where ``short(*arguments)`` is true. ``failed`` counts how often."""

    def __init__(self, operation: str, short: Callable[..., bool], fail: Callable[[], None] = on_device) -> None:
        super().__init__()
        self._operation, self._short, self._fail = operation, short, fail
        self.failed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        # What is composed of others comes by its own name or, with an underscore, by that of what it is composed of.
        if func.overloadpacket.__name__.removeprefix("_") == self._operation and self._short(*args):
            self.failed += 1
            self._fail()
        return func(*args, **(kwargs or {}))
