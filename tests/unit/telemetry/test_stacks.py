"""Series by tenant and stack: bounded, of those that are used most, and never wrong in sum while they change."""

from __future__ import annotations

import random
import tracemalloc
from collections import defaultdict

import pytest

from loramux_server.core.types import AdapterVersion, Stack, StackEntry
from loramux_server.telemetry.labels import OTHER
from loramux_server.telemetry.metrics import ranking
from loramux_server.telemetry.metrics.catalog import FIRST_TOKENS, GENERATED_TOKENS, REQUEST_DURATION
from loramux_server.telemetry.metrics.ranking import Ranking
from loramux_server.telemetry.metrics.stacks import MAX_PAIRS, MAX_STACKS, MAX_TENANTS, StackSeries

Seen = dict[tuple[str, ...], float]
GENERATED = GENERATED_TOKENS.name


def stack(*names: str) -> Stack:
    return Stack(tuple(StackEntry(AdapterVersion(n, 1, n, 8)) for n in names))


def ask(series: StackSeries, tenant: str, *names: str, times: int = 1) -> None:
    """Requests of one generated token each."""
    for _ in range(times):
        series.used(tenant, stack(*names))
        series.add(GENERATED_TOKENS, tenant, stack(*names), 1)


def scrape(series: StackSeries, name: str = GENERATED) -> Seen:
    """Samples of one name by the values of their labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in series.collect()
        for sample in family.samples
        if sample.name == name
    }


class Prometheus:
    """What it makes of the scrapes: increases by series, where one that is new starts from what is seen first."""

    def __init__(self) -> None:
        self.before: Seen = {}
        self.increase: dict[tuple[str, ...], float] = defaultdict(float)

    def scrape(self, series: StackSeries, name: str = GENERATED) -> None:
        now = scrape(series, name)
        for labels, value in now.items():
            before = self.before.get(labels, value)
            assert value >= before, f"{labels} went back from {before} to {value}"
            self.increase[labels] += value - before
        self.before = now


def test_ten_thousand_names_make_a_bounded_number_of_series() -> None:
    series = StackSeries()
    for i in range(10_000):
        ask(series, f"tenant{i % 3000}", f"adapter{i}")
    seen = scrape(series)
    assert len(seen) <= MAX_PAIRS + MAX_STACKS + MAX_TENANTS + 1
    assert len({adapter for _, adapter in seen} - {OTHER}) == MAX_STACKS
    assert sum(seen.values()) == 10_000


def test_who_is_used_more_takes_a_place() -> None:
    series = StackSeries()
    for i in range(MAX_STACKS):
        ask(series, "ann", f"early{i}", times=2)
    ask(series, "ann", "late")
    assert ("ann", "late") not in scrape(series)
    ask(series, "ann", "late", times=9)
    assert scrape(series)["ann", "late"] == 0  # from here on it counts by itself
    ask(series, "ann", "late", times=3)
    seen = scrape(series)
    assert (seen["ann", "late"], seen["ann", OTHER]) == (3, 10)
    assert len(seen) == MAX_STACKS + 1


def test_a_series_that_leaves_takes_no_token_with_it_that_was_not_seen() -> None:
    series, prometheus = StackSeries(), Prometheus()
    for i in range(MAX_STACKS):
        ask(series, "ann", f"early{i}", times=1 if i == 7 else 5)
    ask(series, "ann", "late")
    prometheus.scrape(series)
    ask(series, "ann", "late", times=30)
    series.add(GENERATED_TOKENS, "ann", stack("early7"), 100)  # comes after the scrape and before it leaves
    prometheus.scrape(series)
    assert ("ann", "early7") not in prometheus.before
    assert prometheus.increase["ann", OTHER] == 130
    assert sum(prometheus.increase.values()) == 130


@pytest.mark.parametrize("shape", ["private", "shared", "skewed"])
def test_rates_add_up_while_places_change_hands(shape: str) -> None:
    """However the use of adapters moves, the sum of all increases is what happened, and nothing goes back."""
    draw = random.Random(shape)
    series, prometheus = StackSeries(), Prometheus()
    for i in range(3 * MAX_STACKS):  # all that can be seen have been seen once
        ask(series, f"t{i % 150}", f"a{i}")
        ask(series, f"t{i % 150}", "common")
    ask(series, "nobody", "nothing")
    prometheus.scrape(series)
    happened = 0
    for turn in range(30):
        for _ in range(200):
            match shape:
                case "private":
                    number = draw.randrange(1000)
                    tenant, name = f"t{number % 150}", f"a{number}"
                case "shared":
                    tenant, name = f"t{draw.randrange(1000)}", f"a{draw.randrange(30)}"
                case _:
                    number = turn * 10 + int(draw.paretovariate(0.8))
                    tenant, name = f"t{number % 40}", f"a{number % 3000}"
            ask(series, tenant, name)
            happened += 1
        prometheus.scrape(series)
    # A series of `_other` that begins is seen first with what it has by then: that alone may be missing.
    assert 0.998 * happened <= sum(prometheus.increase.values()) <= happened


def test_histograms_move_as_counters_do() -> None:
    series, prometheus = StackSeries(), Prometheus()
    for i in range(MAX_STACKS):
        ask(series, "ann", f"early{i}", times=1 if i == 7 else 5)
        series.observe(FIRST_TOKENS, "ann", stack(f"early{i}"), 0.03)
        series.observe(REQUEST_DURATION, "ann", stack(f"early{i}"), 0.7, "Generate")
    series.observe(FIRST_TOKENS, "ann", stack("late"), 0.3)
    name = f"{FIRST_TOKENS.name}_bucket"
    prometheus.scrape(series, name)
    series.observe(FIRST_TOKENS, "ann", stack("early7"), 0.3)
    ask(series, "ann", "late", times=30)
    prometheus.scrape(series, name)
    assert prometheus.increase["ann", OTHER, "0.25"] == 0
    assert prometheus.increase["ann", OTHER, "0.5"] == prometheus.increase["ann", OTHER, "+Inf"] == 1
    durations = scrape(series, f"{REQUEST_DURATION.name}_count")
    assert durations["Generate", "ann", "early8"] == 1
    assert ("Generate", "ann", "early7") not in durations
    assert durations["Generate", "ann", OTHER] == 0  # a scrape has seen that call under its own label


def test_sums_by_adapter_hold_where_many_tenants_share_it() -> None:
    series = StackSeries()
    for i in range(5 * MAX_TENANTS):
        ask(series, f"tenant{i}", "common")
    seen = scrape(series)
    assert sum(value for (_, adapter), value in seen.items() if adapter == "common") == 5 * MAX_TENANTS
    assert seen[OTHER, "common"] == 5 * MAX_TENANTS - MAX_PAIRS


def test_sums_by_tenant_hold_where_one_has_many_adapters() -> None:
    series = StackSeries()
    for i in range(3 * MAX_STACKS):
        ask(series, "ann", f"adapter{i}")
    ask(series, "bob", "only")
    seen = scrape(series)
    assert seen["ann", OTHER] == 2 * MAX_STACKS
    assert seen["bob", OTHER] == 1


def test_the_base_needs_no_place() -> None:
    series = StackSeries()
    for i in range(2 * MAX_STACKS):
        ask(series, "ann", f"adapter{i}", times=2)
    ask(series, "ann")
    assert scrape(series)[OTHER, "base"] == 1


def test_series_go_with_the_adapter_that_they_name() -> None:
    series = StackSeries()
    for tenant in ("ann", "bob"):
        for names in (("acme",), ("json", "acme"), ("json",), ()):
            ask(series, tenant, *names)
            series.observe(FIRST_TOKENS, tenant, stack(*names), 0.1)
            series.observe(REQUEST_DURATION, tenant, stack(*names), 0.1, "Generate")
    everything = (GENERATED, f"{FIRST_TOKENS.name}_count", f"{REQUEST_DURATION.name}_count")
    series.adapter_deleted("acme", {"bob"})
    bobs = {("bob", name) for name in ("acme", "acme+json", "json", "base")}
    for name in everything:
        assert {labels[-2:] for labels in scrape(series, name)} == bobs | {("ann", "json"), ("ann", "base")}
    series.adapter_deleted("acme", ())
    series.adapter_deleted("json", ())
    for name in everything:
        assert {labels[-2:] for labels in scrape(series, name)} == {("ann", "base"), ("bob", "base")}


def test_a_request_under_way_brings_no_series_back() -> None:
    series = StackSeries()
    ask(series, "ann", "acme")
    series.adapter_deleted("acme", ())
    series.add(GENERATED_TOKENS, "ann", stack("acme"), 3)
    series.observe(REQUEST_DURATION, "ann", stack("acme"), 0.1, "Generate")
    assert scrape(series) == {("ann", OTHER): 3}
    # What is published again under the name counts anew.
    ask(series, "ann", "acme")
    assert scrape(series)["ann", "acme"] == 1


def test_deleted_adapters_make_room_for_new_ones() -> None:
    series = StackSeries()
    for i in range(3 * MAX_STACKS):
        ask(series, "ann", f"adapter{i}")
        series.adapter_deleted(f"adapter{i}", ())
    ask(series, "ann", "new")
    assert scrape(series) == {("ann", "new"): 1}


def test_ranking_keeps_what_is_used_often_among_a_hundred_thousand() -> None:
    places: Ranking[int] = Ranking(10)
    for i in range(100_000):
        places.use(i)
        if i > 1000 and i % 20 == 0:
            places.use(-1)
    assert -1 in places.settle()
    assert -1 in places
    assert len(places._candidates) <= 10 * ranking.CANDIDATES


def test_equals_do_not_change_places() -> None:
    places: Ranking[str] = Ranking(1)
    for key in ("a", "b") * 50:
        places.use(key)
    assert places.settle() == []
    for _ in range(20):
        places.use("b")
    assert places.settle() == ["b"]
    assert places.settle() == []


def test_use_of_long_ago_counts_less() -> None:
    now = 0.0
    places: Ranking[str] = Ranking(1, lambda: now)
    for _ in range(100):
        places.use("old")
    now = 5 * ranking.HALF_LIFE
    assert places.settle() == []
    for _ in range(5):
        places.use("new")
    assert places.settle() == ["new"]


def test_memory_stays_bounded_whatever_names_come() -> None:
    series = StackSeries()

    def many(offset: int) -> None:
        for i in range(offset, offset + 20_000):
            ask(series, f"tenant{i}", f"adapter{i}")

    many(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        many(20_000)
        scrape(series)
        many(40_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 1 << 20
