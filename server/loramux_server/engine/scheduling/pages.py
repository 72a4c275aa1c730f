"""Ownership of KV pages: who holds which, and which prefixes are cached for reuse. Numbers only, no tensors.

A page is free (listed in ``_free``), held (``_refs`` > 0) or cached (no holder, but its content is indexed by a prefix
key; the least recently used of these are taken when free pages run out).

Prefix keys are chains of SHA-256 over type-tagged parts: the root holds base, quantisation, server-made tenant salt
and the ordered (adapter digest, weight) pairs; each block adds its token ids. Names never enter. An entry also keeps
its token ids and its parent's key, and both are compared on a hit, so a collision of the hash alone gives no hit.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ...core.types import Stack


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
class _Entry:
    page: int
    parent: bytes
    tokens: tuple[int, ...]


class PagePool:
    """Counts and lends ``pages`` pages of ``page_size`` tokens."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.pages, self.page_size = pages, page_size
        self.hit_tokens = 0
        self._free = list(range(pages - 1, -1, -1))
        self._refs = [0] * pages
        self._index: dict[bytes, _Entry] = {}
        self._key_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._chains: dict[str, list[bytes]] = {}  # owner -> prefix keys of its full pages, the root first

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

    def in_prefix_cache(self, page: int) -> bool:
        """Whether later prompts may find a page by its content."""
        return page in self._key_of

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
                if page in self._key_of:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def match(self, root: bytes, tokens: Seq[int]) -> list[int]:
        """Pages that already hold the longest whole-page prefix of ``tokens``, not yet taken.

        At least the last token is left to compute, because its logits are wanted.
        """
        found: list[int] = []
        parent = root
        for start in range(0, len(tokens) - self.page_size, self.page_size):
            block = tuple(tokens[start : start + self.page_size])
            key = chain(parent, block)
            entry = self._index.get(key)
            if entry is None or entry.tokens != block or entry.parent != parent:
                break
            found.append(entry.page)
            parent = key
        return found

    def take(self, pages: Seq[int]) -> None:
        """Hold pages that :meth:`match` found."""
        for page in pages:
            if self._refs[page] == 0:
                del self._cached[page]
            self._refs[page] += 1
        self.hit_tokens += len(pages) * self.page_size

    def fits(self, pages: int, hit: Seq[int]) -> bool:
        """Whether ``pages`` more can be lent to the one who takes what :meth:`match` found."""
        return pages <= self.available - sum(self._refs[page] == 0 for page in hit)

    def begin(self, owner: str, root: bytes, tokens: Seq[int], hit: Seq[int]) -> None:
        """Hold pages that :meth:`match` found, as the head of the prefixes that ``owner`` will publish."""
        self.take(hit)
        self._chains[owner] = [root]
        self.extend(owner, tokens, len(hit) * self.page_size, hit)

    def extend(self, owner: str, tokens: Seq[int], computed: int, pages: Seq[int]) -> None:
        """Publish those of the owner's ``pages`` that became full: ``computed`` of its tokens are in them."""
        keys, size = self._chains[owner], self.page_size
        while len(keys) * size <= computed:
            at = len(keys) - 1
            keys.append(self.publish(keys[-1], tokens[at * size : (at + 1) * size], pages[at]))

    def end(self, owner: str, pages: Seq[int]) -> None:
        """Take all pages of an owner back."""
        del self._chains[owner]
        self.release(pages)

    def publish(self, parent: bytes, tokens: Seq[int], page: int) -> bytes:
        """Index a full, computed page for reuse and return its key."""
        block = tuple(tokens)
        key = chain(parent, block)
        if key not in self._index and page not in self._key_of:
            self._index[key] = _Entry(page, parent, block)
            self._key_of[page] = key
        return key

    def clear_cached(self) -> None:
        """Forget all prefixes that nobody holds."""
        while self._cached:
            page, _ = self._cached.popitem()
            self._forget(page)
            self._free.append(page)

    def _forget(self, page: int) -> None:
        del self._index[self._key_of.pop(page)]

    def check(self) -> None:
        """Raise AssertionError unless every page is in exactly one place. Cheap enough to run when idle."""
        free, kept = set(self._free), set(self._cached)
        held = {p for p in range(self.pages) if self._refs[p]}
        if len(free) != len(self._free) or free & kept or free & held or kept & held:
            raise AssertionError("a page is in two places")
        if len(free) + len(kept) + len(held) != self.pages:
            raise AssertionError("a page is lost")
        if not kept <= self._key_of.keys() or {e.page for e in self._index.values()} != self._key_of.keys():
            raise AssertionError("the prefix index names a page that it does not have")
