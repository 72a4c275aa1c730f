"""What this process knows of the replicas of an application: their last reports, and where its own work went.

Ray's router asks it on a thread of its own, the front on its event loop; so a lock guards it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock

from ...core.backend import Replica, ReplicaState
from .affinity import Affinity, Load, Work

REPORT_SECONDS = 0.5
"""How often a replica reports."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica tells of itself every ``REPORT_SECONDS``."""

    state: str = ReplicaState.READY.value
    node: str = ""
    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    resident: tuple[str, ...] = ()
    training_jobs: tuple[str, ...] = ()


class Fleet:
    """The replicas of one application. ``changed`` is called, on any thread, after they were reported anew."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._lock = Lock()
        self._policy = Affinity()
        self._reports: dict[str, Report] = {}
        self._draining: set[str] = set()
        self._lost: set[str] = set()
        """Those that Ray may not know to be dead."""
        self._changed = changed

    def update(self, reports: Mapping[str, Report]) -> None:
        """Take in which replicas there are, and what they reported."""
        with self._lock:
            for gone in self._reports.keys() - reports.keys():
                self._policy.gone(gone)
                self._draining.discard(gone)
            for id, report in reports.items():
                if report.state == ReplicaState.RESTARTING:
                    self._policy.emptied(id)
            self._lost.clear()
            self._reports = dict(reports)
        self._changed()

    def lost(self, replica: str) -> None:
        """A replica died. It gets no work, whatever Ray knows of it, until it is reported anew."""
        with self._lock:
            self._reports.pop(replica, None)
            self._policy.gone(replica)
            self._draining.discard(replica)
            self._lost.add(replica)
        self._changed()

    def drain(self, replica: str) -> None:
        """Give a replica no new work from now on, whatever its reports say until they know it too."""
        with self._lock:
            self._draining.add(replica)
        self._changed()

    def rank(self, work: Work, candidates: Iterable[str]) -> list[str]:
        """Those of ``candidates`` that may take ``work``, the best first."""
        with self._lock:
            loads = {replica: self._load(replica) for replica in candidates}
            return self._policy.rank(work, loads, time.monotonic())

    def began(self, work: Work, replica: str) -> None:
        """``work`` was sent to ``replica``."""
        with self._lock:
            self._policy.began(work, replica, time.monotonic())

    def ended(self, work_id: str) -> None:
        """Work is over."""
        with self._lock:
            self._policy.ended(work_id)

    @property
    def accepting(self) -> frozenset[str]:
        """The replicas that take new work."""
        with self._lock:
            return frozenset(replica for replica in self._reports if self._load(replica).accepts)

    def replicas(self) -> tuple[Replica, ...]:
        """All replicas, as they reported last, by id."""
        with self._lock:
            return tuple(
                Replica(
                    id,
                    ReplicaState.DRAINING if id in self._draining else ReplicaState(report.state),
                    report.node,
                    report.running,
                    report.waiting,
                    report.queued_tokens,
                    report.resident,
                    report.training_jobs,
                )
                for id, report in sorted(self._reports.items())
            )

    def _load(self, replica: str) -> Load:
        report = self._reports.get(replica, Report())
        return Load(
            resident=frozenset(report.resident),
            queued_tokens=report.queued_tokens,
            jobs=len(report.training_jobs),
            accepts=report.state == ReplicaState.READY and replica not in self._draining | self._lost,
        )


_FLEETS: dict[str, Fleet] = {}


def open_fleet(application: str, changed: Callable[[], object]) -> Fleet:
    """The fleet of an application, from now on: Ray makes its router by itself, and that finds it by name."""
    _FLEETS[application] = fleet = Fleet(changed)
    return fleet


def close_fleet(application: str) -> None:
    """Forget a fleet."""
    _FLEETS.pop(application, None)


def fleet_of(application: str) -> Fleet | None:
    """The fleet of an application, if this process has opened it."""
    return _FLEETS.get(application)
