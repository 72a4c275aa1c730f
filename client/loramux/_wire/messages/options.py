"""Options as callers give them: those that are known and not None, and values that the API takes as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import invalid
from .fields import shown


def check_known(options: Mapping[str, Any], allowed: type) -> None:
    """Raise InvalidArgument for an option that ``allowed``, a TypedDict, does not have."""
    unknown = options.keys() - allowed.__annotations__.keys()
    if unknown:
        raise invalid(min(unknown), f"is no setting; there are {', '.join(allowed.__annotations__)}")


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, those for the chat template as JSON text."""
    given = {name: value for name, value in options.items() if value is not None}
    if "tools" in given:
        given["tools"] = json_objects("tools", given["tools"])
    kwargs = given.get("chat_template_kwargs", "")
    if not isinstance(kwargs, str):
        if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
            raise invalid("chat_template_kwargs", f"must be a dict of names and values, not {shown(kwargs)}")
        given["chat_template_kwargs"] = json_text("chat_template_kwargs", dict(kwargs))
    return given


def json_objects(field: str, value: Any) -> str:
    """A list of dicts as JSON text."""
    if not isinstance(value, str) and not (
        isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)
    ):
        raise invalid(field, f"must be a list of dicts, not {shown(value)}")
    return json_text(field, value)


def json_text(field: str, value: Any) -> str:
    """A value as JSON text; text is JSON already."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(field, f"cannot be written as JSON: {error}") from None
