"""A decoder forward with few operations, for the many models that share Llama's layout.

transformers' modules spend about a millisecond a layer and step on small operations, at one row more than on the
products. Where a model's layers are made of the usual parts, :class:`FusedDecoder` runs the same arithmetic over the
fused groups of :mod:`..lora.linear`. Nothing is assumed: :func:`make_fused` compares its logits with the model's own
and gives None, and with it transformers' forward, when they differ or a part is missing. Serving only; training and
all other architectures go through transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ..lora.context import Attention, StepContext
from ..lora.routed_linear import LinearGroup
from .attention import PackedAttention
from .fused.choice import LayerKernels, alike, choose, start_step
from .kv import KVShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest mean difference of probe logits, relative to their spread, by the weights' dtype."""
PROBE_TOKENS = 24
PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
MEMBERS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


@dataclass(frozen=True, slots=True)
class _Layer:
    before: _Norm
    qkv: LinearGroup
    q_norm: _Norm | None
    k_norm: _Norm | None
    output: LinearGroup
    after: _Norm
    gate_up: LinearGroup
    activation: nn.Module
    down: LinearGroup
    head_dim: int
    scale: float
    window: int | None


class FusedDecoder:
    """The layers, the final norm and the head of a Llama-like model."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[_Layer], norm: _Norm, context: StepContext) -> None:
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        self._rotary: Any = model.base_model.rotary_emb
        self.layers, self.norm, self._context = layers, norm, context
        self.kernels: LayerKernels | None = None
        """Compiled functions between the products, once they were found to give the same."""

    @property
    def kv_shape(self) -> KVShape:
        """The cache that the layers need."""
        layer = self.layers[0]
        return KVShape(len(self.layers), layer.qkv.out_features[1] // layer.head_dim, layer.head_dim)

    def forward(self, ids: Tensor, positions: Tensor, attention: Attention, wanted: Tensor) -> Tensor:
        """Logits [len(wanted), vocabulary] of packed tokens ``ids`` [T]; routing comes from the context."""
        return self.run(self._embed(ids), positions, attention, wanted)

    def states(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states [T, hidden] of packed tokens ``ids`` [T] after the final norm."""
        return self._states(self._embed(ids), positions, attention)

    def run(self, x: Tensor, positions: Tensor, attention: Attention, wanted: Tensor) -> Tensor:
        """As :meth:`forward`, from embeddings [T, hidden], whose type all activations have."""
        logits: Tensor = self._head(self._states(x, positions, attention)[wanted])
        return logits

    def _states(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        kernels = self.kernels if self.kernels is not None and x.dtype == self.kernels.dtype else None
        cos, sin = (part[0].contiguous() for part in self._rotary(x, positions[None]))  # [T, head_dim]
        step = start_step(kernels, attention, cos, sin)
        if step is None:
            # rotate_half(x) is x rolled by half with its first half negated: the sign goes into the sine.
            half = sin.shape[1] // 2
            turn = cos[:, None], torch.cat([-sin[:, :half], sin[:, half:]], dim=1)[:, None]
        x, delta = x.clone(), None  # changed in place
        for index, layer in enumerate(self.layers):
            x, h = self._add_norm(kernels, x, delta, layer.before)
            qkv = layer.qkv.forward(h)
            if step is not None:
                norms = None
                if layer.q_norm is not None and layer.k_norm is not None:
                    norms = layer.q_norm.weight, layer.k_norm.weight, layer.q_norm.eps
                h = step.attend(index, qkv, norms, scale=layer.scale, window=layer.window)
            else:
                h = self._attend(index, layer, qkv, *turn, attention)
            x, h = self._add_norm(kernels, x, layer.output.forward(h), layer.after)
            gate_up = layer.gate_up.forward(h)
            if kernels is not None:
                h = kernels.gate(gate_up)
            else:
                gate, up = (gate_up[:, columns] for columns in layer.gate_up.columns)
                h = layer.activation(gate) * up
            delta = layer.down.forward(h)
        return self._add_norm(kernels, x, delta, self.norm)[1]

    @staticmethod
    def _add_norm(kernels: LayerKernels | None, x: Tensor, delta: Tensor | None, norm: _Norm) -> tuple[Tensor, Tensor]:
        """The residual stream with ``delta`` added, and its norm."""
        if kernels is not None:
            return x, kernels.add_norm(x, delta, norm.weight, norm.eps)
        x = x if delta is None else x + delta
        return x, norm(x)

    def _attend(self, index: int, layer: _Layer, qkv: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        q_end, k_end = layer.qkv.columns[0].stop, layer.qkv.columns[1].stop
        if layer.q_norm is not None and layer.k_norm is not None:
            parts = [qkv[:, :q_end], qkv[:, q_end:k_end]]
            heads = [part.reshape(len(qkv), -1, layer.head_dim) for part in parts]
            qk = torch.cat([layer.q_norm(heads[0]), layer.k_norm(heads[1])], dim=1)
        else:
            qk = qkv[:, :k_end].view(len(qkv), -1, layer.head_dim)
        qk = torch.addcmul(qk * cos, qk.roll(layer.head_dim // 2, -1), sin)
        heads_q = q_end // layer.head_dim
        out = attention.attend(
            index,
            qk[:, :heads_q],
            qk[:, heads_q:],
            qkv[:, k_end:].view(len(qkv), -1, layer.head_dim),
            scale=layer.scale,
            window=layer.window,
            softcap=None,
        )
        return out.reshape(len(qkv), -1)


def make_fused(
    model: PreTrainedModel, layers: nn.ModuleList, groups: Sequence[LinearGroup], context: StepContext
) -> FusedDecoder | None:
    """A fused decoder that gives the model's own logits, or None. ``groups`` are installed in ``model``."""
    by_name = {name: group for group in groups for name in group.names}
    prefix = next((n for n, m in model.named_modules() if m is layers), "")
    device = model.get_input_embeddings().weight.device
    count = PROBE_TOKENS
    ids = torch.arange(count, device=device) * 37 % int(model.config.vocab_size)
    positions = torch.arange(count, device=device)
    probe = _Recorder(PackedAttention([count], device))
    context.attention, context.routing = probe, None
    try:
        with torch.no_grad():
            # In float32 over the weights as they are: bfloat16's rounding would hide a small mistake.
            x = model.get_input_embeddings()(ids).float()
            expected = model(
                inputs_embeds=x[None], position_ids=positions[None], use_cache=False, logits_to_keep=positions
            ).logits[0]
            decoder = FusedDecoder(
                model,
                [_layer(layer, f"{prefix}.{i}", by_name, probe.seen[i]) for i, layer in enumerate(layers)],
                _norm(model.base_model.norm),
                context,
            )
            got = decoder.run(x, positions, probe, positions)
    except (AttributeError, KeyError, TypeError, RuntimeError, _Unlike):
        return None  # a part is missing or shaped otherwise
    finally:
        context.attention = None
    if not alike(got, expected, TOLERANCE[model.dtype]):
        return None
    decoder.kernels = choose(decoder, ids)
    return decoder


class _Unlike(Exception):
    """A part is not as expected."""


class _Recorder:
    """Notes how each layer calls its attention."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self.seen: dict[int, tuple[float, int | None]] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        if softcap is not None:
            raise _Unlike
        self.seen[layer] = scale, window
        return self._attention.attend(layer, q, k, v, scale=scale, window=window, softcap=None)


def _layer(layer: Any, name: str, groups: Mapping[str, LinearGroup], call: tuple[float, int | None]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, gate_up = groups[f"{name}.self_attn.q_proj"], groups[f"{name}.mlp.gate_proj"]
    if {child for child, _ in layer.named_children()} != PARTS or [
        n.rpartition(".")[2] for n in (*qkv.names, *gate_up.names)
    ] != MEMBERS:
        raise _Unlike
    return _Layer(
        before=_norm(layer.input_layernorm),
        qkv=qkv,
        q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        output=groups[f"{name}.self_attn.o_proj"],
        after=_norm(layer.post_attention_layernorm),
        gate_up=gate_up,
        activation=mlp.act_fn,
        down=groups[f"{name}.mlp.down_proj"],
        head_dim=int(attention.head_dim),
        scale=call[0],
        window=call[1],
    )


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight, float(module.variance_epsilon))
