"""CUDA's capture on a host: the operations of one run are noted and done again, on the same tensors.

As in a CUDA graph nothing that Python decided is decided anew: numbers, shapes and addresses stay those of the noted
run, only what lies in the tensors is new. And as there, what would wait for the device breaks the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {aten.item.default, aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in WAITS:
            raise RuntimeError(f"{func} waits for the device")
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                # Views and results in place share their memory with an argument, which is the same as before.
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class TapeCapture:
    """The :class:`~loramux_server.engine.execution.capture.Capture` of the tests. ``steps`` counts replays."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.steps = 0

    def capture(self, step: Callable[[], object]) -> Callable[[], None]:
        step()  # as CUDA's runs before the capture
        tape = Tape()
        with tape:
            step()

        def replay() -> None:
            self.steps += 1
            tape.replay()

        return replay


class FailingCapture(TapeCapture):
    """Captures, but for those tries (counted from 1) that ``errors`` names an error for."""

    def __init__(self, errors: Mapping[int, RuntimeError]) -> None:
        super().__init__()
        self.errors = errors
        self.tries = 0

    def capture(self, step: Callable[[], object]) -> Callable[[], None]:
        self.tries += 1
        if (error := self.errors.get(self.tries)) is not None:
            raise error
        return super().capture(step)
