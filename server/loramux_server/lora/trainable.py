"""An adapter in training: its parameters in float32, and the block that routes rows through it with gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.errors import invalid_field
from .bank import LoraPair
from .routed_linear import LinearGroup


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

    def frozen(self) -> TrainableAdapter:
        """A copy that keeps the present values and takes no gradients."""
        kept = copy.copy(self)
        kept.parameters = {
            name: (nn.Parameter(a.detach().clone(), False), nn.Parameter(b.detach().clone(), False))
            for name, (a, b) in self.parameters.items()
        }
        return kept

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
        return 4 * self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters alone."""
        return sum(p.nbytes for p in self.flat())


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """The next ``length`` rows of a training step, through one trainable adapter at weight 1 (None: through none).

    ``dropped`` has (length, seed) of each run of rows, in order; empty: no dropout. Masks are functions of the seed,
    so a forward that is run again (activation checkpointing, a resumed job) drops the same.
    """

    adapter: TrainableAdapter | None
    length: int
    dropped: Sequence[tuple[int, int]] = ()

    @property
    def drops(self) -> bool:
        return self.adapter is not None and bool(self.adapter.dropout and self.dropped)

    def mask(self, group: LinearGroup, x: Tensor) -> Tensor:
        """What to multiply these rows, x [length, in], with: 0 for what is dropped, else 1 / (1 - dropout)."""
        if self.adapter is None or not self.drops:
            return torch.ones_like(x)
        parts: list[Tensor] = []
        for length, seed in self.dropped:
            # The odd factor keeps the streams of groups apart.
            draw = torch.Generator(x.device).manual_seed(seed + group.index * 0x9E3779B97F4B)
            part = torch.empty(length, x.shape[1], device=x.device)
            parts.append(part.bernoulli_(1 - self.adapter.dropout, generator=draw))
        return torch.cat(parts).div_(1 - self.adapter.dropout)


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
        if any(run.drops for run in self._runs):
            parts = zip(self._runs, x.split(self._lengths), strict=True)
            x = x * torch.cat([run.mask(group, rows) for run, rows in parts])
        pieces: list[_Piece] = []
        parameters: list[Tensor] = []
        start = 0
        for run in self._runs:
            columns = []
            for name, column in zip(group.names, group.columns, strict=True):
                if run.adapter is not None and (pair := run.adapter.parameters.get(name)) is not None:
                    columns.append(column)
                    parameters += pair
            if run.adapter is not None and columns:
                pieces.append(_Piece(slice(start, start + run.length), tuple(columns), run.adapter.scaling))
            start += run.length
        if y._base is not None:
            y = y.clone()  # autograd takes no change in place of a view
        added: Tensor = _AddDeltas.apply(y, x, tuple(pieces), *parameters)
        return added


@dataclass(frozen=True, slots=True)
class _Piece:
    """One adapter's share of a step: some rows, and the columns of the modules that it adapts."""

    rows: slice
    columns: tuple[slice, ...]
    scaling: float


class _AddDeltas(torch.autograd.Function):
    """Adds s B (A x) to y in place, in float32, for every piece; A and B of each of its modules in ``parameters``.

    As one function because the products of few ranks are cheap and what would lie between them is not: a step keeps
    x and the rank values for the backward, and copies nothing of the size of y.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, pieces: Sequence[_Piece], *parameters: Tensor) -> Tensor:
        ranks: list[Tensor] = []
        for piece, pairs in _each(pieces, parameters):
            h = (x[piece.rows].float() @ _joined(pairs).T).mul_(piece.scaling)
            ranks.append(h)
            for column, part, (_, b) in zip(piece.columns, _split(h, pairs), pairs, strict=True):
                target = y[piece.rows, column]
                if target.dtype == b.dtype:
                    target.addmm_(part, b.T)
                else:
                    target += (part @ b.T).to(y.dtype)
        ctx.pieces = pieces
        ctx.save_for_backward(x, *parameters, *ranks)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pieces: Sequence[_Piece] = ctx.pieces
        x, *saved = ctx.saved_tensors
        parameters, ranks = saved[: len(saved) - len(pieces)], saved[len(saved) - len(pieces) :]
        wanted = ctx.needs_input_grad[1]
        grad_x: Tensor | None = None
        if wanted:
            every = sum(p.rows.stop - p.rows.start for p in pieces) == x.shape[0]
            grad_x = torch.empty_like(x) if every else torch.zeros_like(x)
        found: list[Tensor] = []
        for (piece, pairs), h in zip(_each(pieces, parameters), ranks, strict=True):
            slopes = [grads[0][piece.rows, column].float() for column in piece.columns]
            inner = torch.cat([g @ b for g, (_, b) in zip(slopes, pairs, strict=True)], dim=1).mul_(piece.scaling)
            of_a = (inner.T @ x[piece.rows].float()).split([a.shape[0] for a, _ in pairs])
            of_b = [g.T @ part for g, part in zip(slopes, _split(h, pairs), strict=True)]
            found += [grad for pair in zip(of_a, of_b, strict=True) for grad in pair]
            if grad_x is not None:
                grad_x[piece.rows] = inner @ _joined(pairs)
        return grads[0], grad_x, None, *found


Pairs = list[tuple[Tensor, Tensor]]
"""A [r, in] and B [out, r] of modules."""


def _each(pieces: Sequence[_Piece], parameters: Sequence[Tensor]) -> Iterator[tuple[_Piece, Pairs]]:
    """Pieces with their own parameters."""
    left = iter(parameters)
    for piece in pieces:
        yield piece, [(next(left), next(left)) for _ in piece.columns]


def _joined(pairs: Pairs) -> Tensor:
    """The A of modules below each other."""
    return pairs[0][0] if len(pairs) == 1 else torch.cat([a for a, _ in pairs])


def _split(h: Tensor, pairs: Pairs) -> Sequence[Tensor]:
    """Rank values [T, sum of ranks] by module."""
    return h.split([a.shape[0] for a, _ in pairs], dim=1)
