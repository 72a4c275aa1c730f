"""The one primitive: every linear that an adapter may target gives base output plus the routed low-rank sum.

    y_t = W x_t + sum_k w_k s_k B_k (A_k x_t)        for the stack {(k, w_k)} of token t

Serving, evaluation and training all go through :class:`LinearGroup`; what differs is only the step's
:class:`~.routing.Routing`. Linears that share an input (q/k/v, gate/up) form one group: one base product and one
shrink serve all members.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from .context import StepContext

SHARED_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
"""Sibling linears that transformers' decoders feed with one and the same tensor."""


class BaseLinear(Protocol):
    """The frozen product under a group: [T, in] -> [T, sum of outputs], members side by side, in the input's dtype."""

    out_features: tuple[int, ...]
    nbytes: int

    def __call__(self, x: Tensor) -> Tensor: ...


class LinearGroup:
    """Linears over one input: the base product, and the routed low-rank sum for the rows of this step."""

    def __init__(self, index: int, names: Sequence[str], in_features: int, base: BaseLinear, context: StepContext):
        self.index = index
        self.names = tuple(names)
        """Full module names of the members, in the order of their columns."""
        self.in_features = in_features
        self.base = base
        self.out_features = base.out_features
        ends = [sum(self.out_features[: j + 1]) for j in range(len(names))]
        self.columns = tuple(slice(end - n, end) for end, n in zip(ends, self.out_features, strict=True))
        layer = re.search(r"\.(\d+)\.", self.names[0])
        self.layer = int(layer.group(1)) if layer else None
        self._context = context
        self._x: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()

    def member(self, x: Tensor, j: int) -> Tensor:
        """Output of member ``j``: computed with its siblings' the first time that an input is seen."""
        if self._x is not x:
            y = self.forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
            # Split, not sliced: the backward of a split joins gradients, that of a slice fills whole tensors.
            self._x, self._parts = x, y.split(self.out_features, dim=-1)
        out = self._parts[j]
        if j == len(self.names) - 1:
            self._x, self._parts = None, ()
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, sum of outputs]."""
        y = self.base(x)
        routing = self._context.routing
        return y if routing is None else routing.add(self, x, y)


class RoutedLinear(nn.Module):
    """Stands where a linear stood in the model; all work is its group's."""

    def __init__(self, group: LinearGroup, member: int) -> None:
        super().__init__()
        self._group, self._member = group, member
        self.in_features, self.out_features = group.in_features, group.out_features[member]

    def forward(self, x: Tensor) -> Tensor:
        return self._group.member(x, self._member)


def install(
    model: nn.Module,
    names: Sequence[str],
    context: StepContext,
    make_base: Callable[[Sequence[nn.Module]], BaseLinear],
) -> list[LinearGroup]:
    """Replace the linears ``names`` of ``model`` by routed ones and return their groups in model order.

    ``make_base`` takes the modules of one group. The replaced modules are dropped, so whatever memory the new base
    does not share with them is freed as the walk goes on.
    """
    groups: list[LinearGroup] = []
    left = list(names)
    while left:
        first = left[0]
        parent, leaf = first.rpartition(".")[::2]
        family = next((s for s in SHARED_INPUT if leaf in s), {leaf})
        members = [n for n in left if n.rpartition(".")[0] == parent and n.rpartition(".")[2] in family]
        left = [n for n in left if n not in members]
        owner = model.get_submodule(parent)
        modules = [model.get_submodule(n) for n in members]
        group = LinearGroup(len(groups), members, int(modules[0].in_features), make_base(modules), context)  # type: ignore[arg-type]
        for j, name in enumerate(members):
            setattr(owner, name.rpartition(".")[2], RoutedLinear(group, j))
        groups.append(group)
    return groups
