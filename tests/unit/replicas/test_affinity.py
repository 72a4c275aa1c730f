"""The policy that chooses a replica: residency, sets, spilling, cold adapters, training."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from loramux_server.replicas.routing.affinity import EXPECTED_SECONDS, HOME_TOKENS, LOAD_TOKENS, Affinity, Load, Work

IDS = ("a", "b", "c")


def work(*adapters: str, id: str = "w", tokens: int = 100, trains: bool = False) -> Work:
    return Work(id, frozenset(adapters), tokens, trains)


def loads(**given: Load) -> dict[str, Load]:
    return {id: given.get(id, Load()) for id in IDS}


def holding(*adapters: str, queued: int = 0) -> Load:
    return Load(frozenset(adapters), queued)


def test_the_replica_that_holds_the_stack_comes_first() -> None:
    given = loads(b=holding("x", "y"), c=holding("x"))
    assert Affinity().rank(work("x", "y"), given, 0)[:2] == ["b", "c"]
    assert Affinity().rank(work("y", "x"), given, 0)[:2] == ["b", "c"]


@pytest.mark.parametrize("missing", [1, 2])
def test_work_spills_when_the_queue_is_worth_more_than_the_loads(missing: int) -> None:
    stack = [f"x{number}" for number in range(missing)]
    worth = LOAD_TOKENS * missing

    def first(queued: int) -> str:
        return Affinity().rank(work(*stack), loads(b=holding(*stack, queued=queued)), 0)[0]

    assert first(worth - 1) == "b"
    assert first(worth + 1) != "b"


def test_a_hot_stack_spreads_over_those_that_have_loaded_it() -> None:
    policy, given = Affinity(), loads(a=holding("x"), b=holding("x"))
    tokens = Counter[str]()
    for number in range(40):
        each = work("x", id=str(number))
        first = policy.rank(each, given, 0)[0]
        policy.began(each, first, 0)
        tokens[first] += each.tokens
    sent = Counter(policy.rank(work("x", id=f"more {number}"), given, 0)[0] for number in range(10))
    assert set(sent) <= {"a", "b"}
    assert abs(tokens["a"] - tokens["b"]) <= 100


def test_a_cold_adapter_has_one_home_for_all_fronts() -> None:
    for number in range(50):
        cold = work(f"cold {number}", id=str(random.random()))
        home = Affinity().rank(cold, loads(), 0)[0]
        assert Affinity().rank(replace(cold, id="other"), loads(), 0)[0] == home
        # A little more to do at home does not send it elsewhere, much more does.
        busy = {id: Load(queued_tokens=HOME_TOKENS - 1 if id == home else 0) for id in IDS}
        assert Affinity().rank(cold, busy, 0)[0] == home
        busy[home] = Load(queued_tokens=HOME_TOKENS + 1)
        assert Affinity().rank(cold, busy, 0)[0] != home


def test_cold_adapters_have_homes_everywhere() -> None:
    homes = Counter(Affinity().rank(work(f"cold {number}"), loads(), 0)[0] for number in range(300))
    assert all(homes[id] > 60 for id in IDS)


def test_few_homes_move_when_a_replica_goes() -> None:
    names = [f"cold {number}" for number in range(200)]
    before = {name: Affinity().rank(work(name), loads(), 0)[0] for name in names}
    left = {id: Load() for id in IDS if id != "c"}
    after = {name: Affinity().rank(work(name), left, 0)[0] for name in names}
    assert all(after[name] == home for name, home in before.items() if home != "c")


def test_an_adapter_that_was_sent_for_is_not_loaded_elsewhere_too() -> None:
    policy, given = Affinity(), loads()
    first = work("x", id="1")
    home = policy.rank(first, given, 0)[0]
    policy.began(first, home, 0)
    # More to do there than a home alone would be worth.
    busy = {**given, home: Load(queued_tokens=LOAD_TOKENS - 1)}
    assert policy.rank(work("x", id="2"), busy, EXPECTED_SECONDS / 2)[0] == home
    assert policy.rank(work("x", id="2"), busy, EXPECTED_SECONDS)[0] != home


def test_work_that_is_over_counts_no_more() -> None:
    policy, given = Affinity(), loads(a=holding("x"))
    large = work("x", id="1", tokens=10 * LOAD_TOKENS)
    policy.began(large, "a", 0)
    assert policy.rank(work("x", id="2"), given, 0)[0] != "a"
    policy.ended("1")
    policy.ended("1")
    assert policy.rank(work("x", id="2"), given, 0)[0] == "a"


def test_a_replica_that_went_is_forgotten() -> None:
    policy = Affinity()
    policy.began(work("x", tokens=10**6), "a", 0)
    policy.gone("a")
    assert policy.rank(work("x"), loads(a=holding("x")), 0)[0] == "a"


def test_the_base_goes_where_least_is_queued_and_is_spread_among_equals() -> None:
    busy = loads(a=holding(queued=50), b=holding(queued=70))
    assert Affinity().rank(work(), busy, 0) == ["c", "a", "b"]
    firsts = Counter(Affinity().rank(work(id=str(number)), loads(), 0)[0] for number in range(300))
    assert all(firsts[id] > 60 for id in IDS)


def test_training_goes_where_fewest_jobs_are() -> None:
    policy, given = Affinity(), {"a": Load(jobs=1), "b": Load(queued_tokens=900), "c": Load(queued_tokens=500)}
    job = work(id="1", trains=True)
    assert policy.rank(job, given, 0) == ["c", "b", "a"]
    policy.began(job, "c", 0)
    assert policy.rank(work(id="2", trains=True), given, 0)[0] == "b"


def test_a_replica_that_takes_nothing_is_left_out_unless_it_is_named() -> None:
    given = loads(a=Load(frozenset({"x"}), accepts=False))
    assert "a" not in Affinity().rank(work("x"), given, 0)
    assert Affinity().rank(replace(work("x"), replica="a"), given, 0) == ["a"]
    assert Affinity().rank(replace(work("x"), replica="gone"), given, 0) == []
    assert Affinity().rank(work("x"), {"a": given["a"]}, 0) == []


def test_cold_adapters_fill_replicas_alike() -> None:
    policy, held = Affinity(), {id: set[str]() for id in IDS}
    for number in range(60):
        cold = work(f"cold {number}", id=str(number))
        given = {id: Load(frozenset(adapters)) for id, adapters in held.items()}
        replica = policy.rank(cold, given, number)[0]
        policy.began(cold, replica, number)
        policy.ended(cold.id)
        held[replica].add(f"cold {number}")
    assert all(17 <= len(adapters) <= 23 for adapters in held.values())
