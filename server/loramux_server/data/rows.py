"""The shapes of a dataset row: ``messages``, ``prompt`` + ``completion``, ``text``, or a preference pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.bounds import MAX_STACK, WEIGHT, too_many
from ..core.reading.json_values import MAX_DEPTH, TOO_DEEP, TOO_LARGE, too_deep, unfit
from ..core.types import StackItem
from .expect import FIELDS, Expected, expected_of
from .fields import Answered, BadRow, CompletionRow, TextRow, answered, chat, is_text, template_inputs_of
from .preference_pairs import CHOSEN_AND_REJECTED, PREFERRED_OUTPUTS, PairRow, chosen_and_rejected, preferred_outputs

Content = Answered | TextRow | PairRow


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row as it was written."""

    line: int
    content: Content
    on_top_of: tuple[StackItem, ...] | None = None
    """The row's own frozen stack underneath; empty: the bare base; None: the job's stacks take turns."""
    ignored: tuple[str, ...] = ()
    """Names of the fields that are not used."""
    expect: Expected | None = None
    """The expected texts, for a row that is held out; None: it names none."""
    expect_problems: tuple[str, ...] = ()
    """What is wrong with ``expect``; the row can be trained on all the same."""
    context: str | None = None
    """Distillation: what the teacher reads before the row; None: what the job says."""


_SHAPES: dict[str, set[str]] = {
    "messages": {"messages"},
    "prompt + completion": {"prompt", "completion"},
    "text": {"text"},
    "a preference pair": CHOSEN_AND_REJECTED,
    "a preference pair in OpenAI's words": PREFERRED_OUTPUTS,
}
_PAIRS = ("a preference pair", "a preference pair in OpenAI's words")
_DECIDING = (*_PAIRS, "messages", "prompt + completion", "text")
_NEEDED = {"a preference pair": {"chosen", "rejected"}}
"""Required fields of the shapes that have optional ones too."""
_SHARED = {"prompt", "input"}
"""Fields that do not decide the shape alone."""
WANTED = 'a row has "messages", "prompt" and "completion", "text", or "chosen" and "rejected"'
"""The advice for a row without a known shape."""


def parse_row(line: int, value: Mapping[str, Any], *, distill: bool = False) -> DataRow:
    """Check one JSON object and give it its shape. Raises :class:`BadRow` with everything that is wrong.

    For a distillation (``distill``) a row may have a ``context``, and may be a prompt without an answer.
    """
    problems: list[str] = []
    shape = _shape(value, problems)
    on_top_of = _on_top_of(value.get("on_top_of"), problems)
    used = (
        _SHAPES[shape] | (set() if shape == "text" else {"tools", "chat_template_kwargs"}) | {"on_top_of"}
        if shape
        else set()
    )
    context = value.get("context") if distill else None
    if distill:
        used |= {"context"}
        if context is not None and not isinstance(context, str):
            problems.append("context must be a string")
    unfit = _unfit_values(value, used)
    content = _content(shape, value, problems, distill) if shape and not unfit else None
    problems += unfit
    if problems or content is None:
        raise BadRow(problems)
    wrong: list[str] = []
    expect = expected_of(value, wrong)
    ignored = tuple(sorted(value.keys() - used - FIELDS))
    return DataRow(line, content, on_top_of, ignored, expect, tuple(wrong), context)


def names_pair(value: Mapping[str, Any]) -> bool:
    """Whether an object's fields are those of a preference pair."""
    return _shape(value, []).startswith("a preference pair")


