"""Models as requests name them: ``base``, an adapter, or a stack written ``acme+json:0.5``."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import invalid_field
from ...core.types import BASE_NAME, StackItem
from .fields import Adapter

MOST_CHARACTERS = 2048
"""Of a model's name: more than a stack of the most adapters with the longest names has."""
FINE_TUNED = "ft:"
"""How OpenAI's names of fine-tuned models begin."""


def parse_model(model: str, adapters: Sequence[Adapter] = ()) -> tuple[StackItem, ...]:
    """The stack of a request. ``adapters`` are those that the request lists beside a model that must be the base.

    Raises INVALID_ARGUMENT for what cannot be read; whether the names exist is not asked here.
    """
    if len(model) > MOST_CHARACTERS:
        raise invalid_field("model", f"has {len(model)} characters, at most {MOST_CHARACTERS} are allowed")
    if model == BASE_NAME:
        return tuple(StackItem(each.name, float(each.weight)) for each in adapters)
    if adapters:
        raise invalid_field("adapters", f"must be left out where model names a stack; set model to {BASE_NAME!r}")
    if model.startswith(FINE_TUNED):
        return (StackItem(adapter_named(model)),)
    return tuple(_entry(part) for part in model.split("+"))


def adapter_named(model: str) -> str:
    """The adapter that OpenAI's form of a name, ``ft:base:loramux:acme:3``, means: ``acme@3``; any other as it is."""
    if not model.startswith(FINE_TUNED):
        return model
    base, *rest = model.removeprefix(FINE_TUNED).split(":")
    if base != BASE_NAME or len(rest) not in (2, 3) or not all(rest[1:]):
        raise invalid_field(
            "model", f"must be such as '{FINE_TUNED}{BASE_NAME}:loramux:acme:3', or the adapter: 'acme@3'"
        )
    return "@".join(rest[1:])


def _entry(text: str) -> StackItem:
    name, colon, weight = text.strip().partition(":")
    if not name:
        raise invalid_field("model", f"must be {BASE_NAME!r}, an adapter, or a stack such as 'acme+json:0.5'")
    if name == BASE_NAME:
        raise invalid_field("model", f"{BASE_NAME!r} is below every stack: leave it out")
    try:
        return StackItem(name, float(weight) if colon else 1.0)
    except ValueError:
        raise invalid_field("model", f"the weight of {name[:80]!r} must be a number") from None
