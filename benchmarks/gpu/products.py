"""Products with frozen weights: bitsandbytes' modules, joined 4-bit weights, dense ones; microseconds by rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit

from loramux_server.lora.routed_linear import BaseLinear
from loramux_server.model.base_linear import ModuleLinear
from loramux_server.model.gpu_linear import DenseLinear, JoinedLinear

from .timing import seconds

GROUPS: dict[str, tuple[int, tuple[int, ...]]] = {
    "135M q|k|v": (576, (576, 192, 192)),
    "135M gate|up": (576, (1536, 1536)),
    "8B q|k|v": (4096, (4096, 1024, 1024)),
    "8B o": (4096, (4096,)),
    "8B gate|up": (4096, (14336, 14336)),
    "8B down": (14336, (4096,)),
}
"""Linears that share an input: (in, outs)."""
SMALL = ("135M q|k|v",)
ROWS = (1, 8, 16, 32, 64, 128, 512, 2048)
FORMS: dict[str, type[BaseLinear]] = {"modules": ModuleLinear, "joined": JoinedLinear, "dense": DenseLinear}


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, dict[str, dict[str, float]]]]:
    """Microseconds by group, form and rows, so far."""
    dtype = torch.bfloat16
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SMALL if quick else GROUPS:
        width, outs = GROUPS[name]
        found[name] = {}
        for form, make in FORMS.items():
            modules: list[Any] = [
                Linear4bit(width, n, bias=False, quant_type="nf4", compute_dtype=dtype).to(device) for n in outs
            ]
            product: Any = make(modules, dtype)  # type: ignore[call-arg]
            times = {}
            for rows in ROWS[:3] if quick else ROWS:
                x = torch.randn(rows, width, device=device, dtype=dtype)
                with torch.inference_mode():
                    times[str(rows)] = 1e6 * seconds(lambda: product(x), device)  # noqa: B023
            found[name][form] = times
            yield found
