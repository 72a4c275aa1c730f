"""Which compiled functions a fused forward takes between its products: those that fit its layers and pass a trial."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import silu

from ...cpu.decode import STEP, DecodeKernels
from ...lora.context import Attention
from ..kv import KVPool, PagedAttention, Span, StaticAttention
from .layer_kernels import GpuKernels

if TYPE_CHECKING:
    from ..fused_forward import FusedDecoder

log = logging.getLogger(__name__)

LayerKernels = DecodeKernels | GpuKernels
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest mean difference of logits with and without, relative to their spread: both round, at other places."""


class Step(Protocol):
    """Attention of one step through the kernels."""

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor, float] | None,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor: ...


def start_step(kernels: LayerKernels | None, attention: Attention, cosine: Tensor, sine: Tensor) -> Step | None:
    """A step through the kernels, where they do what its attention does."""
    if isinstance(kernels, DecodeKernels) and isinstance(attention, PagedAttention) and attention.only_decodes:
        return kernels.step(attention, cosine, sine)
    if (
        isinstance(kernels, GpuKernels)
        and isinstance(attention, PagedAttention | StaticAttention)
        and attention.reads_back
    ):
        return kernels.step(attention, cosine, sine)
    return None


def _fitting(decoder: FusedDecoder) -> LayerKernels | None:
    """Compiled functions, if every layer has the types and shapes that they are for."""
    weight = decoder.norm.weight
    samples = torch.linspace(-4, 4, 9)
    for layer in decoder.layers:
        norms = [n.weight for n in (layer.before, layer.after, layer.q_norm, layer.k_norm) if n is not None]
        if not all(w.device == weight.device and w.dtype == weight.dtype for w in norms) or not torch.allclose(
            layer.activation(samples), silu(samples)
        ):
            return None
    if weight.device.type == "cuda":
        return GpuKernels(weight.dtype)
    widths = [len(weight), *(layer.gate_up.out_features[0] for layer in decoder.layers)]
    if any(layer.head_dim % (2 * STEP) for layer in decoder.layers) or any(width % STEP for width in widths):
        return None
    try:
        return DecodeKernels(weight.dtype)
    except LookupError:
        return None


def choose(decoder: FusedDecoder, ids: Tensor) -> LayerKernels | None:
    """Compiled functions that give the decoder's own logits for tokens ``ids``; a line is logged where they do not."""
    kernels = _fitting(decoder)
    if kernels is not None and (why := _difference(decoder, kernels, ids)):
        log.warning("the compiled functions of a layer are not used here: %s", why)
        return None
    return kernels


def alike(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the mean difference is within ``tolerance`` of the spread."""
    return bool((got - expected).abs().mean() <= tolerance * expected.std())


@torch.no_grad()
def _difference(decoder: FusedDecoder, kernels: LayerKernels, ids: Tensor) -> str:
    """Why a decode step over two cached sequences does not give the same logits with compiled functions; else empty."""
    lengths, pages = (len(ids) - 3, 2), ((0, 1), (2,))
    pool = KVPool(decoder.kv_shape, 3, ids.device, kernels.dtype)

    def step(spans: Sequence[Span]) -> Tensor:
        positions = torch.cat([torch.arange(s.start, s.end) for s in spans]).to(ids.device)
        rows = torch.arange(len(positions), device=ids.device)
        return decoder.forward(ids[positions], positions, PagedAttention(pool, spans), rows)

    step([Span(0, n, p) for n, p in zip(lengths, pages, strict=True)])
    token = [Span(n, 1, p) for n, p in zip(lengths, pages, strict=True)]
    expected = step(token)
    decoder.kernels = kernels
    try:
        got = step(token)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, a driver or a version of Triton may raise
        return str(error) or type(error).__name__
    finally:
        decoder.kernels = None
    return "" if alike(got, expected, TOLERANCE[kernels.dtype]) else "they give other logits"
