"""Fields of requests by type, and how those that are unknown, missing or of a wrong type are refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, StrictFloat, StrictInt, StrictStr, ValidationError

from ...core.errors import FieldViolation, invalid, invalid_field

MOST_VIOLATIONS = 20
MOST_PROBLEMS = 1000
"""Fields of a wrong kind that are looked at one by one: all of millions would hold everybody up."""

SHOULD_BE = "Input should be "
"""How pydantic begins most of its messages."""

Number = StrictFloat | StrictInt
M = TypeVar("M", bound="Strict")


class Strict(BaseModel):
    """Fields that are named here and no others, each of its own type."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Adapter(Strict):
    """One adapter of a stack."""

    name: StrictStr
    weight: Number = 1.0


def read(model: type[M], body: Any) -> M:
    """The request in ``body``. Raises INVALID_ARGUMENT naming fields that are unknown, missing or of a wrong type."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        if error.error_count() > MOST_PROBLEMS:
            what = f"the body has {error.error_count()} fields that are unknown, missing or of a wrong type"
            raise invalid_field("", what) from None
        found = error.errors(include_url=False, include_context=False, include_input=False)
        listed = [FieldViolation(_path(e["loc"]), _words(e["type"], e["msg"])) for e in found[:MOST_VIOLATIONS]]
        raise invalid(dict.fromkeys(listed)) from None


def _path(parts: Sequence[str | int]) -> str:
    """``messages[0].content`` of ("messages", 0, "content"); the names of alternatives are no part of it."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and not part[0].isupper() and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path


def _words(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "is no field of this request; leave it out"
    if kind == "missing":
        return "is missing"
    if kind == "none_required":
        return "is not taken here; leave it out"
    if kind == "literal_error":
        message = message.replace("True", "true").replace("False", "false")
    if message.startswith(SHOULD_BE):
        return "must be " + message.removeprefix(SHOULD_BE)
    return message[:1].lower() + message[1:]


def as_text(value: Any) -> str:
    """JSON as the services take it; empty for None."""
    return "" if value is None else json.dumps(value, ensure_ascii=False)
