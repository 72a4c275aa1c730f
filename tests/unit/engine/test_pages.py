"""KV pages: every page in one place at any time, least recently used first, and no prefix where it does not belong."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loramux_server.core.types import AdapterVersion, Stack, StackEntry
from loramux_server.engine.scheduling import pages
from loramux_server.engine.scheduling.pages import PageCopy, PagePool, Prefix, chain, prefix_root, tenant_salt

SIZE = 4
ROOT = b"root"


def stack(*entries: tuple[str, float], name: str = "a") -> Stack:
    return Stack(tuple(StackEntry(AdapterVersion(name, 1, digest, 8), weight) for digest, weight in entries))


OWNERS = map(str, itertools.count())


def fill(pool: PagePool, tokens: list[int], root: bytes = ROOT) -> list[int]:
    """Compute ``tokens`` afresh and index their full blocks; the pages stay held."""
    owner = next(OWNERS)
    held = pool.begin(owner, root, tokens, Prefix())
    held += [pool.allocate() for _ in range(pool.needed(len(tokens)))]
    pool.extend(owner, tokens, len(tokens), held)
    return held


def found(pool: PagePool, root: bytes, tokens: list[int]) -> list[int]:
    """Pages of a prefix that ends where a page does."""
    prefix = pool.match(root, tokens)
    assert prefix.partial is None
    assert prefix.rest == 0
    return list(prefix.pages)


def test_a_prefix_is_found_again_after_its_owner_left() -> None:
    pool = PagePool(8, SIZE)
    tokens = list(range(10))
    held = fill(pool, tokens)
    pool.release(held)
    assert found(pool, ROOT, tokens) == held[:2]
    assert found(pool, ROOT, [*tokens[:4], 99, *tokens[5:]]) == held[:1]
    assert found(pool, ROOT, [99, *tokens[1:]]) == []
    assert found(pool, b"other", tokens) == []
    pool.check()


def test_a_prefix_is_found_by_its_tenant_alone() -> None:
    """The same prompt over the same shared adapter: a hit for its own tenant, a miss for all others."""
    pool, secret, tokens, used = PagePool(8, SIZE), b"s" * 32, list(range(9)), stack(("shared", 1.0))

    def root(tenant: str, secret: bytes = secret) -> bytes:
        return prefix_root("base", tenant_salt(secret, tenant), used)

    held = fill(pool, tokens, root("ann"))
    assert found(pool, root("ann"), tokens) == held[:2]
    for stranger in ("bob", "an", "ann ", "Ann", "", "_server", tenant_salt(secret, "ann").hex()):
        assert found(pool, root(stranger), tokens) == []
    # Whoever knows the tenant's name and all else finds nothing without the secret.
    assert found(pool, root("ann", b"t" * 32), tokens) == []
    assert found(pool, prefix_root("base", b"ann", used), tokens) == []


def test_the_last_token_is_always_left_to_compute() -> None:
    pool = PagePool(8, SIZE)
    held = fill(pool, list(range(8)))
    assert found(pool, ROOT, list(range(8))) == held[:1]
    assert found(pool, ROOT, list(range(9))) == held
    assert found(pool, ROOT, [0]) == []


def test_a_taken_page_outlives_its_first_owner() -> None:
    pool = PagePool(3, SIZE)
    tokens = list(range(8))
    first = fill(pool, tokens)
    pages = pool.begin("second", ROOT, tokens, pool.match(ROOT, [*tokens, 1]))
    assert pool.hit_tokens == 8
    pool.release(first)
    assert (pool.held, pool.available) == (2, 1)
    pool.end("second", pages)
    assert pool.held == 0
    pool.check()


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    pool = PagePool(4, SIZE)
    old = fill(pool, [*range(8)])
    new = fill(pool, [*range(20, 28)])
    pool.release(old)
    pool.release(new)
    assert [pool.allocate() for _ in range(4)] == [old[1], old[0], new[1], new[0]]
    assert found(pool, ROOT, [*range(9)]) == []
    pool.check()


def test_use_makes_a_prefix_recent() -> None:
    pool = PagePool(4, SIZE)
    old, new = fill(pool, [*range(4)]), fill(pool, [*range(20, 24)])
    pool.release(old)
    pool.release(new)
    pool.end("again", pool.begin("again", ROOT, [*range(5)], pool.match(ROOT, [*range(5)])))
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
    assert found(pool, ROOT, [*range(5)]) == first
    assert pool.available == 3
    pool.release(first)
    pool.check()


def test_clearing_forgets_what_nobody_holds() -> None:
    pool = PagePool(4, SIZE)
    gone, held = fill(pool, [*range(4)]), fill(pool, [*range(20, 24)])
    pool.release(gone)
    pool.clear_cached()
    assert found(pool, ROOT, [*range(5)]) == []
    assert found(pool, ROOT, [*range(20, 25)]) == held
    pool.check()


def test_a_collision_of_the_hash_gives_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids and parent are compared too: here all blocks of one length share one key."""
    monkeypatch.setattr(pages, "chain", lambda parent, tokens: b"same" + bytes([len(tokens)]))
    pool = PagePool(4, SIZE)
    held = fill(pool, [*range(4)])
    assert found(pool, ROOT, [*range(5)]) == held
    assert found(pool, ROOT, [9, 1, 2, 3, 4]) == []
    assert found(pool, b"another tenant", [*range(5)]) == []
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
            del pool._keys_of[held[0]]
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


