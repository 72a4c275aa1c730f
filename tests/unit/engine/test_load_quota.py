"""The rate at which a tenant's adapters are read."""

from __future__ import annotations

import pytest

from loramux_server.engine.residency.load_quota import LoadQuota


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    quota = LoadQuota(10.0, clock)
    assert sum(quota.take("a") for _ in range(100)) == 20
    assert quota.wait("a") == pytest.approx(0.1)
    assert sum(quota.take("b") for _ in range(100)) == 20  # each tenant its own
    taken = 0
    for _ in range(1000):  # ten seconds
        clock.now += 0.01
        taken += quota.take("a")
    assert taken in (99, 100)
    clock.now += 1e6
    assert sum(quota.take("a") for _ in range(100)) == 20


def test_a_slow_rate_still_lets_one_through() -> None:
    clock = Clock()
    quota = LoadQuota(0.1, clock)
    assert [quota.take("a"), quota.take("a")] == [True, False]
    clock.now += quota.wait("a") + 1e-6
    assert quota.take("a")


def test_no_limit() -> None:
    quota = LoadQuota(0.0, lambda: 0.0)
    assert all(quota.take("a") for _ in range(1000))
    assert quota.wait("a") == 0


def test_many_tenants_leave_nothing_behind() -> None:
    clock = Clock()
    quota = LoadQuota(1.0, clock)
    for i in range(30_000):
        assert quota.take(f"t{i}")
        clock.now += 0.01
    assert len(quota._buckets) < 11_000
