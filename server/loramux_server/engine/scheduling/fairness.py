"""Whose turn it is: waiting sequences by tenant, in the order of the Virtual Token Counter (arXiv 2401.00588).

The tenant that has been served least comes first, where a token counts more the more rank its stack brings. A tenant
that was away gets no credit for it: its counter is lifted to that of the least served tenant, or to that of the last
one to leave where nobody is there. A counter that would be lifted anyway is not kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping

from .sequence import Sequence

RANK_COST = 1 / 64
"""Extra cost of a token per rank of its stack: a stack of rank 64 counts double."""


class FairQueue:
    """Waiting sequences, and the counters of the tenants that have live ones, be they waiting or running."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Sequence]] = {}
        self._live: Counter[str] = Counter()  # waiting and running sequences of each tenant
        self._served: dict[str, float] = {}  # virtual token counter of each tenant
        self._floor = 0.0  # below it no counter begins

    def __len__(self) -> int:
        """Waiting sequences."""
        return sum(len(queue) for queue in self._waiting.values())

    def __iter__(self) -> Iterator[Sequence]:
        """Waiting sequences, those of the least served tenant first. They may be started on the way."""
        for tenant in sorted(self._waiting, key=lambda t: self._served[t]):
            yield from list(self._waiting[tenant])

    @property
    def live(self) -> Mapping[str, int]:
        """Waiting and running sequences of each tenant."""
        return self._live

    @property
    def served(self) -> Mapping[str, float]:
        """The virtual token counters."""
        return self._served

    def waiting(self, tenant: str) -> int:
        """Waiting sequences of a tenant."""
        return len(self._waiting.get(tenant, ()))

    @property
    def tenants(self) -> int:
        """Tenants of whom something is remembered."""
        return len(self._served)

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence behind the others of its tenant."""
        if not self._live[seq.tenant]:
            self._raise_floor()
            self._served[seq.tenant] = max(self._served.get(seq.tenant, 0.0), self._floor)
        self._live[seq.tenant] += 1
        self._waiting.setdefault(seq.tenant, deque()).append(seq)

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out of the queue: it runs now, or is over."""
        queue = self._waiting[seq.tenant]
        queue.remove(seq)
        if not queue:
            del self._waiting[seq.tenant]

    def put_back(self, seq: Sequence) -> None:
        """Queue a preempted sequence before the others of its tenant."""
        self._waiting.setdefault(seq.tenant, deque()).appendleft(seq)

    def leave(self, seq: Sequence) -> None:
        """Note that a sequence, which is not in the queue any more, is over."""
        self._live[seq.tenant] -= 1
        if not self._live[seq.tenant]:
            self._raise_floor()
            del self._live[seq.tenant]
            self._served = {t: c for t, c in self._served.items() if t in self._live or c > self._floor}

    def charge(self, seq: Sequence, tokens: int) -> None:
        """Add the cost of ``tokens`` computed tokens to the counter of the tenant."""
        self._served[seq.tenant] += tokens * (1 + RANK_COST * seq.stack.rank)

    def _raise_floor(self) -> None:
        self._floor = max(self._floor, min((self._served[t] for t in self._live), default=0.0))
