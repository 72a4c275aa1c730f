"""What a forward pass needs beside its tokens: how to attend, and which adapters act on which rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .routing import Routing


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


class StepContext:
    """The one mutable thing that the attention and the routed linears of a model share.

    The thread that owns the model sets both fields before a forward, or a part of one.
    """

    __slots__ = ("attention", "routing")

    def __init__(self) -> None:
        self.attention: Attention | None = None
        self.routing: Routing | None = None
