"""Ownership of KV pages: who holds which, and which prefixes are cached for reuse. Numbers only, no tensors.

A page is free (listed in ``_free``), held (``_refs`` > 0) or cached (no holder, but its content is indexed by prefix
keys; the least recently used of these are taken when free pages run out).

Prefix keys are chains of SHA-256 over type-tagged parts: the root holds base, quantisation, server-made tenant salt
and the ordered (adapter digest, weight) pairs; each block adds its token ids. Names never enter. An entry also keeps
its token ids and its parent's key, and both are compared on a hit, so a collision of the hash alone gives no hit.

A block is what a prefix grows by: BLOCK tokens, or a page where that is smaller. Whole pages of a known prefix are
shared. Where it ends inside a page, the step copies that page's head into one that the new owner writes to: nobody
writes to a page that others read, though its own owner may still write behind the blocks that are indexed.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ...core.types import Stack

BLOCK = 16
"""Tokens. Larger ones find less of a prefix, smaller ones cost more hashes."""


def tenant_salt(secret: bytes, tenant: str) -> bytes:
    """What keeps a tenant's prefixes apart: 32 bytes that nobody can work out without the ``secret``."""
    return hmac.digest(secret, tenant.encode(), "sha256")


def prefix_root(base_id: str, salt: bytes, stack: Stack) -> bytes:
    """Key that all prefixes of one base, tenant and stack start from."""
    parts: list[tuple[bytes, bytes]] = [(b"base", base_id.encode()), (b"salt", salt)]
    for digest, weight in stack.key:
        parts += [(b"adapter", digest.encode()), (b"weight", struct.pack("<d", weight))]
    hasher = hashlib.sha256()
    for tag, value in parts:
        hasher.update(struct.pack("<II", len(tag), len(value)) + tag + value)
    return hasher.digest()


def chain(parent: bytes, tokens: Seq[int]) -> bytes:
    """Key of the block of ``tokens`` that follows ``parent``."""
    return hashlib.sha256(b"block" + parent + struct.pack(f"<{len(tokens)}q", *tokens)).digest()


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where the keys and values of a known prefix lie: whole pages, then ``rest`` tokens at the head of ``partial``."""

    pages: tuple[int, ...] = ()
    partial: int | None = None
    rest: int = 0

    @property
    def whole(self) -> Prefix:
        """What of it can be had without a copy."""
        return Prefix(self.pages)

    @property
    def sources(self) -> tuple[int, ...]:
        """All pages that are read."""
        return self.pages if self.partial is None else (*self.pages, self.partial)


@dataclass(frozen=True, slots=True)
class PageCopy:
    """The first ``tokens`` positions of the page ``source``, to be copied to ``target`` before a step writes there."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A block: the tokens after ``parent``. Each of ``pages`` holds it, and the blocks before it in a page."""

    parent: bytes
    tokens: tuple[int, ...]
    pages: dict[int, None]  # in the order in which they came


@dataclass(slots=True)
class _Owner:
    keys: list[bytes]
    """Prefix keys of its full blocks, the root first."""
    copy: PageCopy | None = None
    """Due before its next step; until then the source is held."""


