"""How much of a step tenants with much to do get beside those with little.

A step is as long as all that is in it, so a tenant with 64 sequences would make every token of one with a single
sequence wait for 64. While several tenants are here, the lightest get all that they can use of each step. Each of the
others gets as many tokens as the lightest has sequences, and above that what lengthens steps by no more than the
setting allows, found by measuring steps with and without them. A tenant that falls far behind in tokens served becomes
the lightest. Where others were here a while ago, steps are kept short for them to come back to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ...core.callers.principal import SERVER_TENANT

GRACE = 0.5
"""Seconds that a tenant counts as here after its last token, so that its next request finds no long step under way."""
RECENT = 60.0
"""Seconds that a tenant which is away counts as one that may come back."""
LONGEST = 0.1
"""Seconds that steps are kept under while others may come back."""
PROBE = 32
"""One of so many shared steps is left to the lightest, to know how long theirs take alone."""
MOST_ROWS = 64
"""Sequences of the lightest up to which steps are measured; with more of them, a step is long anyway."""
BAND = 1024.0
"""Served tokens by which tenants may differ before sequences matter less than what was served."""
AIM = 0.5
"""Share of what steps may be lengthened that is aimed at: the rest is for the steps above the mean."""
GAIN, WEIGHT, FASTER = 0.5, 0.1, 0.5
"""How fast the extra tokens follow a measurement; the weight of a step in the mean of those alone, and of a faster one:
what disturbs a step makes it longer."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Whose tokens a step consists of."""

    tenants: frozenset[str] = frozenset()
    light: int = 0
    """Rows of the lightest tenants where these only decode; 0: the step tells nothing about how long those take."""
    shared: bool = False
    """Whether there are rows of other tenants too."""
    capped: bool = False
    """Whether the step was kept short for tenants that may come back."""


class Contention:
    """Shares of steps among tenants. ``slowdown``: how many times longer than alone a step may be; 0: no bound.

    ``max_tokens``: of a step.
    """

    def __init__(self, slowdown: float, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.extra = 0.0
        """Tokens of a step that the tenants with more to do have above an equal share."""
        self._target = 1 + AIM * (slowdown - 1)
        self._bounded = slowdown > 0
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._alone: dict[int, float] = {}  # mean seconds of a step with so many decoding sequences and nothing else
        self._light: frozenset[str] = frozenset()
        self._shared = 0
        self._cap = float(max_tokens)
        self._most, self._capped = float(max_tokens), False

    def seen(self, *tenants: str) -> None:
        """Tenants ask for something, or got tokens."""
        self._seen.update(dict.fromkeys(set(tenants) - {SERVER_TENANT}, self._clock()))

    def shares(
        self,
        sequences: Mapping[str, int],
        served: Mapping[str, float],
        running: Collection[str],
        decoding: Collection[str],
    ) -> dict[str, int]:
        """Tokens of the next step that tenants may have at most; those that are not named have no bound.

        ``sequences``: how many each tenant has, waiting or running; ``served``: virtual token counters; ``running``,
        ``decoding``: tenants with a sequence that runs, and with one that decodes.
        """
        self._light = frozenset()
        now = self._clock()
        # One that only waits, such as for an adapter, holds nobody up for longer.
        self._seen = {tenant: at for tenant, at in self._seen.items() if now - at < RECENT}
        here = ({t for t, at in self._seen.items() if now - at < GRACE} | set(running)) - {SERVER_TENANT}
        self._capped = self._bounded and len(here) == 1 and len(self._seen.keys() | here) > 1
        if self._capped:
            return dict.fromkeys(here, int(self._cap))
        if not self._bounded or len(here) < 2:
            return {}
        least = min(served.get(tenant, 0.0) for tenant in here)
        order = {t: ((served.get(t, least) - least) // BAND, max(1, sequences.get(t, 0))) for t in here}
        first = min(order.values())
        self._light = frozenset(t for t, key in order.items() if key == first)
        heavy = here - self._light
        if not heavy:
            return {}
        self._shared += 1
        rows = sum(sequences.get(tenant, 0) for tenant in self._light)
        unknown = 0 < rows <= MOST_ROWS and rows not in self._alone
        if self._light <= set(decoding) and (unknown or self._shared % PROBE == 0):
            return dict.fromkeys(heavy, 0)
        return dict.fromkeys(heavy, max(first[1], int(self.extra) // len(heavy)))

    def planned(self, work: Sequence[tuple[str, int]]) -> Mix:
        """What the step consists of, each part given as (tenant, tokens), for :meth:`measured`."""
        tenants = frozenset(tenant for tenant, _ in work)
        light = [length for tenant, length in work if not self._light or tenant in self._light]
        decodes = all(length == 1 for length in light) and 0 < len(light) <= MOST_ROWS
        return Mix(tenants, len(light) if decodes else 0, len(light) < len(work), self._capped)

    def measured(self, mix: Mix, seconds: float) -> None:
        """How long the step of a mix took."""
        self.seen(*mix.tenants)
        if mix.capped and seconds > 0:
            self._cap = min(max(1.0, self._cap * min(max(LONGEST / seconds, 0.5), 1.1)), self._most)
        if not mix.light or seconds <= 0:
            return
        alone = self._alone.get(mix.light)
        if not mix.shared:
            weight = 1.0 if alone is None else WEIGHT if seconds > alone else FASTER
            self._alone[mix.light] = (alone or 0.0) + weight * (seconds - (alone or 0.0))
        elif alone is not None:
            off = max(self._target - seconds / alone, -0.5)
            self.extra = max(0.0, self.extra + GAIN * off * (1 + self.extra))
