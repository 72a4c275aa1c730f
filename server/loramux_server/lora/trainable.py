"""An adapter in training: its parameters in float32, and the block that routes rows through it with gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """The next ``length`` rows of a training step, through one trainable adapter at weight 1 (None: through none).

    ``dropped`` has (length, seed) of each run of rows, in order; empty: no dropout. Masks are functions of the seed,
    so a forward that is run again (activation checkpointing, a resumed job) drops the same.
    """

    adapter: TrainableAdapter | None
    length: int
    dropped: Sequence[tuple[int, int]] = ()

    def delta(self, group: LinearGroup, x: Tensor) -> Tensor:
        """What the adapter adds to these rows, x [length, in] -> [length, out], in float32."""
        adapter, rows = self.adapter, x.float()
        if adapter is None or group.index not in adapter.groups:
            return rows.new_zeros(rows.shape[0], sum(group.out_features))
        if adapter.dropout and self.dropped:
            rows = rows * self._mask(group, rows, adapter.dropout)
        parts: list[Tensor] = []
        for name, out in zip(group.names, group.out_features, strict=True):
            pair = adapter.parameters.get(name)
            if pair is None:
                parts.append(rows.new_zeros(rows.shape[0], out))
            else:
                a, b = pair
                parts.append((rows @ a.T) * adapter.scaling @ b.T)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _mask(self, group: LinearGroup, rows: Tensor, dropout: float) -> Tensor:
        """What to multiply ``rows`` [T, in] with: 0 for what is dropped, else 1 / (1 - dropout)."""
        parts: list[Tensor] = []
        for length, seed in self.dropped:
            # The odd factor keeps the streams of groups apart.
            draw = torch.Generator(rows.device).manual_seed(seed + group.index * 0x9E3779B97F4B)
            part = torch.empty(length, rows.shape[1], device=rows.device)
            parts.append(part.bernoulli_(1 - dropout, generator=draw))
        return torch.cat(parts).div_(1 - dropout)


class TrainableBlock:
    """All rows of a training step, in order, each run of them through the adapter of its own job.

    An adapter sees its own rows and no others, so its gradient is that of a step without the other jobs.
    """

    def __init__(self, runs: Sequence[TrainedRows]) -> None:
        self._runs = runs
        self._lengths = [run.length for run in runs]
        self._groups = frozenset().union(*(run.adapter.groups for run in runs if run.adapter is not None))

    def acts_on(self, group: LinearGroup) -> bool:
        return group.index in self._groups

    def add(self, group: LinearGroup, x: Tensor, y: Tensor) -> Tensor:
        # Split, not sliced: the backward of a split joins gradients, that of a slice fills whole tensors.
        deltas = [run.delta(group, rows) for run, rows in zip(self._runs, x.split(self._lengths), strict=True)]
        return y + (deltas[0] if len(deltas) == 1 else torch.cat(deltas)).to(y.dtype)
