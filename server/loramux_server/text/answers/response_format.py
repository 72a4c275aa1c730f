"""From ``response_format`` as a door hands it over to a grammar for the engine: shape and size are checked here.

Whether the grammar itself is sound is found out where it is compiled, in a process that may fail (engine.grammars).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.bounds import text_violations
from ...core.errors import invalid, invalid_field
from ...core.types import Grammar, GrammarKind

FIELD = "response_format"
MAX_BYTES = 64 * 1024
"""Longest schema, regular expression, list of choices or grammar, in bytes of UTF-8."""
MAX_CHOICES = 256
ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')

_KINDS = {"json_schema": GrammarKind.JSON_SCHEMA, "regex": GrammarKind.REGEX, "grammar": GrammarKind.LARK}


def parse_format(value: Mapping[str, Any], max_bytes: int = MAX_BYTES) -> Grammar:
    """The grammar of ``{"type": kind, kind: value}``; kinds: json_schema, regex, choice, grammar, json_object.

    ``max_bytes`` is for the schema, regular expression, list of choices or grammar, in UTF-8.

    Raises INVALID_ARGUMENT naming ``response_format`` and the part of it that is at fault.
    """
    kind = value.get("type")
    if kind == "json_object":
        return ANY_OBJECT
    if kind == "choice":
        return _choices(value.get("choice"), max_bytes)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise invalid_field(FIELD, f"has no known kind; use {', '.join(_KINDS)}, choice or json_object")
    text = value.get(kind)
    if not isinstance(text, str) or not text:
        raise invalid_field(f"{FIELD}.{kind}", "is empty")
    _check_size(f"{FIELD}.{kind}", text, max_bytes)
    return Grammar(_KINDS[kind], text)


def _choices(items: object, max_bytes: int) -> Grammar:
    field = f"{FIELD}.choice"
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise invalid_field(field, "must be a list of texts")
    if not 1 <= len(items) <= MAX_CHOICES:
        raise invalid_field(field, f"has {len(items)} texts; it must have 1 to {MAX_CHOICES}")
    for i, item in enumerate(items):
        if not isinstance(item, str) or not item:
            raise invalid_field(f"{field}[{i}]", "is empty")
        _check_size(f"{field}[{i}]", item, max_bytes)
    _check_size(field, "".join(items), max_bytes)
    # Strings of a Lark grammar are written as in JSON, and some characters must be escaped that JSON would leave.
    return Grammar(GrammarKind.LARK, "start: " + " | ".join(map(json.dumps, items)))


def _check_size(field: str, text: str, max_bytes: int) -> None:
    if violations := tuple(text_violations(field, text, max_bytes)):
        raise invalid(violations)
