"""The teacher of a distillation: the resident base with the frozen stack of a row, and the context before the row.

Nothing of it is trained, so what it predicts at the loss tokens of a row is computed once. Kept are its final hidden
states, not its logits: they are a hundredth of these, and the output head is applied again where logits are needed.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from torch import Tensor

from ...core.jobs import TrainRow
from ..backprop.frozen_model import FrozenModel
from ..backprop.micro_batch import JobRows, final_states
from ..work import Interruptible

Key = tuple[bytes, int]
"""A digest of what the teacher reads, and the frozen stack that it runs over."""


class Teacher:
    """Final hidden states [loss tokens, hidden] of rows over their stacks, on the host, up to ``max_bytes``.

    Beyond that the oldest are dropped and computed again when they are needed, but none of the latest :meth:`missing`.
    """

    def __init__(self, frozen: FrozenModel, max_bytes: int) -> None:
        self._frozen, self._max_bytes = frozen, max_bytes
        self._kept: dict[Key, Tensor] = {}  # the oldest first
        self._needed: frozenset[Key] = frozenset()
        self.nbytes = 0
        """Bytes of the states that are kept."""

    def missing(self, rows: Sequence[TrainRow], stacks: Sequence[int]) -> list[int]:
        """Indices of the rows whose states have to be computed; those of all ``rows`` are needed from now on."""
        keys = [_key(row, stack) for row, stack in zip(rows, stacks, strict=True)]
        self._needed = frozenset(keys)
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        return sorted(i for key, i in first.items() if key not in self._kept)

    def compute(self, rows: Sequence[TrainRow], stacks: Sequence[int]) -> Interruptible[None]:
        """One micro-batch: compute and keep the states of rows, each over ``stacks[i]``."""
        texts = [text_of(row) for row in rows]
        found = yield from final_states(self._frozen.base, JobRows(self._frozen, texts, stacks))
        for row, stack, states in zip(rows, stacks, found, strict=True):
            kept = states.to("cpu", copy=True)  # a view would keep the whole micro-batch in memory
            self._kept[_key(row, stack)] = kept
            self.nbytes += kept.nbytes
        for key in [key for key in self._kept if key not in self._needed]:
            if self.nbytes <= self._max_bytes:
                break
            self._drop(key)

    def states(self, row: TrainRow, stack: int) -> Tensor:
        """The states of a row, which must be kept."""
        return self._kept[_key(row, stack)]

    def forget(self, rows: Sequence[TrainRow], stacks: Sequence[int]) -> None:
        """Drop the states of rows that do not come again."""
        for key in {_key(row, stack) for row, stack in zip(rows, stacks, strict=True)} & self._kept.keys():
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self.nbytes -= self._kept.pop(key).nbytes


def text_of(row: TrainRow) -> TrainRow:
    """What the teacher reads for a row."""
    assert row.teacher is not None
    return row.teacher


def _key(row: TrainRow, stack: int) -> Key:
    text = text_of(row)
    return hashlib.blake2b(array("I", text.input_ids).tobytes() + bytes(text.labels), digest_size=16).digest(), stack
