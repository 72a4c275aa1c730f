"""The list of models as Anthropic's clients read it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from ...services.common.context import Context
from ..exchanges.exchange import Exchange

ANTHROPIC_VERSION = "anthropic-version"
"""The header that all requests of Anthropic's clients have; its value changes nothing here."""


def asks_as_anthropic(exchange: Exchange) -> bool:
    """Whether a client of Anthropic's API asks, at a path that it shares with OpenAI's."""
    return ANTHROPIC_VERSION in exchange.request_headers


def model_page(models: Iterable[dict[str, Any]], context: Context) -> dict[str, Any]:
    """All models in one page, from OpenAI's objects of them."""
    data = [model_info(model, context) for model in models]
    ids = [model["id"] for model in data] or [None]
    return {"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def model_info(model: dict[str, Any], context: Context) -> dict[str, Any]:
    """One model, from OpenAI's object of it."""
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": datetime.fromtimestamp(model["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": context.info.max_context,
        "max_tokens": context.limits.max_new_tokens,
        "capabilities": None,
    }
