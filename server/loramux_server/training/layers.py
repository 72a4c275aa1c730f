"""Decoder layers during a training step, one at a time: forward, and backward with gradients.

A pass is cut at the layers' borders, so that whoever owns the base may use it between two of them: a long row holds
nobody up. Layers below the first adapted one never change while a job runs, so what they make of a row is computed
once (:meth:`Walk.up` to there) and every step starts from it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..host.resources import host_available
from ..lora.context import Attention
from ..lora.routing import Routing
from ..model.resident import ResidentBase
from .pace import activation_room

T = TypeVar("T")
Units = Generator[None, None, T]
"""Work that pauses where it may: after every layer, and every few rows of logits. Returns T."""


def complete(work: Units[T]) -> T:
    """Do all of it at once."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            found: T = done.value
            return found


class LayerPlan:
    """How the decoder layers of ``base`` run in a job whose lowest adapted layer is ``first``.

    Passes of more than ``dense_tokens`` tokens, whose activations would take more than ``memory`` bytes (None: a
    quarter of what is free now), keep those at the layers' borders only and compute the rest again in the backward.
    """

    def __init__(self, base: ResidentBase, first: int, memory: int | None = None) -> None:
        self.first, self.dense_tokens = first, _dense_tokens(base, first, memory)


@dataclass(slots=True)
class _Call:
    """What the model hands to a layer beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Walk:
    """Packed tokens on their way through the layers.

    What a model does around its layers (rotations, masks, scales) is its own business: its forward runs once over
    layers that only note what they get.
    """

    def __init__(
        self, base: ResidentBase, positions: Tensor, attention: Attention, routing: Routing | None, embeddings: Tensor
    ) -> None:
        """``embeddings`` [T, hidden]: of the tokens, or any others of that shape when they are not needed."""
        self._base, self._layers = base, base.layers
        self._positions, self._attention, self._routing = positions, attention, routing
        self._embeddings = embeddings
        self._calls: list[_Call] = []
        self._tape: list[tuple[int, Tensor, Tensor | None]] = []  # layer, input, output unless it is computed again
        entries: list[Tensor] = []

        def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            entries.append(hidden)
            self._calls.append(_Call(args, kwargs))
            return hidden

        with torch.no_grad(), self._patched(lambda _: note):
            self._body(embeddings)
        self.entry = entries[0]
        """Input of the first layer, [1, T, hidden]."""

    def up(self, hidden: Tensor, first: int, end: int) -> Units[Tensor]:
        """Input of layer ``end`` from that of layer ``first``, without gradients."""
        for layer in range(first, end):
            with torch.no_grad():
                hidden = self._run(layer, hidden)
            yield
        return hidden

    def record(self, hidden: Tensor, first: int, *, dense: bool) -> Units[Tensor]:
        """Output of the last layer from the input of layer ``first``, kept for :meth:`back`: all of it or borders."""
        for layer in range(first, len(self._layers)):
            start = hidden.detach().requires_grad_(layer > first)
            with torch.set_grad_enabled(dense):
                out = self._run(layer, start)
            self._tape.append((layer, start, out if dense else None))
            hidden = out.detach()
            yield
        return hidden

    def back(self, slope: Tensor) -> Units[None]:
        """Bring the slope of what :meth:`record` gave to the parameters on the way."""
        while self._tape:
            layer, start, out = self._tape.pop()
            if out is None:
                with torch.enable_grad():
                    out = self._run(layer, start)
            if not out.requires_grad:
                self._tape.clear()  # nothing is trained from here down
                return
            torch.autograd.backward(out, slope)
            if start.grad is not None:
                slope = start.grad
            del start, out
            yield

    def finish(self, hidden: Tensor) -> Tensor:
        """What the model makes of the last layer's output: final hidden states [T, hidden]."""
        last = len(self._layers) - 1
        with self._patched(lambda layer: (lambda *_, **__: hidden) if layer == last else _pass):
            return self._body(self._embeddings)[0]

    def _run(self, layer: int, hidden: Tensor) -> Tensor:
        self._enter()
        call = self._calls[layer]
        out = self._layers[layer](hidden, *call.args, **call.kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def _body(self, embeddings: Tensor) -> Tensor:
        self._enter()
        body = self._base.model.base_model
        out: Tensor = body(
            inputs_embeds=embeddings[None], position_ids=self._positions[None], use_cache=False
        ).last_hidden_state
        return out

    def _enter(self) -> None:
        # Others may have used the base since.
        self._base.context.attention, self._base.context.routing = self._attention, self._routing

    @contextmanager
    def _patched(self, forward: Callable[[int], Any]) -> Iterator[None]:
        """Within, layer i runs ``forward(i)``."""
        try:
            for index, layer in enumerate(self._layers):
                object.__setattr__(layer, "forward", forward(index))
            yield
        finally:
            for layer in self._layers:
                object.__delattr__(layer, "forward")


def _dense_tokens(base: ResidentBase, first: int, memory: int | None) -> int:
    """Tokens whose activations take ``memory`` bytes, or a quarter of those that are free now.

    About 20 float32 values per hidden unit and 4 per intermediate unit are kept for each token and layer.
    """
    config = base.model.config
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    free = host_available() if base.device.type == "cpu" else int(torch.cuda.mem_get_info(base.device)[0])
    return activation_room(free, memory) // (4 * (len(base.layers) - first) * (20 * hidden + 4 * inner))


def _pass(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden
