"""An adapter in training: its float32 parameters, and the routing block that runs rows through it with gradients."""

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
from .context import Group
from .dropout import factors, token_keys
from .routed_linear import LinearGroup


class TrainableAdapter:
    """LoRA parameters of the modules that a job adapts, initialised as PEFT does: A Kaiming-uniform, B zero.

    Only the job that owns the parameters changes their values or their ``requires_grad``.
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
        """Copy another adapter's weights. Raises INVALID_ARGUMENT unless modules, rank and scaling are the same."""
        mine, theirs = self.parameters.keys(), pairs.keys()
        if mine != theirs:
            odd = min(mine ^ theirs)
            adapts = "adapts" if odd in theirs else "does not adapt"
            message = f"the version {adapts} {odd}, unlike the job; leave target_modules and layers to the version"
            raise invalid_field("init_from", message)
        for name, (a, _) in self.parameters.items():
            pair = pairs[name]
            if pair.a.shape != a.shape or not math.isclose(pair.scaling, self.scaling, rel_tol=1e-6):
                raise invalid_field(
                    "init_from",
                    f"the version has rank {pair.a.shape[0]} and scaling {pair.scaling:g} in {name}, the job has rank"
                    f" {a.shape[0]} and scaling {self.scaling:g}; leave rank and alpha to the version",
                )
        with torch.no_grad():
            for name, (a, b) in self.parameters.items():
                a.copy_(pairs[name].a)
                b.copy_(pairs[name].b)

    def frozen(self) -> TrainableAdapter:
        """A copy of the present weights that takes no gradients."""
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
        """A detached copy of the present weights on the host."""
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
class AdapterRows:
    """The next ``length`` token rows of a micro-batch, all through one adapter at weight 1 (None: through none).

    ``dropout`` has (length, seed) of each sequence, in order; empty: no dropout. Masks are functions of the seed, so a
    forward that is computed again (gradient checkpointing, a resumed job) drops the same values.
    """

    adapter: TrainableAdapter | None
    length: int
    dropout: Sequence[tuple[int, int]] = ()


class TrainableBlock:
    """All token rows of a micro-batch, in order, those of each job through the job's own adapter.

    An adapter gets gradients from its own rows alone, so they are those of a micro-batch without the other jobs.
    """

    def __init__(self, jobs: Sequence[AdapterRows]) -> None:
        self._jobs = jobs
        self._lengths = [job.length for job in jobs]
        self._keys = {  # of the tokens of jobs with dropout, by the job's place
            i: token_keys(job.dropout, job.adapter.flat()[0].device)
            for i, job in enumerate(jobs)
            if job.adapter is not None and job.adapter.dropout and job.dropout
        }
        self._groups = frozenset().union(*(job.adapter.groups for job in jobs if job.adapter is not None))

    def acts_on(self, group: Group) -> bool:
        return group.index in self._groups

    def _drop(self, job: int, group: Group, x: Tensor) -> Tensor:
        """Rows [length, in] of a job after dropout."""
        adapter = self._jobs[job].adapter
        if adapter is None or job not in self._keys:
            return x
        return (x * factors(self._keys[job], group.index, x.shape[1], adapter.dropout)).to(x.dtype)

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        if self._keys:
            x = torch.cat([self._drop(i, group, rows) for i, rows in enumerate(x.split(self._lengths))])
        deltas: list[_Delta] = []
        parameters: list[Tensor] = []
        start = 0
        for job in self._jobs:
            columns = []
            for name, column in zip(group.names, group.columns, strict=True):
                if job.adapter is not None and (pair := job.adapter.parameters.get(name)) is not None:
                    columns.append(column)
                    parameters += pair
            if job.adapter is not None and columns:
                deltas.append(_Delta(slice(start, start + job.length), tuple(columns), job.adapter.scaling))
            start += job.length
        if y._base is not None:
            y = y.clone()  # autograd allows no in-place change of a view
        added: Tensor = _AddDeltas.apply(y, x, tuple(deltas), *parameters)
        return added


