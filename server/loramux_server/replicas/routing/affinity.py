"""Which replica gets a request: the one where it costs least, counted in tokens. Pure: no Ray, no clock, no I/O.

A replica's cost is the tokens queued there, for each adapter of the request that it does not hold what loading one is
worth, less the tokens at the beginning of the prompt that it has computed before. So requests go where their stack is
resident, spill over once that queue is longer than a load is worth, and a stack counts as the set of its adapters. An
adapter that nobody holds has a home, the same in every front: it is loaded there, and not everywhere at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from heapq import nsmallest

from .expiring import Expiring
from .prefixes import Prefixes

LOAD_TOKENS = 2048
"""What loading an adapter is worth: so much longer may the queue be of a replica that holds it."""
HOME_TOKENS = LOAD_TOKENS // 2
"""The same for an adapter that no replica holds, on its home."""
HOME_SLACK = 1
"""So many adapters more may an adapter's first home hold than its second."""
EXPECTED_SECONDS = 10.0
"""How long an adapter that was sent for counts as resident although its replica does not report it."""
MOST_EXPECTED = 4096
"""Of one replica."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is known of a command when its replica is chosen."""

    id: str
    adapters: frozenset[str] = frozenset()
    """The set of its stack."""
    tokens: int = 0
    """Those of its prompt and of its longest answer."""
    trains: bool = False
    prefix: tuple[bytes, ...] = ()
    """The chain of its prompt's blocks, as ``prefix_chain`` makes it."""
    replica: str = ""
    """Only this one will do."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica reported last."""

    resident: frozenset[str] = frozenset()
    queued_tokens: int = 0
    jobs: int = 0
    """Training jobs that it works on."""
    accepts: bool = True
    """Whether it takes new work."""


class Affinity:
    """Ranks replicas for work, by what they report and by what was sent to them since. Times are seconds."""

    def __init__(self) -> None:
        self._sent: defaultdict[str, dict[str, Work]] = defaultdict(dict)
        self._expected: defaultdict[str, Expiring[str]] = defaultdict(lambda: Expiring(EXPECTED_SECONDS, MOST_EXPECTED))
        self._prefixes: defaultdict[str, Prefixes] = defaultdict(Prefixes)

    def rank(self, work: Work, loads: Mapping[str, Load], now: float) -> list[str]:
        """Replicas that may take ``work``, the best first."""
        if work.replica:
            return [work.replica] if work.replica in loads else []
        accepting = {replica: load for replica, load in loads.items() if load.accepts}
        if work.trains:
            return sorted(accepting, key=lambda replica: (*self._training(replica, accepting[replica]), replica))
        held = {replica: self._held(work, replica, load, now) for replica, load in accepting.items()}
        anywhere = frozenset().union(*held.values())
        homes = {adapter: self._home(adapter, accepting) for adapter in work.adapters - anywhere}

        costs = {
            replica: self._cost(work, replica, load, held[replica], homes, now) for replica, load in accepting.items()
        }
        least = min(costs.values(), default=0)
        # Among the best, the same stack or beginning of a prompt goes to the same replica, and other work is spread.
        spread = "\0".join(sorted(work.adapters)) or (work.prefix[0].hex() if work.prefix else work.id)
        best = [replica for replica, cost in costs.items() if cost == least]
        others = [replica for replica, cost in costs.items() if cost > least]
        best.sort(key=lambda replica: _weight(spread, replica))
        return best + sorted(others, key=lambda replica: (costs[replica], replica))

    def began(self, work: Work, replica: str, now: float) -> None:
        """``work`` was sent to ``replica``."""
        self._sent[replica][work.id] = work
        self._expected[replica].add(work.adapters, now)
        if work.prefix:
            self._prefixes[replica].add(work.prefix, now)

    def ended(self, work_id: str) -> None:
        """It is over, one way or another. Unknown ids are fine."""
        for works in self._sent.values():
            works.pop(work_id, None)

    def gone(self, replica: str) -> None:
        """Forget a replica."""
        self._sent.pop(replica, None)
        self.emptied(replica)

    def emptied(self, replica: str) -> None:
        """A replica's engine starts again: it holds nothing any more."""
        self._expected.pop(replica, None)
        self._prefixes.pop(replica, None)

    def _cost(
        self, work: Work, replica: str, load: Load, held: frozenset[str], homes: Mapping[str, str], now: float
    ) -> int:
        """What ``work`` costs on a replica that holds ``held`` of its adapters, in tokens."""
        cost = self._tokens(replica, load)
        for adapter in work.adapters - held:
            cost += HOME_TOKENS if homes.get(adapter) == replica else LOAD_TOKENS
        if work.prefix and (prefixes := self._prefixes.get(replica)) is not None:
            cost -= prefixes.known_tokens(work.prefix, now)
        return cost

    def _tokens(self, replica: str, load: Load) -> int:
        """What others sent there is known from its report, what was sent from here is known at once."""
        return max(load.queued_tokens, sum(work.tokens for work in self._sent[replica].values()))

    def _training(self, replica: str, load: Load) -> tuple[int, int]:
        sent = sum(work.trains for work in self._sent[replica].values())
        return max(load.jobs, sent), self._tokens(replica, load)

    def _home(self, adapter: str, replicas: Mapping[str, Load]) -> str:
        """The replica that an adapter is loaded on first: the first that hashing names, or the second if it has fewer.

        Fronts agree on it, also while their reports differ by a moment; few homes change when replicas come and go; and
        none is full beside an empty one.
        """
        named = nsmallest(2, replicas, key=lambda replica: _weight(adapter, replica))

        def held(replica: str) -> int:
            return max(len(replicas[replica].resident), len(self._expected[replica]))

        if len(named) > 1 and held(named[0]) > held(named[1]) + HOME_SLACK:
            return named[1]
        return next(iter(named), "")

    def _held(self, work: Work, replica: str, load: Load, now: float) -> frozenset[str]:
        """The adapters of ``work`` that a replica has, or was sent for."""
        held, expected = work.adapters & load.resident, self._expected.get(replica)
        if expected is None or len(held) == len(work.adapters):
            return held
        return held | {adapter for adapter in work.adapters if expected.holds(adapter, now)}


def _weight(text: str, replica: str) -> bytes:
    return blake2b(f"{text}\n{replica}".encode(), digest_size=8).digest()
