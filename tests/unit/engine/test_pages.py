"""KV pages: every page in one place at any time, least recently used first, and no prefix where it does not belong."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loramux_server.core.types import AdapterVersion, Stack, StackEntry
from loramux_server.engine.scheduling import pages
from loramux_server.engine.scheduling.pages import PagePool, chain, prefix_root, tenant_salt
from tests.examples import examples

SIZE = 4
ROOT = b"root"


def stack(*entries: tuple[str, float], name: str = "a") -> Stack:
    return Stack(tuple(StackEntry(AdapterVersion(name, 1, digest, 8), weight) for digest, weight in entries))


def fill(pool: PagePool, tokens: list[int], root: bytes = ROOT) -> list[int]:
    """Compute ``tokens`` afresh and index their full pages; the pages stay held."""
    held = [pool.allocate() for _ in range(pool.needed(len(tokens)))]
    key = root
    for i in range(len(tokens) // pool.page_size):
        key = pool.publish(key, tokens[i * pool.page_size : (i + 1) * pool.page_size], held[i])
    return held


def test_a_prefix_is_found_again_after_its_owner_left() -> None:
    pool = PagePool(8, SIZE)
    tokens = list(range(10))
    held = fill(pool, tokens)
    pool.release(held)
    assert pool.match(ROOT, tokens) == held[:2]
    assert pool.match(ROOT, [*tokens[:4], 99, *tokens[5:]]) == held[:1]
    assert pool.match(ROOT, [99, *tokens[1:]]) == []
    assert pool.match(b"other", tokens) == []
    pool.check()


def test_a_prefix_is_found_by_its_tenant_alone() -> None:
    """The same prompt over the same shared adapter: a hit for its own tenant, a miss for all others."""
    pool, secret, tokens, used = PagePool(8, SIZE), b"s" * 32, list(range(9)), stack(("shared", 1.0))

    def root(tenant: str, secret: bytes = secret) -> bytes:
        return prefix_root("base", tenant_salt(secret, tenant), used)

    held = fill(pool, tokens, root("ann"))
    assert pool.match(root("ann"), tokens) == held[:2]
    for stranger in ("bob", "an", "ann ", "Ann", "", "_server", tenant_salt(secret, "ann").hex()):
        assert pool.match(root(stranger), tokens) == []
    # Whoever knows the tenant's name and all else finds nothing without the secret.
    assert pool.match(root("ann", b"t" * 32), tokens) == []
    assert pool.match(prefix_root("base", b"ann", used), tokens) == []


def test_the_last_token_is_always_left_to_compute() -> None:
    pool = PagePool(8, SIZE)
    held = fill(pool, list(range(8)))
    assert pool.match(ROOT, list(range(8))) == held[:1]
    assert pool.match(ROOT, list(range(9))) == held
    assert pool.match(ROOT, [0]) == []


def test_a_taken_page_outlives_its_first_owner() -> None:
    pool = PagePool(3, SIZE)
    tokens = list(range(8))
    first = fill(pool, tokens)
    found = pool.match(ROOT, [*tokens, 1])
    pool.take(found)
    assert pool.hit_tokens == 8
    pool.release(first)
    assert (pool.held, pool.available) == (2, 1)
    pool.release(found)
    assert pool.held == 0
    pool.check()


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    pool = PagePool(4, SIZE)
    old = fill(pool, [*range(8)])
    new = fill(pool, [*range(20, 28)])
    pool.release(old)
    pool.release(new)
    assert [pool.allocate() for _ in range(4)] == [old[1], old[0], new[1], new[0]]
    assert pool.match(ROOT, [*range(9)]) == []
    pool.check()


def test_use_makes_a_prefix_recent() -> None:
    pool = PagePool(4, SIZE)
    old, new = fill(pool, [*range(4)]), fill(pool, [*range(20, 24)])
    pool.release(old)
    pool.release(new)
    pool.take(pool.match(ROOT, [*range(5)]))
    pool.release(old)
    free = [pool.allocate() for _ in range(2)]
    assert pool.allocate() == new[0], free


def test_a_double_release_is_a_defect_and_says_so() -> None:
    pool = PagePool(2, SIZE)
    page = pool.allocate()
    pool.release([page])
    with pytest.raises(RuntimeError, match="twice"):
        pool.release([page])


def test_two_owners_of_the_same_tokens_index_one_page() -> None:
    pool = PagePool(4, SIZE)
    first, second = fill(pool, [*range(4)]), fill(pool, [*range(4)])
    assert first != second
    pool.release(second)
    assert pool.match(ROOT, [*range(5)]) == first
    assert pool.available == 3
    pool.release(first)
    pool.check()


def test_clearing_forgets_what_nobody_holds() -> None:
    pool = PagePool(4, SIZE)
    gone, held = fill(pool, [*range(4)]), fill(pool, [*range(20, 24)])
    pool.release(gone)
    pool.clear_cached()
    assert pool.match(ROOT, [*range(5)]) == []
    assert pool.match(ROOT, [*range(20, 25)]) == held
    pool.check()


def test_a_collision_of_the_hash_gives_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids and parent are compared too: here all blocks of one length share one key."""
    monkeypatch.setattr(pages, "chain", lambda parent, tokens: b"same" + bytes([len(tokens)]))
    pool = PagePool(4, SIZE)
    held = fill(pool, [*range(4)])
    assert pool.match(ROOT, [*range(5)]) == held
    assert pool.match(ROOT, [9, 1, 2, 3, 4]) == []
    assert pool.match(b"another tenant", [*range(5)]) == []
    other = fill(pool, [9, 1, 2, 3])
    pool.release([*held, *other])
    pool.check()


