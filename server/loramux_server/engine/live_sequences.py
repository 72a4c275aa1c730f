"""The sequences of the engine over all the parts that hold something for them: each is opened and closed in all."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from ..core.backend import EmbedCommand, EngineInfo, GenerateCommand, ScoreCommand
from ..core.errors import Code, Error
from ..core.types import AdapterVersion
from ..peft.folder import naming
from .execution.embeddings import EmbeddingCollector
from .execution.scores import ScoreCollector
from .execution.token_selection import TokenSelector
from .grammar.masks import GrammarMasks
from .memory_pressure import MemoryPressure
from .outbox import Outbox
from .residency.manager import ResidencyManager
from .scheduling.new_sequence import make_sequence
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Sequence, State


class LiveSequences:
    """Adds sequences to the scheduler, and ends them. Belongs to the loop's thread."""

    def __init__(
        self,
        info: EngineInfo,
        scheduler: Scheduler,
        residency: ResidencyManager,
        grammars: GrammarMasks,
        outbox: Outbox,
        pressure: MemoryPressure,
    ) -> None:
        self._info, self._scheduler, self._residency, self._outbox = info, scheduler, residency, outbox
        self._grammars = grammars
        told = self.finish, self.end, outbox.emit, pressure
        self.scores = ScoreCollector(scheduler.get, *told)
        self.embeddings = EmbeddingCollector(scheduler.get, *told)
        self.selector = TokenSelector(grammars, info.eos_token_ids, *told)

    def idle_state(self) -> dict[str, int]:
        """What is held for sequences beside the scheduler, by kind: all counts are 0 when there are none."""
        return {"grammars": len(self._grammars), "scores": len(self.scores), "embeddings": len(self.embeddings)}

    def get(self, id: str) -> Sequence | None:
        """The sequence of this id, if it lives."""
        return self._scheduler.get(id)

    def live(self, id: str) -> Sequence:
        """The sequence of this id, which must live."""
        seq = self._scheduler.get(id)
        assert seq is not None
        return seq

    def add(self, command: GenerateCommand | ScoreCommand | EmbedCommand) -> None:
        """Make a sequence of a command. Raises ``Error`` for one that can never run."""
        seq = make_sequence(command, self._info.vocab_size, self._info.max_context)
        self._residency.check(seq.stack)
        self._scheduler.add(seq)
        self._grammars.open(seq)
        self.scores.open(seq)
        self._residency.expect(seq)

    def finish(self, seq: Sequence) -> None:
        """Let go of all that is held for a sequence."""
        self._scheduler.finish(seq)
        self._grammars.close(seq.id)
        self.scores.close(seq.id)
        self.embeddings.close(seq.id)
        self._residency.forget(seq)

    def end(self, seq: Sequence, error: Error) -> None:
        """Finish a sequence, and tell why."""
        self.finish(seq)
        self._outbox.fail(seq.id, error)

    def expire(self, now: float) -> None:
        """End those whose deadline, in seconds on the monotonic clock, has passed."""
        for seq in self._scheduler.expired(now):
            self.end(seq, Error(Code.DEADLINE_EXCEEDED, "the request's deadline passed"))

    def pins_changed(self) -> None:
        """End waiting ones for whose stacks the pinned adapters leave no capacity, ever."""
        for seq in [s for s in self._scheduler.sequences if s.state is State.WAITING]:
            try:
                self._residency.check(seq.stack)
            except Error as error:
                self.end(seq, error)
        self._scheduler.admission.capacity_changed()

    def adapter_read(self, digest: str) -> None:
        """The files of an adapter are in memory: sequences that wait for it may start."""
        self._scheduler.admission.adapter_loaded(digest)
        now = time.monotonic()
        for seq, _ in self._users({digest}):
            seq.loaded = seq.loaded if seq.started else now

    def end_users(self, digests: Collection[str], error: Error) -> set[str]:
        """End all sequences with one of these adapters in their stack, which each calls by its own name; their ids."""
        users = list(self._users(digests))
        for seq, adapter in users:
            self.end(seq, naming(adapter, error))
        return {seq.id for seq, _ in users}

    def _users(self, digests: Collection[str]) -> Iterator[tuple[Sequence, AdapterVersion]]:
        """All sequences with one of these adapters in their stack, and the first one that is."""
        for seq in self._scheduler.sequences:
            if used := next((e.adapter for e in seq.stack.entries if e.adapter.digest in digests), None):
                yield seq, used
