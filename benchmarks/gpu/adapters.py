"""What adapters add to the products of one group: read by index, or gathered; microseconds by shape and load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from loramux_server.lora.bank import AdapterBank, HostAdapter, LoraPair
from loramux_server.lora.blocks import IndexedBlock, StaticBlock, used_ranks
from loramux_server.lora.slots import RowSegment

from .products import GROUPS, SMALL
from .timing import seconds


@dataclass(frozen=True, slots=True)
class Load:
    """Decode rows, each under ``depth`` of so many adapters of these ranks."""

    rows: int
    adapters: int
    ranks: tuple[int, ...]
    depth: int


LOADS = {
    "one of rank 16 @ 1": Load(1, 1, (16,), 1),
    "16 of rank 8 @ 16": Load(16, 16, (8,), 1),
    "16 of rank 16 @ 16": Load(16, 16, (16,), 1),
    "stacks of two @ 16": Load(16, 16, (16,), 2),
    "stacks of two @ 64": Load(64, 16, (16,), 2),
    "64 of rank 16 @ 64": Load(64, 64, (16,), 1),
    "16 of ranks 8, 16 and 64 @ 64": Load(64, 16, (8, 16, 64), 1),
}


@dataclass(frozen=True, slots=True)
class _Group:
    index: int
    names: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]
    columns: tuple[slice, ...] = ()


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, dict[str, dict[str, float]]]]:
    """Microseconds by group, load and form, so far. Forms by index only where their kernels run."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SMALL if quick else GROUPS:
        width, outs = GROUPS[name]
        group = _Group(0, tuple(f"m.{j}" for j in range(len(outs))), width, outs)
        found[name] = {}
        for title, load in list(LOADS.items())[: 2 if quick else None]:
            ranks = [load.ranks[i % len(load.ranks)] for i in range(load.adapters)]
            bank = AdapterBank([group], sum(ranks), device, torch.bfloat16)  # type: ignore[list-item]
            for i, rank in enumerate(ranks):
                bank.put(_adapter(group, f"d{i}", rank))
            segments = [
                RowSegment(1, tuple((bank.slot(f"d{(i + k) % load.adapters}"), 1.0) for k in range(load.depth)))
                for i in range(load.rows)
            ]
            blocks: dict[str, Any] = {"gathered": StaticBlock(bank, load.rows, used_ranks(segments))}
            if bank.by_index:
                blocks["by index"] = IndexedBlock.for_decoding(bank, load.rows)
            x = torch.randn(load.rows, width, device=device, dtype=torch.bfloat16)
            y = torch.zeros(load.rows, sum(outs), device=device, dtype=torch.bfloat16)
            found[name][title] = {}
            for form, block in blocks.items():
                with torch.inference_mode():
                    block.fill(segments)
                    found[name][title][form] = 1e6 * seconds(lambda: block.add(group, x, y), device)  # noqa: B023
            yield found


def _adapter(group: _Group, digest: str, rank: int) -> HostAdapter:
    pairs = {
        name: LoraPair(
            torch.zeros(rank, group.in_features, dtype=torch.bfloat16), torch.zeros(n, rank, dtype=torch.bfloat16), 1.0
        )
        for name, n in zip(group.names, group.out_features, strict=True)
    }
    return HostAdapter(digest, pairs)
