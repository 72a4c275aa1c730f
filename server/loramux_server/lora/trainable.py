"""An adapter in training: its parameters in float32, and the block that routes rows through it with gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..core.errors import invalid_field
from .bank import LoraPair
from .linear import LinearGroup


class TrainableAdapter:
    """LoRA parameters of the modules that a job adapts, initialised as PEFT does: A Kaiming-uniform, B zero.

    Parameters belong to the job: nothing else ever changes their values or their ``requires_grad``.
    """

    def __init__(
        self,
        groups: Sequence[LinearGroup],
        modules: frozenset[str],
        *,
        rank: int,
        alpha: float,
        rslora: bool,
        dropout: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.dropout = dropout
        self.parameters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}  # name -> A [r, in], B [out, r]
        self.groups: set[int] = set()
        for group in groups:
            for name, out in zip(group.names, group.out_features, strict=True):
                if name not in modules:
                    continue
                bound = 1 / math.sqrt(group.in_features)  # kaiming_uniform_(a=sqrt(5)) over fan-in
                a = torch.empty(rank, group.in_features).uniform_(-bound, bound, generator=generator)
                self.parameters[name] = nn.Parameter(a.to(device)), nn.Parameter(torch.zeros(out, rank, device=device))
                self.groups.add(group.index)

    def load(self, pairs: Mapping[str, LoraPair]) -> None:
        """Start from the values of another adapter. INVALID_ARGUMENT unless it has the same modules, rank and scale."""
        mine, theirs = self.parameters.keys(), pairs.keys()
        if mine != theirs:
            odd = min(mine ^ theirs)
            raise invalid_field(
                "init_from", f"{'only it adapts' if odd in theirs else 'it does not adapt'} {odd}; use its modules"
            )
        for name, (a, _) in self.parameters.items():
            pair = pairs[name]
            if pair.a.shape != a.shape or not math.isclose(pair.scaling, self.scaling, rel_tol=1e-6):
                raise invalid_field(
                    "init_from",
                    f"it has rank {pair.a.shape[0]} and scale {pair.scaling:g} in {name}, the job rank {a.shape[0]} and"
                    f" scale {self.scaling:g}; use its rank and alpha",
                )
        with torch.no_grad():
            for name, (a, b) in self.parameters.items():
                a.copy_(pairs[name].a)
                b.copy_(pairs[name].b)

    def flat(self) -> list[nn.Parameter]:
        """All parameters, in a fixed order."""
        return [p for pair in self.parameters.values() for p in pair]

    def pairs(self) -> Mapping[str, LoraPair]:
        """A copy of the present values, detached, on the host."""
        return {
            name: LoraPair(a.detach().cpu().clone(), b.detach().cpu().clone(), self.scaling)
            for name, (a, b) in self.parameters.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, gradients and the two moments of AdamW."""
        return 4 * sum(p.nbytes for p in self.flat())


class TrainableBlock:
    """Rows [start, stop) of a training step through one trainable adapter at weight 1.

    ``dropped`` has (length, seed) of each run of rows, in order; empty: no dropout. Masks are functions of the seed,
    so a forward that is run again (activation checkpointing, a resumed job) drops the same.
    """

    def __init__(self, adapter: TrainableAdapter, rows: slice, dropped: Sequence[tuple[int, int]] = ()) -> None:
        self._adapter, self._rows, self._dropped = adapter, rows, dropped

    def acts_on(self, group: LinearGroup) -> bool:
        return group.index in self._adapter.groups

    def add(self, group: LinearGroup, x: Tensor, y: Tensor) -> Tensor:
        adapter = self._adapter
        rows = x[self._rows].float()
        if adapter.dropout and self._dropped:
            rows = rows * self._mask(group, rows)
        parts: list[Tensor] = []
        for name, out in zip(group.names, group.out_features, strict=True):
            pair = adapter.parameters.get(name)
            if pair is None:
                parts.append(rows.new_zeros(rows.shape[0], out))
            else:
                a, b = pair
                parts.append((rows @ a.T) * adapter.scaling @ b.T)
        delta = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if rows.shape[0] != y.shape[0]:
            delta = pad(delta, (0, 0, self._rows.start, y.shape[0] - self._rows.stop))
        return y + delta.to(y.dtype)

    def _mask(self, group: LinearGroup, rows: Tensor) -> Tensor:
        """What to multiply ``rows`` [T, in] with: 0 for what is dropped, else 1 / (1 - dropout)."""
        kept = 1 - self._adapter.dropout
        parts: list[Tensor] = []
        for length, seed in self._dropped:
            # The odd factor keeps the streams of groups apart.
            draw = torch.Generator(rows.device).manual_seed(seed + group.index * 0x9E3779B97F4B)
            part = torch.empty(length, rows.shape[1], device=rows.device)
            parts.append(part.bernoulli_(kept, generator=draw))
        return torch.cat(parts).div_(kept)
