"""The queue's order, and what it remembers of tenants that are not there."""

from __future__ import annotations

from loramux_server.engine.scheduling.fairness import FairQueue
from loramux_server.engine.scheduling.sequence import Sequence

from .simulation import sequence, stack_of


def run(queue: FairQueue, seq: Sequence, tokens: int) -> None:
    """A sequence runs alone from arrival to its end."""
    queue.add(seq)
    queue.remove(seq)
    queue.charge(seq, tokens)
    queue.leave(seq)


def test_the_least_served_tenant_is_first_and_a_preempted_sequence_first_of_its_own() -> None:
    queue = FairQueue()
    first, second, other = sequence("a1", tenant="a"), sequence("a2", tenant="a"), sequence("b1", tenant="b")
    for seq in (first, second, other):
        queue.add(seq)
    queue.remove(first)
    queue.charge(first, 10)
    assert [s.id for s in queue] == ["b1", "a2"]
    queue.remove(other)
    queue.charge(other, 11)
    queue.put_back(first)
    assert [s.id for s in queue] == ["a1", "a2"]
    assert len(queue) == 2


def test_a_token_of_rank_64_counts_double() -> None:
    queue = FairQueue()
    dear, cheap = sequence("dear", tenant="a", stack=stack_of(("x", 64, 1.0))), sequence("cheap", tenant="b")
    for seq in (dear, cheap, sequence("a", tenant="a"), sequence("b", tenant="b")):
        queue.add(seq)
    queue.charge(dear, 10)
    queue.charge(cheap, 19)
    assert [s.id for s in queue] == ["cheap", "b", "dear", "a"]


def test_tenants_that_are_gone_are_forgotten_once_they_have_nothing_to_pay_back() -> None:
    """A thousand of them, one after another, beside one that stays."""
    queue = FairQueue()
    stays = sequence("stays", tenant="stays")
    queue.add(stays)
    for i in range(1000):
        run(queue, sequence(f"r{i}", tenant=f"t{i}"), 5)
        queue.charge(stays, 6)
    assert queue.tenants <= 2
    queue.remove(stays)
    queue.leave(stays)
    assert queue.tenants == 0


def test_a_tenant_that_was_served_more_than_those_present_still_waits_when_it_comes_back() -> None:
    queue = FairQueue()
    queue.add(sequence("other", tenant="other"))
    run(queue, sequence("before", tenant="greedy"), 100)
    queue.add(sequence("after", tenant="greedy"))
    assert [s.id for s in queue] == ["other", "after"]


def test_who_comes_first_to_an_idle_server_is_not_ahead_by_all_that_others_were_served_before() -> None:
    queue = FairQueue()
    run(queue, sequence("before", tenant="old"), 1_000_000)
    new = sequence("new", tenant="new")
    queue.add(new)
    queue.add(sequence("again", tenant="old"))
    queue.charge(new, 1)
    assert [s.id for s in queue] == ["again", "new"]
