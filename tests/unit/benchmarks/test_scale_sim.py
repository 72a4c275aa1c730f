"""The simulation of replicas, on cases whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale_sim
from benchmarks.samples import Sample
from benchmarks.scale_model import (
    ROUTES,
    Ask,
    Size,
    Speed,
    Traffic,
    by_affinity,
    by_chance,
    make_trace,
    simulate,
    warm_memory,
)
from benchmarks.scale_validation import compare

SPEED = Speed(step=1.0, sequence=0.25, prompt_token=0.125, load=2.0)
SIZE = Size(adapters=2, running=4, batch_tokens=64)


def ask(at: float = 0.0, *adapters: str, prompt: int = 8, tokens: int = 3, prefix: tuple[bytes, ...] = ()) -> Ask:
    return Ask(at, frozenset(adapters), prompt, tokens, prefix)


def test_one_request_takes_its_steps() -> None:
    (answer,) = simulate([ask()], 1, SPEED, SIZE, by_affinity).answers
    # The prompt's step makes the first token, two more steps decode alone.
    assert (answer.first, answer.end) == (2.0, 2.0 + 2 * 1.25)


def test_two_requests_share_steps_and_a_full_batch_makes_others_wait() -> None:
    two = simulate([ask(), ask()], 1, SPEED, SIZE, by_affinity).answers
    # Both prompts in the second step, after the first request's own: 1 + 1, then steps of two sequences.
    assert max(answer.end for answer in two) < 2 * 4.5
    alone = simulate([ask(), ask()], 1, SPEED, Size(2, running=1, batch_tokens=64), by_affinity).answers
    assert sorted(answer.end for answer in alone) == [4.5, 9.0]


def test_a_missing_adapter_is_loaded_once_and_delays_its_request() -> None:
    outcome = simulate([ask(0, "x"), ask(20, "x")], 1, SPEED, SIZE, by_affinity)
    first, second = outcome.answers
    assert (first.missing, first.first) == (1, 2.0 + 2.0)
    assert (second.missing, second.first - second.at) == (0, 2.0)
    assert outcome.loads == 1


def test_the_adapter_that_was_used_longest_ago_goes_first() -> None:
    trace = [ask(20 * i, name) for i, name in enumerate(["x", "y", "x", "z", "x", "y"])]
    missing = [answer.missing for answer in simulate(trace, 1, SPEED, SIZE, by_affinity).answers]
    assert missing == [1, 1, 0, 1, 0, 1]


def test_a_known_prefix_is_not_computed_again() -> None:
    chain = (b"1", b"2")
    trace = [ask(0, prompt=200, prefix=chain), ask(100, prompt=200, prefix=chain)]
    first, second = simulate(trace, 1, SPEED, SIZE, by_affinity).answers
    assert (first.known, second.known) == (0, 128)
    assert (first.first - first.at, second.first - second.at) == (1 + 200 / 8, 1 + 72 / 8)


def test_two_replicas_do_twice_as_much_of_the_base() -> None:
    trace = [ask() for _ in range(64)]
    one, two = (
        max(answer.end for answer in simulate(trace, replicas, SPEED, SIZE, by_affinity, at_once=4 * replicas).answers)
        for replicas in (1, 2)
    )
    assert one == pytest.approx(2 * two, rel=0.05)


def test_affinity_hits_where_chance_misses() -> None:
    """Four adapters fit in two replicas of three places each, when each keeps its own."""
    trace = [ask(10 * i, f"a{i % 4}") for i in range(200)]
    size = Size(adapters=3, running=4, batch_tokens=64)
    affinity, chance = (simulate(trace, 2, SPEED, size, route) for route in (by_affinity, by_chance))
    assert affinity.loads == 4
    assert chance.loads > 20


def test_a_trace_is_repeatable_and_has_the_rate_that_was_asked_for() -> None:
    traffic = Traffic(requests=4000, rate=10.0, adapters=100, burst=2.0)
    trace = make_trace(traffic, seed=1)
    assert trace == make_trace(traffic, seed=1)
    assert trace != make_trace(traffic, seed=2)
    assert 4000 / trace[-1].at == pytest.approx(10.0, rel=0.1)
    popular = sum("a0" in each.adapters for each in trace)
    assert popular / 4000 == pytest.approx(1 / sum(1 / k for k in range(1, 101)), rel=0.15)


@pytest.mark.parametrize("route", ROUTES)
def test_warm_memories_fit(route: str) -> None:
    held = warm_memory(Traffic(1, 1.0, adapters=50), 4, Size(8, 1, 1), route, seed=0)
    assert len(held) == 4
    if route == "affinity":
        assert sorted(name for names in held for name in names) == sorted(f"a{n}" for n in range(32))


def test_a_comparison_holds_the_model_against_what_was_measured() -> None:
    samples = [Sample(0.0, (), tuple(range(32)), prompt_tokens=8) for _ in range(4)]
    found = compare(1, [0, 0, 1, 1], samples, 100.0, 0.5, SPEED)
    assert found.predicted_hit_rate == 0.5
    assert found.tokens_per_second == 1.28
    assert found.errors[0] == pytest.approx(abs(found.predicted_tokens_per_second / 1.28 - 1))
    assert found.errors[1] == 0.0


def test_a_quick_run_and_a_trace_of_ones_own(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    scale_sim.main(["--quick", "--json", str(output)])
    lines = json.loads(output.read_text())["lines"]
    assert {(line["replicas"], line["policy"]) for line in lines} == {(n, p) for n in (1, 2, 8) for p in ROUTES}
    hits = {line["policy"]: line["hit_rate"] for line in lines if line["replicas"] == 8 and line["arrivals"] == "even"}
    assert hits["affinity"] > 1.3 * max(hits["queue"], hits["chance"])
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0, "adapters": ["x"], "prompt": 10, "tokens": 2}\n' * 3)
    scale_sim.main(["--trace", str(trace), "--replicas", "2", "--json", str(output)])
    assert all(line["arrivals"] == "trace.jsonl" for line in json.loads(output.read_text())["lines"])
    with pytest.raises(ValueError, match="line 2"):
        scale_sim.read_trace(['{"at": 0, "adapters": [], "prompt": 1, "tokens": 1}', "{}"])
