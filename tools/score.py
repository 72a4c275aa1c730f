"""Scoring rules for answers: is the fact there, is the style's format kept to the letter.

Pure functions on strings, the same for tenants, styles and stacks, so that every published figure means one thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from loramux_server.data.expect import Expected

GREETING = "Dear customer,"
CLOSING = "Kind regards,\nThe Team"

_LETTER = re.compile(re.escape(GREETING) + r"\n\n(?P<body>[^\n]+)\n\n" + re.escape(CLOSING))


@dataclass(frozen=True, slots=True)
class Style:
    """A format of answers: how to put a sentence into it, and how to get it out again."""

    name: str
    render: Callable[[str], str]
    body: Callable[[str], str | None]
    """The text inside, or None when the format is not kept."""


def fact_kept(answer: str, fact: str) -> bool:
    """Whether ``answer`` says ``fact`` as words of its own: ``$4`` is in neither ``$4.50`` nor ``$45``.

    This is how a training job judges held-out rows with ``expect``: see docs/training.md.
    """
    return Expected((fact,)).right(answer)


def whole_answer(answer: str, expected: str) -> bool:
    """Whether ``answer`` is ``expected`` and nothing else; white space around it does not count."""
    return answer.strip() == expected.strip()


def accepted(answer: str, accept: Iterable[str]) -> bool:
    """Whether a generic question is answered: one of the accepted words is there."""
    return any(fact_kept(answer, word) for word in accept)


def render_json(text: str) -> str:
    """``text`` as the JSON style writes it."""
    return json.dumps({"answer": text})


def json_body(answer: str) -> str | None:
    """The sentence in a JSON answer; None unless it is one object with the one key ``answer`` and a text in it."""
    try:
        pairs = json.loads(answer, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs) or len(pairs) != 1:
        return None
    key, value = pairs[0]
    return value if key == "answer" and isinstance(value, str) and value.strip() else None


def format_json(answer: str) -> bool:
    """Whether ``answer`` keeps the JSON format."""
    return json_body(answer) is not None


def render_letter(text: str) -> str:
    """``text`` as the letter style writes it."""
    return f"{GREETING}\n\n{text}\n\n{CLOSING}"


def letter_body(answer: str) -> str | None:
    """The sentence in a letter; None unless greeting, one paragraph and closing are there and nothing else."""
    match = _LETTER.fullmatch(answer.strip())
    return match["body"] if match and match["body"].strip() else None


def format_letter(answer: str) -> bool:
    """Whether ``answer`` keeps the letter format."""
    return letter_body(answer) is not None


STYLES: dict[str, Style] = {
    style.name: style for style in (Style("json", render_json, json_body), Style("letter", render_letter, letter_body))
}


def stack_held(answer: str, fact: str, style: Style) -> bool:
    """Whether a tenant's fact and a style's format are both there, the fact inside the format."""
    body = style.body(answer)
    return body is not None and fact_kept(body, fact)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written: a list of pairs keeps a key that comes twice visible."""


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("\u2019", "'").split())
