"""One request, from its first token to the last."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from ...core.backend import SequenceTimes
from ...core.types import Grammar, Pooling, SamplingParams, Stack


class State(Enum):
    """Where a sequence is. FINISHED ones hold no page and no adapter."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one request and how far they are computed.

    ``num_computed`` tokens have their keys and values in ``pages``; the scheduler only makes it catch up with
    ``len(tokens)``. Preemption resets it to 0 and keeps the tokens.
    """

    id: str
    tokens: list[int]
    prompt_length: int
    stack: Stack
    sampling: SamplingParams
    seed: int
    tenant: str
    deadline: float | None = None
    """Seconds on this process's monotonic clock."""
    score_from: int | None = None
    """Set on a scoring request: log-probabilities are wanted of the tokens from this position on."""
    pooling: Pooling | None = None
    """Set on a request for an embedding, which is of length 1 where ``normalize`` is set."""
    normalize: bool = False
    grammar: Grammar | None = None
    arrived: float = 0.0
    """When it came; this and the moments below in seconds on the monotonic clock, 0 where they have not come."""
    loaded: float = 0.0
    """When the last of its adapters that were in no memory had been read."""
    started: float = 0.0
    """When its first step began."""
    answered: float = 0.0
    """When its first token came."""
    state: State = State.WAITING
    num_computed: int = 0
    pending: bool = False
    """Whether the pending step selects its next token: the device knows it, ``tokens`` do not."""
    pages: list[int] = field(default_factory=list)
    num_cached: int = 0
    """Prompt tokens that the prefix cache gave at the first admission."""
    admitted: bool = False
    last_step: int = 0
    """Number of the step that last had tokens of it."""
    num_preempted: int = 0
    num_overtaken: int = 0
    """Requests with adapters that started while this one's did not fit."""

    def times(self, now: float) -> SequenceTimes:
        """Where its time went until ``now``, when its last token or its result came."""
        answered = self.answered or now
        started = self.started or answered
        return SequenceTimes(
            waiting=started - self.arrived,
            loading=max(0.0, self.loaded - self.arrived),
            prefill=answered - started,
            decode=now - answered,
            preempted=self.num_preempted,
        )

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def length(self) -> int:
        """Its tokens, the pending one included."""
        return len(self.tokens) + self.pending

    @property
    def num_left(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return self.length - self.num_computed

    @property
    def generates(self) -> bool:
        """Whether tokens are to be chosen; else all that there will be are known."""
        return self.score_from is None and self.pooling is None

    @property
    def reusable(self) -> int:
        """Tokens at its beginning of which all but the last may come from the prefix cache.

        A score needs the logits from the prompt's last token on, and an embedding the hidden states of all: cached
        pages hold keys and values only.
        """
        if self.pooling is not None:
            return 0
        return len(self.tokens) if self.score_from is None else self.score_from

    @property
    def limit(self) -> int:
        """Most tokens that this sequence can ever hold."""
        return self.prompt_length + (self.sampling.max_tokens if self.generates else 0)
