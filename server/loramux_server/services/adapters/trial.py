"""Whether a version can be computed with: finite weights may still be too large for the model's arithmetic."""

from __future__ import annotations

import uuid

from ...core.backend import Backend, ScoreCommand
from ...core.errors import LOGITS_NOT_FINITE, Error
from ...core.principal import SERVER_TENANT
from ...core.types import AdapterVersion, Stack, StackEntry

TRIAL_IDS = (0, 1, 2, 3, 4, 5, 6, 7)
"""Tokens that every vocabulary has. What they say does not matter, only that the logits after them are finite."""


async def is_finite(backend: Backend, version: AdapterVersion) -> bool:
    """Whether the logits are finite with this version alone at weight 1, by one forward over a few tokens.

    Raises what the engine says for any other failure, such as UNAVAILABLE.
    """
    command = ScoreCommand(
        id=f"trial-{uuid.uuid4().hex}",
        prompt_ids=TRIAL_IDS[:1],
        continuation_ids=TRIAL_IDS[1:],
        stack=Stack((StackEntry(version),)),
        tenant=SERVER_TENANT,
    )
    try:
        await backend.score(command)
    except Error as error:
        if error.reason != LOGITS_NOT_FINITE:
            raise
        return False
    return True
