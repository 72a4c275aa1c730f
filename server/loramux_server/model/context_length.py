"""Facts that a model's configuration tells: where it stops, how far it sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def eos_token_ids(model: PreTrainedModel, folder: Path) -> tuple[int, ...]:
    """Tokens that end an answer: generation_config.json's, else the model configuration's."""
    found: Any = None
    path = folder / "generation_config.json"
    if path.is_file():
        found = json.loads(path.read_text()).get("eos_token_id")
    if found is None:
        found = getattr(model.config, "eos_token_id", None)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (int(found),)


def max_context(model: PreTrainedModel) -> int:
    """Most tokens that a sequence may hold."""
    return int(getattr(model.config, "max_position_embeddings", None) or 2048)
