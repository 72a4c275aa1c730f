"""How far a model sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def max_context(model: PreTrainedModel) -> int:
    """Most tokens that a sequence may hold."""
    return int(getattr(model.config, "max_position_embeddings", None) or 2048)
