"""The parts of the benchmark at scale that need no server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import scale_table as table
from benchmarks.job import BankLoads
from benchmarks.page_cache import cached_share, drop, read_rate
from benchmarks.samples import Figures
from benchmarks.scale_parts import ColdLoads, Compared, Listing
from benchmarks.scrape import hit_shares, loads, parse, since
from benchmarks.seven_billion import SHAPE, compute
from benchmarks.traffic import asks, turns, zipf

FIGURES = Figures(16, 1024, 10.0, 100.0, 0.2, 0.4, 0.05, 1.5)
PAGE = """\
# TYPE loramux_adapter_hits_total counter
loramux_adapter_hits_total{tier="device"} 6.0
loramux_adapter_hits_total{tier="disk"} 2.0
# TYPE loramux_adapter_load_duration_seconds summary
loramux_adapter_load_duration_seconds_count{tier="host"} 4.0
loramux_adapter_load_duration_seconds_sum{tier="host"} 0.5
# TYPE loramux_preemptions_total counter
loramux_preemptions_total 3.0
# TYPE loramux_requests_total counter
loramux_requests_total{code="OK",method="Generate"} 9.0
"""


def test_zipf_asks_the_first_most_and_repeats_itself() -> None:
    draws = zipf(100, 20_000, seed=3)
    assert draws == zipf(100, 20_000, seed=3) != zipf(100, 20_000, seed=4)
    counts = Counter(draws)
    harmonic = sum(1 / k for k in range(1, 101))
    for k in (0, 1, 9, 49):
        assert counts[k] / 20_000 == pytest.approx(1 / (k + 1) / harmonic, rel=0.25)
    assert set(draws) <= set(range(100))


def test_in_turns_an_adapter_comes_back_after_all_others() -> None:
    assert turns(3, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_requests_name_their_adapter_and_begin_unlike_those_of_another_mark() -> None:
    first, second = asks([4, 7], 8, "one"), asks([4, 7], 8, "two")
    assert [(a.stack, a.tokens) for a in first] == [(((4, 1.0),), 8), (((7, 1.0),), 8)]
    assert len({a.prompt[:8] for a in (*first, *second)}) == 4


def test_metrics_are_read_and_subtracted_by_tier() -> None:
    after = parse(PAGE)
    assert after["loramux_adapter_hits_total{device}"] == 6
    assert after["loramux_preemptions_total"] == 3
    assert not any("requests" in key for key in after)
    added = since({"loramux_adapter_hits_total{disk}": 1.0, "loramux_preemptions_total": 3.0}, after)
    assert added["loramux_preemptions_total"] == 0
    assert hit_shares(added) == {"device": 6 / 7, "host": 0.0, "disk": 1 / 7}
    assert loads(added, "host") == (4, 0.5)
    assert loads(added, "device") == (0, 0.0)
    assert hit_shares({}) == {}


def test_the_shape_is_that_of_mistral_7b() -> None:
    # The model's published number of parameters, less two embeddings and 65 norms; PEFT's count at rank 16.
    assert SHAPE.linear_weights == 7_241_732_096 - 2 * 32_000 * 4096 - 65 * 4096
    found = compute(disk=1e9, memory=10e9)
    assert found.adapter_bytes == 2 * 41_943_040
    assert found.disk_seconds == pytest.approx(0.083886, rel=1e-3)
    assert found.memory_seconds == pytest.approx(0.016777, rel=1e-3)
    assert found.base_bytes == pytest.approx(0.5159 * 6_979_321_856 + 4 * 131_072_000, rel=1e-3)
    assert found.adapters_on_card == int((24e9 - found.base_bytes) / 83_886_080)


def test_files_can_be_dropped_from_memory_and_read_again(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000  # five blocks
    (tmp_path / "weights").write_bytes(data)
    assert cached_share(tmp_path) == 1.0
    drop(tmp_path)
    assert 0.0 <= cached_share(tmp_path) <= 1.0  # a file system in memory drops nothing
    assert read_rate([tmp_path], len(data)) > 0
    assert (tmp_path / "weights").read_bytes() == data
    assert cached_share(tmp_path) == 1.0


def test_goals_of_the_start() -> None:
    assert [line.met for line in table.start_lines([3.0, 9.0, 4.0], [8.9, 5.0, 30.0], 5000)] == [None, None, True]
    (*_, missed) = table.start_lines([3.0], [8.0], 5000)
    assert (missed.figure, missed.met) == ("+5.00 s", False)


@pytest.mark.parametrize(("rate", "met"), [(80.0, True), (79.9, False)])
def test_goal_of_the_traffic(rate: float, met: bool) -> None:
    found = compared(many=replace(FIGURES, tokens_per_second=rate))
    lines = table.popular_lines(found, few=16, many=1000, slots=32)
    assert lines[-1].met is met
    assert "device 50%, host 30%, disk 20%" in [line.figure for line in lines]
    assert "10, 20.0 ms" in [line.figure for line in lines]


@pytest.mark.parametrize(("first", "met"), [(0.6, True), (0.61, False)])
def test_goal_of_the_cliff(first: float, met: bool) -> None:
    (*_, last) = table.cliff_lines(compared(many=replace(FIGURES, first_p50=first)), slots=32)
    assert (last.figure, last.met) == (f"{first / 0.2:.2f}x", met)


def test_a_cold_load_is_both_tiers() -> None:
    found = ColdLoads((0.010, 0.012, 0.030), (0.005, 0.007, 0.001), (0.02, 0.03, 0.025), cached=0.0)
    assert found.whole == pytest.approx((0.015, 0.019, 0.031))
    goal = next(line for line in table.cold_lines(found, 5 << 20) if line.met is not None)
    assert (goal.met, goal.figure.split(",")[0]) == (True, "19.0 ms")


def test_the_table_says_what_is_missed() -> None:
    listing = Listing(250, (0.1, 0.2, 0.3), (0.1, 0.1, 0.1), (0.004,), 100 << 20)
    empty = replace(listing, listed=0, get=())
    out = StringIO()
    measured = BankLoads("cpu", (0.1,), (0.2,))
    lines = [
        *table.start_lines([3.0], [9.0], 250),
        *table.listing_lines(empty, listing),
        *table.seven_lines(compute(1e9, 1e10), measured, 1e9, 1e10),
    ]
    Console(file=out, width=150).print(table.make_table(lines, "bfloat16"))
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in out.getvalue().splitlines() if "│" in line]
    assert ["", "extra", "+6.00 s", "< 5 s", "missed"] in rows
    assert ["list", "all 250, 3 pages", "0.60 s", "", ""] in rows
    assert ["", "host to cpu p50, p95 (measured)", "200.0 ms, 200.0 ms", "", ""] in rows


def compared(many: Figures) -> Compared:
    hits = {"device": 0.5, "host": 0.3, "disk": 0.2}
    return Compared(FIGURES, many, hits, {"host": (10, 0.2), "device": (0, 0.0)})