def begin(pool: PagePool, owner: str, tokens: list[int]) -> tuple[list[int], PageCopy | None]:
    """An owner of ``tokens`` as far as they are known, with pages for the others; and what is to be copied."""
    prefix = pool.match(ROOT, tokens)
    held = pool.begin(owner, ROOT, tokens, prefix)
    held += [pool.allocate() for _ in range(pool.needed(len(tokens)) - len(held))]
    return held, pool.copy(owner)


def test_a_prefix_that_ends_inside_a_page_is_copied_by_blocks() -> None:
    """Blocks of two in pages of eight: found from the first page that its owner still writes to."""
    pool = PagePool(8, 8, block=2)
    tokens = [*range(13)]
    first, copy = begin(pool, "a", tokens)
    assert copy is None
    assert pool.match(ROOT, tokens) == Prefix()
    pool.extend("a", tokens, 5, first)
    assert pool.match(ROOT, tokens) == Prefix((), first[0], 4)
    assert pool.match(ROOT, tokens[:4]) == Prefix((), first[0], 2)
    pool.extend("a", tokens, 13, first)
    assert pool.match(ROOT, tokens) == Prefix((first[0],), first[1], 4)
    assert [pool.indexed(page) for page in first] == [8, 4]

    second, copy = begin(pool, "b", [*tokens[:11], 99])
    assert copy == PageCopy(first[1], second[1], 2)
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert pool.hit_tokens == 10
    assert [pool.refcount(page) for page in (*first, second[1])] == [2, 2, 1]
    pool.extend("b", [*tokens[:11], 99], 12, second)
    assert pool.copy("b") is None
    assert [pool.refcount(page) for page in (*first, second[1])] == [2, 1, 1]
    pool.end("a", first)
    pool.end("b", second)
    assert pool.held == 0
    pool.check()


def test_the_source_of_a_copy_is_kept_until_the_copy_is_made() -> None:
    pool = PagePool(3, 4, block=2)
    source = fill(pool, [1, 2])
    pool.release(source)
    held, copy = begin(pool, "b", [1, 2, 3])
    assert copy == PageCopy(source[0], held[0], 2)
    assert pool.allocate() not in (source[0], held[0])
    assert pool.available == 0
    pool.end("b", held)  # before it was made
    assert pool.available == 2
    pool.check()
    assert not pool.fits(3, pool.match(ROOT, [1, 2, 3]))
    assert not pool.fits(2, pool.match(ROOT, [1, 2, 3]))  # the source is one of the two
    assert pool.fits(2, pool.match(ROOT, [1, 2, 3]).whole)


