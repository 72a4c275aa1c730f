"""Forward and backward through the decoder layers, one layer at a time.

Training pauses at the layers' borders, so that requests wait for one layer and never for a whole micro-batch. Layers
below the first adapted one do not change while a job runs: their output for a row is computed once and reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...host.resources import host_available
from ...lora.buffers import on_device
from ...lora.context import Attention
from ...lora.routing import Routing
from ...model.attention import PackedAttention
from ...model.resident import ResidentBase
from ...model.varlen import VarlenAttention
from ..work import PAUSE, Interruptible
from .micro_batch_size import activation_budget


class ActivationPolicy:
    """Which activations of a micro-batch are kept for the backward pass.

    Only layers from ``first_layer`` on, the lowest one that is adapted, have a backward pass. A micro-batch whose
    activations do not fit uses gradient checkpointing: it keeps each layer's input and computes the rest again.
    """

    def __init__(self, base: ResidentBase, first_layer: int, memory: int | None = None) -> None:
        """``memory``: bytes of activations before gradient checkpointing starts; None: a quarter of what is free."""
        self.first_layer = first_layer
        self._base, self._layers = base, len(base.layers) - first_layer
        self._budget = activation_budget(_free(base.device), memory)

    def keeps(self, lengths: Sequence[int]) -> bool:
        """Whether all activations are kept of a micro-batch of sequences of these lengths."""
        return self._layers * layer_bytes(self._base, lengths) <= self._budget


@dataclass(frozen=True, slots=True)
class _LayerCall:
    """The arguments of a decoder layer beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class LayerwisePass:
    """One pass of packed sequences (T tokens in total) through the decoder layers.

    What a model does around its layers (rotary embeddings, masks, scales) differs by architecture. So the model's own
    forward runs once over layers that record their arguments, and the layers are called with these one by one.
    """

    def __init__(self, base: ResidentBase, lengths: Sequence[int], routing: Routing | None, embeddings: Tensor) -> None:
        """``lengths``: tokens of each sequence; ``embeddings`` [T, hidden], or any values where they are not needed."""
        self._base, self._layers = base, base.layers
        self._positions = on_device(torch.cat([torch.arange(n) for n in lengths]), base.device)  # [T]
        kernel = base.varlen_kernel
        self._attention: Attention = (
            PackedAttention(lengths, base.device) if kernel is None else VarlenAttention(lengths, base.device, kernel)
        )
        self._routing = routing
        self._embeddings = embeddings
        self._calls: list[_LayerCall] = []
        self._tape: list[tuple[int, Tensor, Tensor | None]] = []  # layer, input, output (None: computed again)
        inputs: list[Tensor] = []

        def record_call(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            inputs.append(hidden)
            self._calls.append(_LayerCall(args, kwargs))
            return hidden

        with torch.no_grad(), self._replaced_layers(lambda _: record_call):
            self._model_body(embeddings)
        self.input = inputs[0]
        """Input of the first layer, [1, T, hidden]."""

    def forward(self, hidden: Tensor, first: int, end: int) -> Interruptible[Tensor]:
        """Input of layer ``end`` from the input of layer ``first``, [1, T, hidden], without gradients."""
        for layer in range(first, end):
            with torch.no_grad():
                hidden = self._run(layer, hidden)
            yield PAUSE
        return hidden

    def forward_for_backward(self, hidden: Tensor, first: int, *, checkpointing: bool) -> Interruptible[Tensor]:
        """Output of the last layer from the input of layer ``first``; keeps what :meth:`backward` needs.

        With ``checkpointing`` only the layers' inputs are kept.
        """
        for layer in range(first, len(self._layers)):
            start = hidden.detach().requires_grad_(layer > first)
            with torch.set_grad_enabled(not checkpointing):
                out = self._run(layer, start)
            self._tape.append((layer, start, None if checkpointing else out))
            hidden = out.detach()
            yield PAUSE
        return hidden

    def backward(self, grad: Tensor) -> Interruptible[None]:
        """Backpropagate ``grad`` [1, T, hidden] of the last layer's output; accumulates the parameters' gradients."""
        while self._tape:
            layer, start, out = self._tape.pop()
            if out is None:
                with torch.enable_grad():
                    out = self._run(layer, start)
            if not out.requires_grad:
                self._tape.clear()  # this layer and those below have no parameters in training
                return
            torch.autograd.backward(out, grad)
            if start.grad is not None:
                grad = start.grad
            del start, out
            yield PAUSE

    def final_hidden(self, hidden: Tensor) -> Tensor:
        """Final hidden states [T, hidden], as the output head takes them, from the last layer's output."""
        last = len(self._layers) - 1
        with self._replaced_layers(lambda layer: (lambda *_, **__: hidden) if layer == last else _identity):
            return self._model_body(self._embeddings)[0]

    def _run(self, layer: int, hidden: Tensor) -> Tensor:
        self._set_context()
        call = self._calls[layer]
        out = self._layers[layer](hidden, *call.args, **call.kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def _model_body(self, embeddings: Tensor) -> Tensor:
        self._set_context()
        body = self._base.model.base_model
        out: Tensor = body(
            inputs_embeds=embeddings[None], position_ids=self._positions[None], use_cache=False
        ).last_hidden_state
        return out

    def _set_context(self) -> None:
        # Requests and other jobs may have used the base since.
        self._base.context.attention, self._base.context.routing = self._attention, self._routing

    @contextmanager
    def _replaced_layers(self, forward: Callable[[int], Any]) -> Iterator[None]:
        """Inside the block, layer i runs ``forward(i)`` in place of its own forward."""
        try:
            for index, layer in enumerate(self._layers):
                object.__setattr__(layer, "forward", forward(index))
            yield
        finally:
            for layer in self._layers:
                object.__delattr__(layer, "forward")


SCORE_BYTES = 9
"""Bytes a soft-capped score: capped and as a probability, and whether it is masked."""


def layer_bytes(base: ResidentBase, lengths: Sequence[int]) -> int:
    """Bytes of activations of one layer for sequences of these lengths, about.

    For each token 20 values per hidden unit and 4 per intermediate unit; four per hidden unit for each token that
    attention pads; and matrices of scores, where attention makes them.
    """
    config, probe = base.model.config, base.probe
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    tokens = sum(lengths)
    padded = tokens if base.varlen_kernel else len(lengths) * max(lengths)
    values = tokens * (20 * hidden + 4 * inner) + (padded - tokens) * 4 * hidden
    scores = padded * max(lengths) * probe.heads if probe.softcapped else 0  # [sequences, heads, longest, longest]
    return base.training_dtype.itemsize * values + SCORE_BYTES * scores


def _free(device: torch.device) -> int:
    """Bytes that activations could take now: on a GPU also what torch keeps for later."""
    if device.type == "cpu":
        return host_available()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def _identity(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden
