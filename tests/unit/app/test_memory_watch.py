"""Readiness by memory: doors are told when it is nearly used up, and when there is enough again."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_server.app.memory_watch import MemoryWatch
from loramux_server.host.control_groups import MemoryLevel
from loramux_server.host.resources import memory_share


def test_a_change_is_told_once_and_back_only_well_below_the_limit() -> None:
    share = [0.0]
    told: list[bool] = []
    watch = MemoryWatch(lambda: share[0], 0.95, lambda: told.append(watch.full))
    for share[0] in (0.2, 0.95, 0.96, 0.99, 0.94, 0.91, 0.89, 0.94, 0.951):
        watch.look()
    assert told == [True, False, True]


def test_page_cache_does_not_count() -> None:
    assert MemoryLevel(limit=100, used=98, reclaimable=40).share == pytest.approx(0.58)
    assert memory_share(Path("/nowhere")) == 0.0
