"""Which beginnings of prompts a replica has computed lately. Pure: no clock, no I/O.

A prefix is known by a chain of hashes, one for each block of its tokens: the root holds the tenant and the stack, and
each block the hash before it. So two prompts share as many hashes as blocks, and none with another tenant's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile

from ...core.types import Stack
from .expiring import Expiring

BLOCK_TOKENS = 64
MOST_BLOCKS = 31
"""So many of a prompt count: together they are worth less than loading an adapter, which comes first."""
KEPT_SECONDS = 300.0
"""How long a block that nobody asks for is expected to stay in the replica's prefix cache."""
KEPT_BLOCKS = 16_384
"""Of one replica; those that were asked for longest ago are forgotten first."""


def prefix_chain(tenant: str, stack: Stack, prompt: Sequence[int]) -> tuple[bytes, ...]:
    """The hashes of a prompt's whole blocks, the first ``MOST_BLOCKS`` of them."""
    return tuple(_chain(tenant, stack, prompt))


def _chain(tenant: str, stack: Stack, prompt: Sequence[int]) -> Iterator[bytes]:
    blocks = min(len(prompt) // BLOCK_TOKENS, MOST_BLOCKS)
    if not blocks:
        return
    entries = tuple((entry.adapter.digest, entry.weight) for entry in stack.entries)
    last = blake2b(repr((tenant, entries)).encode(), digest_size=8).digest()
    ids = array("q", prompt[: blocks * BLOCK_TOKENS])
    for block in range(blocks):
        part = ids[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS].tobytes()
        last = blake2b(last + part, digest_size=8).digest()
        yield last


class Prefixes:
    """The blocks that one replica was sent lately. Times are seconds."""

    def __init__(self, kept_seconds: float = KEPT_SECONDS, kept_blocks: int = KEPT_BLOCKS) -> None:
        self._blocks: Expiring[bytes] = Expiring(kept_seconds, kept_blocks)

    def add(self, chain: Sequence[bytes], now: float) -> None:
        """A prompt was sent there. Its first block is forgotten last: without it the others are worth nothing."""
        self._blocks.add(reversed(chain), now)

    def known_tokens(self, chain: Sequence[bytes], now: float) -> int:
        """Tokens at the beginning of a prompt that need not be computed there again."""
        return BLOCK_TOKENS * sum(1 for _ in takewhile(lambda block: self._blocks.holds(block, now), chain))

    def __len__(self) -> int:
        return len(self._blocks)