class PagePool:
    """Counts and lends ``pages`` pages of ``page_size`` tokens, a multiple of BLOCK or less than it."""

    def __init__(self, pages: int, page_size: int, block: int = BLOCK) -> None:
        self.pages, self.page_size, self.block = pages, page_size, min(page_size, block)
        if page_size % self.block:
            raise ValueError(f"pages of {page_size} tokens have no whole number of blocks of {self.block}")
        self.hit_tokens = 0
        self._free = list(range(pages - 1, -1, -1))
        self._refs = [0] * pages
        self._index: dict[bytes, _Entry] = {}
        self._keys_of: dict[int, list[bytes]] = {}  # of a page's indexed blocks
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._owners: dict[str, _Owner] = {}

    @property
    def available(self) -> int:
        """Pages that can be lent now."""
        return len(self._free) + len(self._cached)

    @property
    def held(self) -> int:
        return self.pages - self.available

    def refcount(self, page: int) -> int:
        """How many sequences hold a page."""
        return self._refs[page]

    def indexed(self, page: int) -> int:
        """Tokens at the head of a page that later prompts may find."""
        return len(self._keys_of.get(page, ())) * self.block

    def needed(self, tokens: int) -> int:
        """Pages that hold ``tokens`` tokens."""
        return -(-tokens // self.page_size)

    def allocate(self) -> int:
        """Lend a page. The caller has checked ``available``."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        self._refs[page] = 1
        return page

    def release(self, pages: Seq[int]) -> None:
        """Give pages back, last first, so that the tail of a cached prefix is taken before its head."""
        for page in reversed(pages):
            self._refs[page] -= 1
            if self._refs[page] < 0:
                raise RuntimeError(f"page {page} released twice")
            if self._refs[page] == 0:
                if page in self._keys_of:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def match(self, root: bytes, tokens: Seq[int]) -> Prefix:
        """Where the longest known prefix of ``tokens`` lies, in whole blocks; nothing is taken yet.

        At least the last token is left to compute, because its logits are wanted.
        """
        found: list[int] = []
        page, rest, parent = None, 0, root
        for start in range(0, len(tokens) - self.block, self.block):
            part = tuple(tokens[start : start + self.block])
            key = chain(parent, part)
            entry = self._index.get(key)
            if entry is None or entry.tokens != part or entry.parent != parent:
                break
            page, rest, parent = next(iter(entry.pages)), rest + self.block, key
            if rest == self.page_size:
                found.append(page)
                page, rest = None, 0
        return Prefix(tuple(found), page, rest)

    def fits(self, pages: int, prefix: Prefix) -> bool:
        """Whether ``pages`` more can be lent to the one who takes what :meth:`match` found."""
        return pages <= self.available - sum(self._refs[page] == 0 for page in prefix.sources)

    def begin(self, owner: str, root: bytes, tokens: Seq[int], prefix: Prefix) -> list[int]:
        """Hold what :meth:`match` found, as the head of the prefixes that ``owner`` will publish; give its pages.

        The last of them is the target of :meth:`copy` where there is one.
        """
        self._take(prefix.sources)
        pages, state = list(prefix.pages), _Owner([root])
        if prefix.partial is not None:
            state.copy = PageCopy(prefix.partial, self.allocate(), prefix.rest)
            pages.append(state.copy.target)
        self._owners[owner] = state
        self._publish(state.keys, tokens, len(prefix.pages) * self.page_size, pages)
        self.hit_tokens += len(prefix.pages) * self.page_size + prefix.rest
        return pages

    def copy(self, owner: str) -> PageCopy | None:
        """What must be copied before the owner's next step."""
        return self._owners[owner].copy

    def extend(self, owner: str, tokens: Seq[int], computed: int, pages: Seq[int]) -> None:
        """Note a step: ``computed`` of the owner's tokens are in its ``pages``. Blocks that became full are indexed."""
        state = self._owners[owner]
        self._drop_copy(state)
        self._publish(state.keys, tokens, computed, pages)

    def end(self, owner: str, pages: Seq[int]) -> None:
        """Take all pages of an owner back."""
        self._drop_copy(self._owners.pop(owner))
        self.release(pages)

    def clear_cached(self) -> None:
        """Forget all prefixes that nobody holds."""
        while self._cached:
            page, _ = self._cached.popitem()
            self._forget(page)
            self._free.append(page)

    def _take(self, pages: Seq[int]) -> None:
        for page in pages:
            if self._refs[page] == 0:
                del self._cached[page]
            self._refs[page] += 1

    def _drop_copy(self, state: _Owner) -> None:
        if state.copy is not None:
            self.release([state.copy.source])
            state.copy = None

    def _publish(self, keys: list[bytes], tokens: Seq[int], computed: int, pages: Seq[int]) -> None:
        """Index the full blocks that have no key yet."""
        while len(keys) * self.block <= computed:
            start = (len(keys) - 1) * self.block
            keys.append(chain(keys[-1], tokens[start : start + self.block]))
            if keys[-1] not in self._index:  # what another page holds needs no second one, unless more follows it
                self._index_page(pages[start // self.page_size], keys, tokens)

    def _index_page(self, page: int, keys: Seq[bytes], tokens: Seq[int]) -> None:
        """Let a page be found by all its blocks up to that of the last key."""
        mine = self._keys_of.get(page, [])
        last = len(keys) - 2
        per_page = self.page_size // self.block
        for at in range(last - last % per_page + len(mine), last + 1):
            parent, key = keys[at : at + 2]
            part = tuple(tokens[at * self.block : (at + 1) * self.block])
            entry = self._index.setdefault(key, _Entry(parent, part, {}))
            if (entry.parent, entry.tokens) != (parent, part):
                return  # a collision
            entry.pages[page] = None
            mine.append(key)
            self._keys_of[page] = mine

    def _forget(self, page: int) -> None:
        for key in self._keys_of.pop(page):
            del self._index[key].pages[page]
            if not self._index[key].pages:
                del self._index[key]

    def check(self) -> None:
        """Raise AssertionError unless every page is in exactly one place. Cheap enough to run when idle."""
        free, kept = set(self._free), set(self._cached)
        held = {p for p in range(self.pages) if self._refs[p]}
        if len(free) != len(self._free) or free & kept or free & held or kept & held:
            raise AssertionError("a page is in two places")
        if len(free) + len(kept) + len(held) != self.pages:
            raise AssertionError("a page is lost")
        named = {page for entry in self._index.values() for page in entry.pages}
        if not kept <= self._keys_of.keys() or named != self._keys_of.keys():
            raise AssertionError("the prefix index names a page that it does not have")