@pytest.mark.parametrize("damage", ["lost", "twice", "index"])
def test_check_notices_damage(damage: str) -> None:
    pool = PagePool(4, SIZE)
    held = fill(pool, [*range(4)])
    pool.release(held)
    pool.check()
    match damage:
        case "lost":
            pool._free.pop()
        case "twice":
            pool._free.append(held[0])
        case "index":
            del pool._key_of[held[0]]
    with pytest.raises(AssertionError):
        pool.check()


A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    "other",
    [
        prefix_root("base2", b"salt", stack((A, 1.0))),
        prefix_root("base", b"salt2", stack((A, 1.0))),
        prefix_root("base", b"salt", stack((A, 0.5))),
        prefix_root("base", b"salt", stack((A, -1.0))),
        prefix_root("base", b"salt", stack((B, 1.0))),
        prefix_root("base", b"salt", stack()),
        prefix_root("base", b"salt", stack((A, 1.0), (B, 1.0))),
        prefix_root("base", b"salt", stack((B, 1.0), (A, 1.0))),
        prefix_root("base", A.encode(), stack()),
        prefix_root("base", b"salt" + A.encode(), stack()),
        prefix_root(f"base{A}", b"salt", stack()),
        prefix_root("bases", b"alt", stack((A, 1.0))),
        prefix_root("", b"basesalt", stack((A, 1.0))),
    ],
)
def test_another_root(other: bytes) -> None:
    assert other != prefix_root("base", b"salt", stack((A, 1.0)))


def test_the_order_of_a_stack_is_part_of_the_root() -> None:
    assert prefix_root("", b"", stack((A, 1.0), (B, 0.5))) != prefix_root("", b"", stack((B, 0.5), (A, 1.0)))


def test_names_are_no_part_of_the_root() -> None:
    assert prefix_root("", b"", stack((A, 1.0))) == prefix_root("", b"", stack((A, 1.0), name="other"))


parts = st.tuples(
    st.text(max_size=4),
    st.binary(max_size=4),
    st.lists(st.tuples(st.text("ab", max_size=3), st.sampled_from([0.5, 1.0, -1.0])), max_size=3),
)


@given(parts, parts)
def test_roots_are_equal_only_for_equal_parts(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    roots = [prefix_root(base, salt, stack(*entries)) for base, salt, entries in (one, other)]
    assert (roots[0] == roots[1]) == (one == other)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_chains_are_equal_only_for_equal_blocks(one: list[int], other: list[int]) -> None:
    assert (chain(ROOT, one) == chain(ROOT, other)) == (one == other)
    assert chain(ROOT, one) != chain(b"r00t", one)


class PoolMachine(RuleBasedStateMachine):
    """Random owners against a plain count of who holds what; a match only ever gives pages with the right tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(6, 2)
        self.owners: list[tuple[list[int], list[int]]] = []  # tokens, pages
        self.content: dict[int, tuple[int, ...]] = {}  # page -> all tokens up to its end

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=8))
    def admit(self, tokens: list[int]) -> None:
        hit = self.pool.match(ROOT, tokens)
        for i, page in enumerate(hit):
            assert self.content[page] == tuple(tokens[: 2 * (i + 1)])
        fresh = self.pool.needed(len(tokens)) - len(hit)
        if not self.pool.fits(fresh, hit):
            return
        self.pool.take(hit)
        held = hit + [self.pool.allocate() for _ in range(fresh)]
        key = ROOT
        for i in range(len(tokens) // 2):
            self.content[held[i]] = tuple(tokens[: 2 * (i + 1)])
            key = self.pool.publish(key, tokens[2 * i : 2 * i + 2], held[i])
        self.owners.append((tokens, held))

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 100))
    def leave(self, which: int) -> None:
        _, held = self.owners.pop(which % len(self.owners))
        self.pool.release(held)

    @rule()
    def clear(self) -> None:
        self.pool.clear_cached()

    @invariant()
    def whole(self) -> None:
        self.pool.check()
        counts = Counter(page for _, held in self.owners for page in held)
        assert self.pool.held == len(counts)
        assert [self.pool.refcount(p) for p in counts] == list(counts.values())


TestPool = PoolMachine.TestCase
TestPool.settings = examples(40, stateful_step_count=30)
