"""What a forward pass needs beside its tokens: how to attend, and which adapters act on which rows."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Attention(Protocol):
    """Attention of one step over packed tokens."""

    def attend(
        self,
        layer: int,
        q: Tensor,  # [T, heads, head_dim]
        k: Tensor,  # [T, kv_heads, head_dim]
        v: Tensor,  # [T, kv_heads, head_dim]
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:  # [T, heads, head_dim]
        ...


class Group(Protocol):
    """Linears over one input, as routing sees them: members in the order of their columns."""

    index: int
    names: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]
    columns: tuple[slice, ...]


class Deltas(Protocol):
    """What adapters add to the outputs of linears in one step."""

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        """Return y [T, sum of outputs] plus all deltas of x [T, in]; in place unless gradients are recorded."""
        ...


class StepContext:
    """The one mutable thing that the attention and the routed linears of a model share.

    The thread that owns the model sets both fields before a forward, or a part of one.
    """

    __slots__ = ("attention", "routing")

    def __init__(self) -> None:
        self.attention: Attention | None = None
        self.routing: Deltas | None = None
