"""Structured output in the engine's loop: which tokens a sequence may take next, and what to do until that is known.

The mask for a token is computed in another process (:mod:`.host`) during the step before it. A mask that is late
holds up nobody: its row of logits is kept and the token is selected when the mask is there.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...core.errors import Code, Error, FieldViolation, Reason
from ...core.types import Grammar
from ..scheduling.sequence import Sequence, State
from .host import GrammarHost
from .wire import Mask, Setup

if TYPE_CHECKING:
    from torch import Tensor

GRACE_SECONDS = 0.005
"""How long a step waits for masks that are not there yet, in all."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A sequence with a grammar. ``mask``: of its next token, once known; ``logits`` [vocabulary] wait for it."""

    seq: Sequence
    key: int
    mask: Mask | None = None
    logits: Tensor | None = None


class GrammarMasks:
    """The masks of all live sequences that have a grammar. Belongs to the loop's thread.

    ``on_mask()`` is called from another thread when a mask comes; the owner then calls :meth:`news`. ``bounds`` are
    those of :class:`Setup`.
    """

    def __init__(self, folder: Path, eos: tuple[int, ...], on_mask: Callable[[], object], **bounds: Any) -> None:
        self._host = GrammarHost(Setup(str(folder), eos, **bounds), self._deliver)
        self._on_mask = on_mask
        self._mailbox: queue.SimpleQueue[Mask] = queue.SimpleQueue()
        self._keys = itertools.count(1)
        self._entries: dict[str, _Entry] = {}
        self._by_key: dict[int, _Entry] = {}
        self._news: list[_Entry] = []

    def __len__(self) -> int:
        """Sequences with a grammar."""
        return len(self._by_key)

    def open(self, seq: Sequence) -> None:
        """Begin a sequence, if it has a grammar: it is compiled while the sequence queues."""
        if seq.grammar is None:
            return
        entry = self._entries[seq.id] = _Entry(seq, next(self._keys))
        self._by_key[entry.key] = entry
        self._host.open(entry.key, seq.grammar)

    def close(self, id: str) -> None:
        """The sequence is over. Unknown ids are fine."""
        if (entry := self._entries.pop(id, None)) is not None:
            del self._by_key[entry.key]
            self._host.close(entry.key)

    def ready(self, seq: Sequence) -> bool:
        """Whether the next token of ``seq`` could be chosen now."""
        entry = self._entries.get(seq.id)
        if entry is None:
            return True
        return entry.mask is not None and bool(entry.mask.bits) and seq.num_output < seq.sampling.max_tokens

    def bits(self, seq: Sequence) -> bytes | None:
        """The mask of a ready sequence: a bit a token, the lowest first; None where there is no grammar."""
        entry = self._entries.get(seq.id)
        return None if entry is None or entry.mask is None else entry.mask.bits

    def step(self, seq: Sequence, token: int) -> None:
        """``token`` was chosen; the mask of the next one is asked for."""
        if (entry := self._entries.get(seq.id)) is not None:
            entry.mask = None
            self._host.step(entry.key, token)

    def wait(self, seqs: Seq[Sequence], since: float) -> None:
        """Wait for the masks of ``seqs`` that are not there, until ``GRACE_SECONDS`` after ``since``."""
        missing = [e for s in seqs if (e := self._entries.get(s.id)) is not None and e.mask is None]
        until = since + GRACE_SECONDS
        try:
            while any(e.mask is None for e in missing):
                self._file(self._mailbox.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            return

    def hold(self, seq: Sequence, logits: Tensor) -> None:
        """Keep a row of logits [vocabulary], which is the caller's no more, until its mask comes."""
        self._entries[seq.id].logits = logits

    def due(self) -> list[tuple[Sequence, Tensor]]:
        """Kept rows whose masks have come. Those of sequences that were preempted are forgotten."""
        found: list[tuple[Sequence, Tensor]] = []
        for entry in self._entries.values():
            if entry.logits is None:
                continue
            if entry.seq.state is not State.RUNNING or entry.seq.num_left:
                entry.logits = None
            elif self.ready(entry.seq):
                found.append((entry.seq, entry.logits))
                entry.logits = None
        return found

    def news(self) -> list[tuple[Sequence, Mask]]:
        """The latest masks of sequences that still live and had any since the last call, once each."""
        try:
            while True:
                self._file(self._mailbox.get_nowait())
        except queue.Empty:
            news, self._news = dict.fromkeys(self._news), []
        return [(e.seq, e.mask) for e in news if e.key in self._by_key and e.mask is not None]

    @property
    def counts(self) -> dict[str, int]:
        """See ``EngineStats.grammars``."""
        return dict(self._host.counts)

    def stop(self) -> None:
        self._host.stop()

    def _deliver(self, mask: Mask) -> None:
        self._mailbox.put(mask)
        self._on_mask()

    def _file(self, mask: Mask) -> None:
        if (entry := self._by_key.get(mask.key)) is not None:
            entry.mask = mask
            self._news.append(entry)


def grammar_error(grammar: Grammar, mask: Mask) -> Error:
    """Why a sequence with a grammar cannot go on, as its caller is told."""
    code = mask.code or Code.INTERNAL
    field, reason = grammar.origin, cast("Reason", f"GRAMMAR_{code.name}")
    violations = [FieldViolation(field, mask.error)] if code is Code.INVALID_ARGUMENT else []
    return Error(code, f"{field}: {mask.error}", reason=reason, violations=violations)
