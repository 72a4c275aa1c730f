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
from ..lora.host import host_available
from ..model.resident import ResidentBase


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class LayerPlan:
    """How the decoder layers of ``base`` run in a job whose lowest adapted layer is ``first``.

    Passes of more than ``dense_tokens`` tokens keep the activations at the layers' borders only and compute the rest
    again in the backward.
    """

    def __init__(self, base: ResidentBase, first: int) -> None:
        self.first, self.dense_tokens = first, _dense_tokens(base, first)
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
            self._base.hidden(positions, attention, None, embeddings)
        except _Reached as reached:
            return reached.hidden[0]
        finally:
            handle.remove()
        raise RuntimeError("the first adapted layer was not reached")

    @contextmanager
    def upper(self, *, checkpointed: bool) -> Iterator[None]:
        """Within, a forward whose embeddings are :meth:`lower`'s output runs only the adapted layers."""
        patched = []
        try:
            for index, layer in enumerate(self._layers):
                if index < self.first:
                    object.__setattr__(layer, "forward", _pass)
                elif checkpointed:
                    object.__setattr__(layer, "forward", _checkpointed(layer.forward))
                else:
                    continue
                patched.append(layer)
            yield
        finally:
            for layer in patched:
                object.__delattr__(layer, "forward")


def _dense_tokens(base: ResidentBase, first: int) -> int:
    """Tokens whose activations take a quarter of the memory that is free now.

    About 20 float32 values per hidden unit and 4 per intermediate unit are kept for each token and layer.
    """
    config = base.model.config
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    free = host_available() if base.device.type == "cpu" else int(torch.cuda.mem_get_info(base.device)[0])
    return free // 4 // (4 * (len(base.layers) - first) * (20 * hidden + 4 * inner))


def _pass(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _checkpointed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
