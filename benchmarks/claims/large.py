"""What larger bases take: computed from shapes alone, and a base of 70 billion weights on one card of 80 GB."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .results import Results
from .setting import Setting

SHAPES = ("8b", "70b")
RANK = 16
TRAINED_BYTES = 16
"""Of a LoRA parameter: weight, gradient and two moments in float32."""
FULL_BYTES = 16
"""Of a weight in mixed precision: 2 and its gradient 2 in 16 bits, copy and two moments in float32."""


def measure(setting: Setting, results: Results) -> None:
    """Compute both."""
    from ..large_base import plan

    results.put("large", {"shapes": [shape(name) for name in SHAPES], "plan": asdict(plan("70b"))})


def shape(name: str) -> dict[str, Any]:
    """Bytes of training a base of a shape in each way, activations not counted. Imports torch."""
    from loramux_server.model.base.load import linear_modules
    from loramux_server.model.base.nf4_copy import copy_bytes

    from ..random_base import on_meta
    from .parameters import count

    model = on_meta(name)
    linears = linear_modules(model)
    lora = count(linears, RANK, ())
    weights = sum(weight.numel() for weight in model.parameters())
    nf4 = copy_bytes(model, {f"{linear}.weight" for linear in linears}, None)
    return {
        "shape": name,
        "weights": weights,
        "lora": lora,
        "full_bytes": FULL_BYTES * weights,
        "lora_bytes": 2 * weights + TRAINED_BYTES * lora,
        "qlora_bytes": nf4 + TRAINED_BYTES * lora,
    }