def test_what_follows_a_copied_head_is_found_when_its_source_is_gone() -> None:
    """The copy holds the head too, and is found by it once it brings something of its own."""
    pool = PagePool(3, 8, block=2)
    source, _ = begin(pool, "a", [1, 2, 3, 4, 5])
    pool.extend("a", [1, 2, 3, 4, 5], 5, source)
    tokens = [1, 2, 3, 4, 9, 9, 9]
    held, _ = begin(pool, "b", tokens)
    pool.end("a", source)
    pool.extend("b", tokens, 7, held)
    assert pool.match(ROOT, tokens) == Prefix((), held[0], 6)
    assert pool.match(ROOT, [1, 2, 3, 4, 5]) == Prefix((), source[0], 4)
    assert [pool.allocate(), pool.allocate()][1] == source[0]
    assert pool.match(ROOT, [1, 2, 3, 4, 5]) == Prefix((), held[0], 4)
    pool.check()


def test_a_head_whose_index_is_gone_is_indexed_again() -> None:
    pool = PagePool(2, 8, block=2)
    source = fill(pool, [1, 2])
    pool.release(source)
    tokens = [1, 2, 3, 4, 5]
    held, _ = begin(pool, "b", tokens)
    pool.extend("b", tokens, 3, held)
    assert pool.indexed(held[0]) == 0
    assert pool.allocate() == source[0]
    assert pool.match(ROOT, tokens) == Prefix()
    pool.extend("b", tokens, 5, held)
    assert pool.match(ROOT, tokens) == Prefix((), held[0], 4)
    pool.check()


def test_pages_have_whole_blocks() -> None:
    assert PagePool(1, 256).block == 16
    assert PagePool(1, 4).block == 4
    with pytest.raises(ValueError, match="blocks of 16"):
        PagePool(1, 24)


class PoolMachine(RuleBasedStateMachine):
    """Random owners against a plain count of who holds what; a match only ever gives pages with the right tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(6, 4, block=2)
        self.owners: dict[str, tuple[list[int], list[int], int]] = {}  # tokens, pages and how many are computed
        self.content: dict[int, list[int]] = {}  # page -> all tokens up to the last that is computed

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=13))
    def admit(self, tokens: list[int]) -> None:
        prefix = self.pool.match(ROOT, tokens)
        for i, page in enumerate(prefix.pages):
            assert self.content[page] == tokens[: 4 * (i + 1)]
        known = 4 * len(prefix.pages) + prefix.rest
        if prefix.partial is not None:
            assert self.content[prefix.partial][:known] == tokens[:known]
        fresh = self.pool.needed(len(tokens)) - len(prefix.pages)
        if not self.pool.fits(fresh, prefix):
            prefix = prefix.whole
            known = 4 * len(prefix.pages)
        if not self.pool.fits(fresh, prefix):
            return
        owner = next(OWNERS)
        held = self.pool.begin(owner, ROOT, tokens, prefix)
        held += [self.pool.allocate() for _ in range(self.pool.needed(len(tokens)) - len(held))]
        self.owners[owner] = tokens, held, known
        self._write(tokens, held, 0, known)

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 100), length=st.integers(1, 5))
    def compute(self, which: int, length: int) -> None:
        owner = sorted(self.owners)[which % len(self.owners)]
        tokens, held, done = self.owners[owner]
        end = min(done + length, len(tokens))
        for at in range(done, end):
            assert self.pool.refcount(held[at // 4]) - self._is_source(held[at // 4]) == 1
            assert at % 4 >= self.pool.indexed(held[at // 4])
        self._write(tokens, held, done, end)
        self.pool.extend(owner, tokens, end, held)
        self.owners[owner] = tokens, held, end

    def _write(self, tokens: list[int], held: list[int], start: int, end: int) -> None:
        for at in range(start, end):
            self.content[held[at // 4]] = tokens[: at + 1]

    def _is_source(self, page: int) -> int:
        copies = (self.pool.copy(owner) for owner in self.owners)
        return sum(copy is not None and copy.source == page for copy in copies)

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 100))
    def leave(self, which: int) -> None:
        owner = sorted(self.owners)[which % len(self.owners)]
        self.pool.end(owner, self.owners.pop(owner)[1])

    @rule()
    def clear(self) -> None:
        self.pool.clear_cached()

    @invariant()
    def whole(self) -> None:
        self.pool.check()
        counts = Counter(page for _, held, _ in self.owners.values() for page in held)
        copies = filter(None, map(self.pool.copy, self.owners))
        counts.update(copy.source for copy in copies)
        assert self.pool.held == len(counts)
        assert [self.pool.refcount(p) for p in counts] == list(counts.values())


TestPool = PoolMachine.TestCase
