"""Which modules a job adapts."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import invalid_field
from ..core.jobs import TrainSpec
from ..lora.routed_linear import LinearGroup
from ..peft.lora_config import LoraConfig


def target_modules(spec: TrainSpec, groups: Sequence[LinearGroup]) -> frozenset[str]:
    """Full names of the linears that ``spec`` adapts. Raises INVALID_ARGUMENT when there is none."""
    names = [name for group in groups for name in group.names]
    config = LoraConfig(
        rank=spec.rank, alpha=spec.alpha, rslora=spec.rslora, target_modules=spec.target_modules, layers=spec.layers
    )
    found = frozenset(config.targets(names))
    if not found:
        raise invalid_field("target_modules", f"{list(spec.target_modules)} names no linear of the base")
    return found
