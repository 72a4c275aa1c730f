"""Prompts that begin alike go where the beginning was computed, as long as nothing speaks against it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from loramux_server.core.backend import GenerateCommand, ReplicaState, ScoreCommand
from loramux_server.core.types import AdapterVersion, Stack, StackEntry
from loramux_server.replicas.commands import work_of
from loramux_server.replicas.routing.affinity import LOAD_TOKENS, Affinity, Load, Work
from loramux_server.replicas.routing.fleet import Fleet, Report
from loramux_server.replicas.routing.prefixes import BLOCK_TOKENS, KEPT_SECONDS, MOST_BLOCKS, Prefixes, prefix_chain

ACME = AdapterVersion("acme", 1, "d" * 64, 8)
IDS = ("a", "b", "c")
LOADS = dict.fromkeys(IDS, Load())


def chain(blocks: int, first: int = 0, tenant: str = "t", stack: Stack = Stack()) -> tuple[bytes, ...]:  # noqa: B008
    return prefix_chain(tenant, stack, range(first, first + blocks * BLOCK_TOKENS))


def test_prompts_share_as_many_hashes_as_blocks() -> None:
    long = prefix_chain("t", Stack(), range(4 * BLOCK_TOKENS + 5))
    assert len(long) == 4
    other = prefix_chain("t", Stack(), [*range(2 * BLOCK_TOKENS), *range(500, 500 + 2 * BLOCK_TOKENS)])
    assert [one == two for one, two in zip(long, other, strict=True)] == [True, True, False, False]
    assert prefix_chain("t", Stack(), range(BLOCK_TOKENS - 1)) == ()
    assert len(chain(MOST_BLOCKS + 5)) == MOST_BLOCKS


@pytest.mark.parametrize(
    ("tenant", "stack"),
    [
        ("u", Stack((StackEntry(ACME),))),
        ("t", Stack()),
        ("t", Stack((StackEntry(ACME, 0.5),))),
        ("t", Stack((StackEntry(replace(ACME, digest="e" * 64)),))),
    ],
)
def test_another_tenant_or_stack_shares_nothing(tenant: str, stack: Stack) -> None:
    ours = chain(3, stack=Stack((StackEntry(ACME),)))
    assert not set(ours) & set(chain(3, tenant=tenant, stack=stack))


def test_work_goes_where_its_prompt_begins_and_away_when_that_costs_more() -> None:
    policy = Affinity()
    first = Work("1", tokens=400, prefix=chain(4))
    sent = policy.rank(first, LOADS, 0)[0]
    policy.began(first, sent, 0)
    policy.ended("1")
    longer = Work("2", tokens=600, prefix=chain(6))

    def best(queued: int, now: float = 0.0) -> str:
        return policy.rank(longer, {**LOADS, sent: Load(queued_tokens=queued)}, now)[0]

    assert best(4 * BLOCK_TOKENS - 1) == sent
    assert best(4 * BLOCK_TOKENS + 1) != sent
    assert best(4 * BLOCK_TOKENS - 1, KEPT_SECONDS) != sent, "it is not expected to be there any more"


def test_residency_comes_before_the_prefix() -> None:
    policy = Affinity()
    work = Work("1", frozenset({"x"}), 5000, prefix=chain(MOST_BLOCKS))
    policy.began(work, "a", 0)
    policy.ended("1")
    loads = {**LOADS, "b": Load(frozenset({"x"}))}
    later = 100.0
    assert policy.rank(work, loads, later)[0] == "b", "a has evicted the adapter, whatever it knows of the prompt"
    assert MOST_BLOCKS * BLOCK_TOKENS < LOAD_TOKENS


def test_new_beginnings_are_spread_and_each_has_one_home() -> None:
    firsts: Counter[str] = Counter()
    for number in range(300):
        works = [Work(str(id), prefix=chain(2, first=1000 * number)) for id in range(2)]
        homes = {Affinity().rank(work, LOADS, 0)[0] for work in works}
        assert len(homes) == 1
        firsts.update(homes)
    assert all(firsts[id] > 60 for id in IDS)


def test_memory_is_bounded_and_the_latest_are_kept() -> None:
    prefixes = Prefixes(kept_blocks=10)
    for number in range(20):
        prefixes.add(chain(4, first=1000 * number), number)
    assert len(prefixes) == 10
    assert prefixes.known_tokens(chain(4, first=19_000), 20) == 4 * BLOCK_TOKENS
    assert prefixes.known_tokens(chain(4, first=17_000), 20) == 2 * BLOCK_TOKENS, "its beginning is kept longest"
    assert prefixes.known_tokens(chain(4), 20) == 0
    prefixes.add(chain(1), 20 + KEPT_SECONDS)
    assert len(prefixes) == 1, "the others have expired"


def test_an_engine_that_starts_again_has_computed_nothing() -> None:
    fleet = Fleet(lambda: None)
    fleet.update(dict.fromkeys(IDS, Report()))
    work = Work("1", prefix=chain(4))
    home = fleet.rank(work, IDS)[0]
    other = next(id for id in IDS if id != home)
    fleet.began(work, other)
    fleet.ended("1")
    assert fleet.rank(work, IDS)[0] == other
    fleet.update({**dict.fromkeys(IDS, Report()), other: Report(state=ReplicaState.RESTARTING)})
    fleet.update(dict.fromkeys(IDS, Report()))
    assert fleet.rank(work, IDS)[0] == home


def test_a_generation_and_a_score_bring_the_chain_of_their_prompt() -> None:
    stack = Stack((StackEntry(ACME),))
    command = GenerateCommand("1", tuple(range(BLOCK_TOKENS + 1)), stack, tenant="t")
    assert work_of(command).prefix == chain(1, stack=stack)
    score = ScoreCommand("s", command.prompt_ids, (7,), stack, tenant=command.tenant)
    assert work_of(score).prefix == chain(1, stack=stack)
