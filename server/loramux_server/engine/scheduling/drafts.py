"""Drafts for speculative decoding without a second model: what followed the last tokens where they stood before.

Prompt lookup, as in LLMA (arXiv 2304.04487), transformers' ``prompt_lookup_num_tokens`` and vLLM's ``ngram``. A step
computes a draft together with the token before it. Token selection then takes a row for as long as it selects what the
draft says, so answers are those of steps without drafts, be they greedy or sampled.

A row more makes the step longer, so drafts are as long as they pay (the expected improvement of arXiv 2211.17192,
section 3, over all rows of a step): in a full batch there are none.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .sequence import Sequence

NGRAM = 3
"""Tokens that must have stood before as they stand at the end."""
LONGEST = 15
"""Tokens of a draft at most."""
PRIOR = 0.5
"""Chance at which a draft's next token is taken to be right where nothing is known yet."""
LEARN = 0.2
"""Weight of a draft's token in that chance."""
ROW_COST = {("cpu", 4): 0.25, ("cpu", 2): 0.1, ("cuda", 4): 0.01, ("cuda", 2): 0.01}
"""Time of one row more in a step, as part of that of a step with one row, by device and bytes of a value."""
WAIT_COST = {"cpu": 0.0, "cuda": 0.3}
"""Time that a step loses which is launched only when the tokens of the one before are known, as part of it. A processor
computes nothing meanwhile; that of a GPU is an estimate: the host's share of a step of 16 rows."""
RECOVER = 0.003
"""Part of the way back to the prior that the chance goes with each step without a draft: so it is tried again."""


@dataclass(slots=True)
class _History:
    """A sequence's n-grams, and how its drafts have fared."""

    after: dict[tuple[int, ...], int] = field(default_factory=dict)
    """n-gram -> position of the token that followed it last."""
    heads: set[tuple[int, ...]] = field(default_factory=set)
    """All of these n-grams but for their last tokens."""
    indexed: int = 0
    """Tokens that have an n-gram before them in ``after``."""
    chance: float = PRIOR
    """That a draft's next token is right if those before it were."""
    match: float = PRIOR
    """That a head goes on as an n-gram."""


class NgramDrafter:
    """Drafts for the sequences of one scheduler, at the costs of :data:`ROW_COST` and :data:`WAIT_COST`."""

    def __init__(self, row_cost: float, wait_cost: float = 0.0) -> None:
        self.drafted = self.accepted = 0
        """Tokens since start."""
        self._cost, self._wait_cost = row_cost, wait_cost
        self._histories: dict[str, _History] = {}

    def __len__(self) -> int:
        """Sequences that something is remembered of."""
        return len(self._histories)

    def worth_waiting(self, pending: Collection[Sequence]) -> bool:
        """Whether drafts after the next tokens of ``pending``, which are not known, gain more than waiting for these.

        The last known tokens say whether there may be a draft, and how earlier ones have fared how long it lasts.
        """
        gain = 0.0
        hopeful: list[_History] = []
        for seq in pending:
            history = self._histories.setdefault(seq.id, _History())
            _index(history, seq.tokens)
            if tuple(seq.tokens[1 - NGRAM :]) in history.heads:
                hopeful.append(history)
                gain += history.match * history.chance / (1 - history.chance + 1 / LONGEST)
        if gain > self._wait_cost * len(pending):
            return True
        for history in hopeful:
            history.match += RECOVER * (PRIOR - history.match)
            history.chance += RECOVER * (PRIOR - history.chance)
        return False

    def draft(self, seqs: Collection[Sequence], rows: int, most: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Drafts of sequences that decode in a step of ``rows`` tokens; ``most`` tokens for each id."""
        drafts: dict[str, tuple[int, ...]] = {}
        for seq in seqs:
            history = self._histories.setdefault(seq.id, _History())
            head = tuple(seq.tokens[-NGRAM:-1]) in history.heads
            if found := _lookup(history, seq.tokens, most[seq.id]):
                drafts[seq.id] = found
            if head:
                history.match += LEARN * (bool(found) - history.match)
        lengths = self._lengths(drafts, len(seqs), rows)
        for id in drafts:
            if not lengths[id]:
                history = self._histories[id]
                history.chance += RECOVER * (PRIOR - history.chance)
        return {id: draft[: lengths[id]] for id, draft in drafts.items() if lengths[id]}

    def verified(self, id: str, drafted: int, accepted: int) -> None:
        """So many tokens of a sequence's draft were right; it may be over."""
        self.drafted += drafted
        self.accepted += accepted
        if (history := self._histories.get(id)) is not None:
            for _ in range(accepted):
                history.chance += LEARN * (1 - history.chance)
            if accepted < drafted:
                history.chance -= LEARN * history.chance

    def forget(self, id: str) -> None:
        """The sequence is over."""
        self._histories.pop(id, None)

    def _lengths(self, drafts: Mapping[str, tuple[int, ...]], tokens: float, rows: int) -> dict[str, int]:
        """How much of each draft pays: rows are added, the likeliest first, while tokens come faster by them."""
        lengths = dict.fromkeys(drafts, 0)
        time = 1 + self._cost * (rows - 1)
        queue = [(-self._histories[id].chance, id) for id in drafts]
        heapq.heapify(queue)
        while queue:
            chance, id = heapq.heappop(queue)
            if -chance * time <= self._cost * tokens:
                break
            tokens, time = tokens - chance, time + self._cost
            lengths[id] += 1
            if lengths[id] < len(drafts[id]):
                heapq.heappush(queue, (chance * self._histories[id].chance, id))
        return lengths


def _index(history: _History, tokens: list[int]) -> None:
    """Note the n-grams that another token follows."""
    for end in range(max(history.indexed, NGRAM), len(tokens)):
        ngram = tuple(tokens[end - NGRAM : end])
        history.after[ngram] = end
        history.heads.add(ngram[:-1])
    history.indexed = max(history.indexed, len(tokens))


def _lookup(history: _History, tokens: list[int], most: int) -> tuple[int, ...]:
    """What followed the last tokens where they stood last, at most ``most`` of it; a text that repeats goes round."""
    _index(history, tokens)
    start = history.after.get(tuple(tokens[-NGRAM:]))
    if start is None or most < 1:
        return ()
    period = len(tokens) - start
    return tuple(tokens[start + i % period] for i in range(min(most, LONGEST)))
