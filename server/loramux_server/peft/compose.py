"""Merges the adapters of a stack into one, module by module.

CAT puts the factors side by side, so that the product is the stack's sum. SVD cuts that sum to a rank. The other
methods are PEFT's: they combine the A factors and the B factors apart, so cross terms of different adapters come in
and the result is not the stack's sum, however the weights are chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.compose import ComposeCommand, ComposeMethod, ComposeResult
from ..core.errors import Code, Error, invalid_field
from ..lora.bank import LoraPair
from ..store.blobs.reader import BlobReader
from .folder import read_adapter, write_folder
from .lora_config import LoraConfig, layer_index


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter's share of a module in float32: delta = factor * B @ A, A [r, in], B [out, r]."""

    a: Tensor
    b: Tensor
    factor: float


def compose(command: ComposeCommand) -> ComposeResult:
    """Merge ``command.stack`` and write the result as a PEFT folder.

    Raises INVALID_ARGUMENT when the ranks don't suit the method or the result's rank is above ``max_rank``,
    FAILED_PRECONDITION when nothing is left of the delta, and what reading and writing adapters raise.
    """
    blobs = BlobReader(Path(command.blobs))
    sources = [
        (read_adapter(blobs, e.adapter, command.modules, command.base_fingerprint, max_rank=1 << 20), e.weight)
        for e in command.stack.entries
    ]
    names = [name for name in command.modules if any(name in pairs for pairs, _ in sources)]
    merged: dict[str, LoraPair] = {}
    missed = whole = 0.0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(command.seed)
        merge = _method(command, max(e.adapter.rank for e in command.stack.entries))
        for name in names:
            parts = [_part(pairs[name], weight) for pairs, weight in sources if name in pairs]
            merged[name] = pair = merge(name, parts)
            before, after = _product(parts), (pair.b * pair.scaling, pair.a)
            whole += _squared_norm(*before)
            if command.method is not ComposeMethod.CAT:
                missed += _squared_norm(torch.cat([before[0], -after[0]], 1), torch.cat([before[1], after[1]]))
    if not any(pair.a.any() and pair.b.any() for pair in merged.values()):
        raise Error(
            Code.FAILED_PRECONDITION,
            "the merged adapter changes nothing: its delta is zero in every module; choose other weights",
            reason="ADAPTER_WITHOUT_EFFECT",
        )
    _write(command, merged)
    return ComposeResult(math.sqrt(max(missed, 0.0) / whole) if whole else 0.0)


Merge = Callable[[str, Sequence[Part]], LoraPair]


def _method(command: ComposeCommand, largest: int) -> Merge:
    if command.method is ComposeMethod.CAT:
        return lambda name, parts: _cat(name, parts, command.max_rank)
    if command.method is ComposeMethod.SVD:
        return lambda name, parts: _svd(parts, command.rank or largest)
    return _apart(command)


def _cat(name: str, parts: Sequence[Part], max_rank: int) -> LoraPair:
    rank = sum(p.a.shape[0] for p in parts)
    if rank > max_rank:
        raise invalid_field(
            "adapters",
            f"have rank {rank} in all in module {name}, at most {max_rank} are allowed; use method svd with a rank",
            reason="RANK_TOO_LARGE",
        )
    # The factor of the first becomes the scaling, so that equal factors leave every stored value as it was.
    scaling = abs(next((p.factor for p in parts if p.factor), 1.0))
    b = [p.b if p.factor == scaling else p.b * (p.factor / scaling) for p in parts]
    return LoraPair(torch.cat([p.a for p in parts]), torch.cat(b, 1), scaling)


def _svd(parts: Sequence[Part], rank: int) -> LoraPair:
    """The best approximation of the sum at ``rank``, from the factors alone: the full matrix is never made."""
    b, a = _product(parts)
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    return LoraPair((v[:kept] * root[:, None] @ q_a.T).float(), (q_b @ (u[:, :kept] * root)).float(), 1.0)


def _apart(command: ComposeCommand) -> Merge:
    # Imported late: PEFT takes seconds, and the exact methods do without it.
    from peft.utils import merge_utils

    density = command.density

    def mix(tensors: list[Tensor], weights: Tensor) -> Tensor:
        if command.method is ComposeMethod.LINEAR:
            return merge_utils.task_arithmetic(tensors, weights)
        if command.method is ComposeMethod.TIES:
            return merge_utils.ties(tensors, weights, density)
        if command.method is ComposeMethod.DARE_TIES:
            return merge_utils.dare_ties(tensors, weights, density)
        return merge_utils.magnitude_prune(tensors, weights, density)

    def merge(name: str, parts: Sequence[Part]) -> LoraPair:
        ranks = [p.a.shape[0] for p in parts]
        if len(set(ranks)) > 1:
            raise invalid_field(
                "adapters",
                f"have ranks {', '.join(map(str, ranks))} in module {name}; {command.method.value} needs equal ranks: "
                "use cat or svd",
                reason="RANKS_DIFFER",
            )
        # As PEFT shares a weight out between the factors: its root to each, its sign to A.
        roots = torch.tensor([math.sqrt(abs(p.factor)) for p in parts])
        signs = torch.tensor([math.copysign(1.0, p.factor) for p in parts])
        return LoraPair(mix([p.a for p in parts], roots * signs), mix([p.b for p in parts], roots), 1.0)

    return merge


def _part(pair: LoraPair, weight: float) -> Part:
    return Part(pair.a.float(), pair.b.float(), weight * pair.scaling)


def _product(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """B [out, R] and A [R, in] in float64 whose product is the sum of the parts."""
    return torch.cat([p.b.double() * p.factor for p in parts], 1), torch.cat([p.a.double() for p in parts])


def _squared_norm(b: Tensor, a: Tensor) -> float:
    """|B A|² without making the product, in float64."""
    b, a = b.double(), a.double()
    return float(((b.T @ b) * (a @ a.T)).sum())


def _write(command: ComposeCommand, merged: Mapping[str, LoraPair]) -> None:
    rank = Counter(int(p.a.shape[0]) for p in merged.values()).most_common(1)[0][0]
    alpha = Counter(p.scaling * int(p.a.shape[0]) for p in merged.values()).most_common(1)[0][0]
    targets, layers = _targets(list(merged), list(command.modules))
    write_folder(
        command.output,
        merged,
        rank=rank,
        alpha=alpha,
        target_modules=targets,
        layers=layers,
        base_name=command.base_name,
        base_fingerprint=command.base_fingerprint,
    )


def _targets(names: list[str], modules: list[str]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """``target_modules`` and ``layers_to_transform`` that pick exactly ``names``: short if they can be."""
    ends = tuple(sorted({name.rpartition(".")[2] for name in names}))
    found = {layer for name in names if (layer := layer_index(name)) is not None}
    for layers in (None, tuple(sorted(found))):
        if set(LoraConfig(1, 1.0, target_modules=ends, layers=layers).targets(modules)) == set(names):
            return ends, layers
    return tuple(names), None
