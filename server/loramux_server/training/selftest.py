"""Whether gradients pass through the resident base. Some backends' 4-bit products drop them without a word."""

from __future__ import annotations

import logging

import torch

from ..core.errors import Code, Error
from ..core.jobs import TrainRow, TrainSpec
from ..lora.bank import AdapterBank
from ..lora.trainable import TrainableAdapter
from ..model.resident import ResidentBase
from .layers import LayerPlan, complete
from .step import Pass, RowRunner, Rows
from .targets import target_modules

log = logging.getLogger(__name__)

TOKENS = 4
SHIFT = 1e-2
"""By how much a shift along the gradient should change the loss."""
TOLERANCE = 0.1
"""How far the change may be from that, as a share of it, in float32; a lost branch of one layer is far more."""


def gradient_fault(base: ResidentBase) -> Error | None:
    """What is wrong with gradients through ``base``, if anything: one tiny forward and backward over all layers.

    In float32 the loss is also computed on both sides along the gradient: a residual stream carries a gradient past
    a product that drops its own, and only the size of the change tells.
    """
    adapter = TrainableAdapter(
        base.groups,
        target_modules(TrainSpec(), base.groups),
        rank=1,
        alpha=1.0,
        rslora=False,
        dropout=0.0,
        generator=torch.Generator().manual_seed(0),
        device=base.device,
    )
    vocabulary = int(base.model.config.vocab_size)
    row = TrainRow(tuple((7 * i + 3) % vocabulary for i in range(TOKENS)), (False,) + (True,) * (TOKENS - 1))
    runner = RowRunner(base, AdapterBank(base.groups, 0, base.device, base.dtype), [()], LayerPlan(base, 0), 0)

    def taken() -> Pass:
        return Pass(base, [Rows(runner, [row], [0], adapter)])

    def loss() -> float:
        return -float(complete(taken().forward())[0].logprobs.sum())

    try:
        work = taken()
        complete(work.forward(gradients=True))[0].logprobs.sum().neg().backward()
        complete(work.backward())
        outer = [b for _, b in adapter.parameters.values()]
        grads = [torch.zeros_like(b) if b.grad is None else b.grad for b in outer]
        size = float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
        if not 0 < size < float("inf"):
            return _fault(f"their norm is {size:g}")
        if base.dtype is not torch.float32:
            return None
        sides = []
        with torch.no_grad():
            for sign in (1, -1):
                for b, g in zip(outer, grads, strict=True):
                    b.copy_(g * (sign * SHIFT / size**2))
                sides.append(loss())
    except RuntimeError as error:
        return _fault(str(error))
    finally:
        base.release()
    change = (sides[0] - sides[1]) / 2
    log.debug("gradient self-test: the loss changes by %.4g of %.4g", change, SHIFT)
    if abs(change - SHIFT) > TOLERANCE * SHIFT:
        return _fault(f"the loss follows them by {change / SHIFT:.2f} of what it should")
    return None


def _fault(detail: str) -> Error:
    return Error(
        Code.FAILED_PRECONDITION,
        f"gradients do not pass through this base on this machine ({detail}); serving works, training does not: "
        "try another --dtype, --cpu-weights or --device",
        reason="GRADIENTS_VANISH",
    )