def _shape(value: Mapping[str, Any], problems: list[str]) -> str:
    """The shape of a row by its fields; empty, with a problem, when they fit none, or several in part.

    Where several shapes are complete, a pair comes first, then ``messages``: many tools keep other forms of the same
    row in further fields.
    """
    given = {name for name, item in value.items() if item is not None}
    found = [name for name, fields in _SHAPES.items() if (fields - _SHARED) & given]
    whole = [name for name in _DECIDING if name in found and _NEEDED.get(name, _SHAPES[name]) <= given]
    if pairs := [name for name in _PAIRS if name in found]:
        # An incomplete pair is never taken as another shape.
        return next((name for name in whole if name in _PAIRS), pairs[0])
    if whole:
        return whole[0]
    found = found or [name for name, fields in _SHAPES.items() if (fields - _SHARED) & value.keys()]
    if not found and "prompt" in value:
        found = ["prompt + completion"]
    if not found:
        problems.append(f"the row has no known shape (fields: {names_of(value)}); {WANTED}")
    elif len(found) > 1:
        problems.append(f"the row has two shapes, {' and '.join(found)}; leave one out")
    return found[0] if len(found) == 1 else ""


def names_of(value: Mapping[str, Any]) -> str:
    """The names of an object's first fields, for a message."""
    return ", ".join(name[:40] for name in sorted(map(str, value))[:6]) or "none"


def _content(shape: str, value: Mapping[str, Any], problems: list[str], distill: bool) -> Content | None:
    match shape:
        case "text":
            return TextRow(value["text"]) if is_text(value["text"], "text", problems) else None
        case "a preference pair":
            return chosen_and_rejected(value, problems)
        case "a preference pair in OpenAI's words":
            return preferred_outputs(value, problems)
    inputs = template_inputs_of(value, problems)
    if distill and (asked := _unanswered(shape, value)) is not None:
        if isinstance(asked, list):
            return chat(asked, shape.partition(" ")[0], inputs, problems, unanswered=True)
        return CompletionRow(asked, "") if is_text(asked, "prompt", problems) else None
    if shape == "messages":
        return chat(value["messages"], "messages", inputs, problems)
    if missing := [name for name in ("prompt", "completion") if name not in value]:
        problems.append(f"the row has no {missing[0]}; prompt and completion go together")
        return None
    return answered(value["prompt"], value["completion"], "completion", inputs, problems)


def _unanswered(shape: str, value: Mapping[str, Any]) -> Any | None:
    """The prompt of a row without an answer: messages that end with no assistant turn, or a prompt alone."""
    if shape != "messages":
        return value.get("prompt") if value.get("completion") is None else None
    turns = value["messages"]
    last = turns[-1] if isinstance(turns, list) and turns else None
    return turns if isinstance(last, dict) and last.get("role") != "assistant" else None


def _on_top_of(value: Any, problems: list[str]) -> tuple[StackItem, ...] | None:
    """A frozen stack: a name, a list of names, or an object name -> weight."""
    if value is None:
        return None
    pairs: list[tuple[Any, Any]] | None = None
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, str | list):
        pairs = [(name, 1.0) for name in ([value] if isinstance(value, str) else value)]
    if pairs is None or not all(isinstance(name, str) and name for name, _ in pairs):
        problems.append("on_top_of must be a list of adapter names or an object of name: weight")
        return None
    problems += [f"{v.field} {v.description}" for v in too_many("on_top_of", len(pairs), MAX_STACK, "adapters")]
    if len({name for name, _ in pairs}) < len(pairs):
        problems.append("on_top_of names an adapter twice; name it once, with the sum of the weights")
    items = []
    for name, weight in pairs:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in WEIGHT:
            problems.append(f"on_top_of: the weight of {name[:80]!r} must be a number {WEIGHT}")
        else:
            items.append(StackItem(name, float(weight)))
    return tuple(items) if len(items) == len(pairs) else None


def _unfit_values(value: Mapping[str, Any], used: set[str]) -> list[str]:
    """Problems of values that JSON can hold but that cannot be used: lone surrogates, too large, nested too deeply."""
    found = [(path, what) for path, what in unfit(value) if what != TOO_LARGE or not path.startswith("on_top_of")]
    problems = [f"{path} {what}" for path, what in found]
    for name in value.keys() & used:
        if too_deep(value[name]):
            problems.append(f"{name} {TOO_DEEP}: at most {MAX_DEPTH} objects and lists may be inside each other")
    return problems
