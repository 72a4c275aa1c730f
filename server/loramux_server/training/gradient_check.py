"""A check that gradients pass through the resident base: some 4-bit kernels drop them silently."""

from __future__ import annotations

import logging

import torch

from ..core.errors import Code, Error
from ..core.generators import run_to_end
from ..core.jobs import TrainRow, TrainSpec
from ..lora.bank import AdapterBank
from ..model.resident import ResidentBase
from .backprop.frozen_model import FrozenModel
from .backprop.layerwise import ActivationPolicy
from .backprop.micro_batch import JobRows, MicroBatch
from .setup import new_adapter

log = logging.getLogger(__name__)

TOKENS = 4
SHIFT = 1e-2
"""By how much a shift of the parameters along the gradient should change the loss."""
TOLERANCE = 0.1
"""Largest relative error of that change in float32; a single layer that drops its gradient causes far more."""


def gradient_fault(base: ResidentBase) -> Error | None:
    """What is wrong with gradients through ``base``, if anything, from one tiny forward and backward over all layers.

    In float32 the gradient is also compared with central differences of the loss. A norm alone would not show a product
    that drops its gradient, because the residual stream carries the rest past it.
    """
    adapter = new_adapter(base, TrainSpec(rank=1, alpha=1.0))
    vocabulary = int(base.model.config.vocab_size)
    row = TrainRow(tuple((7 * i + 3) % vocabulary for i in range(TOKENS)), (False,) + (True,) * (TOKENS - 1))
    bank = AdapterBank(base.groups, 0, base.device, base.dtype)
    frozen = FrozenModel(base, bank, [()], ActivationPolicy(base, 0), 0)

    def micro_batch() -> MicroBatch:
        return MicroBatch(base, [JobRows(frozen, [row], [0], adapter)])

    def loss() -> float:
        return -float(run_to_end(micro_batch().forward())[0].logprobs.sum())

    try:
        work = micro_batch()
        run_to_end(work.forward(gradients=True))[0].logprobs.sum().neg().backward()
        run_to_end(work.backward())
        weights = [b for _, b in adapter.parameters.values()]
        grads = [torch.zeros_like(b) if b.grad is None else b.grad for b in weights]
        norm = float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
        if not 0 < norm < float("inf"):
            return _fault(f"their norm is {norm:g}")
        if base.dtype is not torch.float32:
            return None
        shifted = []
        with torch.no_grad():
            for sign in (1, -1):
                for b, g in zip(weights, grads, strict=True):
                    b.copy_(g * (sign * SHIFT / norm**2))
                shifted.append(loss())
    except RuntimeError as error:
        return _fault(str(error))
    finally:
        base.release()
    change = (shifted[0] - shifted[1]) / 2
    log.debug("gradient check: the loss changes by %.4g, the gradient predicts %.4g", change, SHIFT)
    if abs(change - SHIFT) > TOLERANCE * SHIFT:
        return _fault(f"the loss changes by {change / SHIFT:.2f} of what they predict")
    return None


def _fault(detail: str) -> Error:
    return Error(
        Code.FAILED_PRECONDITION,
        f"gradients do not pass through this base on this machine ({detail}); serving works, training does not: "
        "try another --dtype, --cpu-weights or --device",
        reason="GRADIENTS_VANISH",
    )
