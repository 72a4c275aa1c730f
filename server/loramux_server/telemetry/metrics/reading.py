"""What the engine's metrics are made of: its stats, and the names of the adapters that these know by content."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ...core.backend import EngineInfo, EngineStats

MAX_RESIDENT = 200
"""Adapter versions of a tier that have series of their own: those that were used last."""


@dataclass(frozen=True, slots=True)
class NamedVersion:
    """An adapter version, by one of the names that its content has."""

    name: str
    version: int
    rank: int
    current: bool
    """Whether the bare name means it."""
    pinned: bool

    @property
    def model(self) -> str:
        """What a request names to get it: ``acme``, or ``acme@2`` where the name means another version."""
        return self.name if self.current else f"{self.name}@{self.version}"


Names = Mapping[str, Sequence[NamedVersion]]
"""By digest; what was deleted, or not published yet, has none."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The engine as of now."""

    info: EngineInfo
    stats: EngineStats
    names: Names = field(default_factory=dict)


class EngineReader:
    """Reads an engine for a scrape, on the scrape's thread.

    ``fetch`` gives None while there is no engine, and ``look_up`` the names of contents as far as they can be found.
    """

    def __init__(
        self,
        info: EngineInfo,
        fetch: Callable[[], EngineStats | None],
        look_up: Callable[[Collection[str]], Names],
    ) -> None:
        self._info, self._fetch, self._look_up = info, fetch, look_up

    def read(self) -> Reading | None:
        """None while there is no engine."""
        stats = self._fetch()
        if stats is None:
            return None
        digests = {digest for tier in stats.resident for digest in used_last(stats, tier)}
        digests |= stats.adapters_running.keys() | stats.adapters_waiting.keys()
        return Reading(self._info, stats, self._look_up(digests) if digests else {})


def used_last(stats: EngineStats, tier: str) -> tuple[str, ...]:
    """Digests of the versions in a tier that were used last, at most ``MAX_RESIDENT``."""
    return stats.resident.get(tier, ())[-MAX_RESIDENT:]
