"""Decoder layers during a training step: frozen ones below are skipped, adapted ones may be checkpointed.

Layers below the first adapted one never change while a job runs, so what they make of a row is computed once
(:meth:`LayerPlan.lower`) and every step starts from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..lora.context import Attention
from ..model.resident import ResidentBase


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class LayerPlan:
    """How the decoder layers of ``base`` run in a job whose lowest adapted layer is ``first``."""

    def __init__(self, base: ResidentBase, first: int, checkpointed: bool) -> None:
        self.first, self.checkpointed = first, checkpointed
        self._base, self._layers = base, base.layers

    @torch.no_grad()
    def lower(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Input of the first adapted layer, [T, hidden] in float32: the embeddings themselves when that is layer 0."""
        embeddings = self._base.embed(ids).float()
        if self.first == 0:
            return embeddings

        def stop(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        handle = self._layers[self.first].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._base.forward(positions, attention, None, positions[:1], embeddings=embeddings)
        except _Reached as reached:
            return reached.hidden[0]
        finally:
            handle.remove()
        raise RuntimeError("the first adapted layer was not reached")

    @contextmanager
    def upper(self) -> Iterator[None]:
        """Within, a forward whose embeddings are :meth:`lower`'s output runs only the adapted layers."""
        patched = []
        try:
            for index, layer in enumerate(self._layers):
                if index < self.first:
                    object.__setattr__(layer, "forward", _pass)
                elif self.checkpointed:
                    object.__setattr__(layer, "forward", _checkpointed(layer.forward))
                else:
                    continue
                patched.append(layer)
            yield
        finally:
            for layer in patched:
                object.__delattr__(layer, "forward")


def _pass(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _checkpointed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