@dataclass(frozen=True, slots=True)
class _Delta:
    """What one adapter adds to a linear's output: for which rows, and in the columns of which modules."""

    rows: slice
    columns: tuple[slice, ...]
    scaling: float


class _AddDeltas(torch.autograd.Function):
    """Adds s B (A x) to y in place for every delta; ``parameters`` has A and B of each of its modules, in float32.

    Products are of x's type where that is bfloat16, else of float32; their sums are float32 always. One function
    instead of a graph, because the products over few ranks are cheap and the tensors between them are not: only x and
    the rank values are kept for the backward, and nothing of the size of y is copied.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, deltas: Sequence[_Delta], *parameters: Tensor) -> Tensor:
        dtype = _product_dtype(x)
        ranks: list[Tensor] = []  # s A x of each delta, [rows, sum of ranks]
        for delta, pairs in _with_pairs(deltas, parameters):
            h = (x[delta.rows].to(dtype) @ _stacked_a(pairs).to(dtype).T).mul_(delta.scaling)
            ranks.append(h)
            for column, values, (_, b) in zip(delta.columns, _by_module(h, pairs), pairs, strict=True):
                target = y[delta.rows, column]
                if target.dtype == dtype:
                    target.addmm_(values, b.to(dtype).T)
                else:
                    target += (values @ b.to(dtype).T).to(y.dtype)
        ctx.deltas = deltas
        ctx.save_for_backward(x, *parameters, *ranks)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        deltas: Sequence[_Delta] = ctx.deltas
        x, *saved = ctx.saved_tensors
        parameters, ranks = saved[: len(saved) - len(deltas)], saved[len(saved) - len(deltas) :]
        dtype = _product_dtype(x)
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[1]:
            every = sum(d.rows.stop - d.rows.start for d in deltas) == x.shape[0]
            grad_x = torch.empty_like(x) if every else torch.zeros_like(x)
        of_parameters: list[Tensor] = []
        for (delta, pairs), h in zip(_with_pairs(deltas, parameters), ranks, strict=True):
            of_y = [grads[0][delta.rows, column].to(dtype) for column in delta.columns]
            of_ranks = [g @ b.to(dtype) for g, (_, b) in zip(of_y, pairs, strict=True)]
            of_h = torch.cat(of_ranks, dim=1).mul_(delta.scaling)
            of_a = (of_h.T @ x[delta.rows].to(dtype)).split([a.shape[0] for a, _ in pairs])
            of_b = [g.T @ values for g, values in zip(of_y, _by_module(h, pairs), strict=True)]
            of_parameters += [grad.float() for pair in zip(of_a, of_b, strict=True) for grad in pair]
            if grad_x is not None:
                grad_x[delta.rows] = (of_h @ _stacked_a(pairs).to(dtype)).to(grad_x.dtype)
        return grads[0], grad_x, None, *of_parameters


def _product_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.bfloat16 else torch.float32


Pairs = list[tuple[Tensor, Tensor]]
"""A [r, in] and B [out, r] of modules."""


def _with_pairs(deltas: Sequence[_Delta], parameters: Sequence[Tensor]) -> Iterator[tuple[_Delta, Pairs]]:
    """Deltas, each with the parameters of its modules."""
    left = iter(parameters)
    for delta in deltas:
        yield delta, [(next(left), next(left)) for _ in delta.columns]


def _stacked_a(pairs: Pairs) -> Tensor:
    """The A of all modules, [sum of ranks, in]."""
    return pairs[0][0] if len(pairs) == 1 else torch.cat([a for a, _ in pairs])


def _by_module(h: Tensor, pairs: Pairs) -> Sequence[Tensor]:
    """Rank values [rows, sum of ranks], split by module."""
    return h.split([a.shape[0] for a, _ in pairs], dim=1)
