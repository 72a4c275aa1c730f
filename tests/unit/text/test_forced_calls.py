"""Answers that must be calls: whatever a model writes under the grammar is read back as calls that fit the schemas."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from loramux_server.core.errors import Error
from loramux_server.core.types import Grammar, GrammarKind
from loramux_server.engine.grammar.tokenizer import grammar_tokenizer
from loramux_server.text.answers.forced_calls import ToolChoice, ToolMode, forced_calls
from loramux_server.text.answers.response_format import MAX_BYTES
from loramux_server.text.answers.tool_calls import ToolCall, ToolCallReader, ToolFormat
from tests.unit.services.tiny_tokenizer import write_tokenizer

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Köln", 'the "old" town', "a\\b\n", "</tool_call>", "]; [TOOL_CALLS]"]}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "x", "parameters": CITY, "strict": True}},
    {"name": 'fünf "gerade"', "parameters": {"properties": {"on": {"type": "boolean"}}, "additionalProperties": False}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS: dict[str, Any] = {
    "weather": CITY,
    'fünf "gerade"': {"type": "object", **TOOLS[1]["parameters"]},
    "now": {"type": "object", "maxProperties": 0},
}
REQUIRED = ToolChoice(ToolMode.REQUIRED)
SINGLE = ToolChoice(ToolMode.REQUIRED, single=True)
MARK = 1
"""A special token of the tokenizer, in place of Mistral's mark."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LLTokenizer:
    return grammar_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")), (0, 2))


def written(tokenizer: LLTokenizer, grammar: Grammar, draw: random.Random) -> str:
    """What a model that draws at random writes; it ends as soon as it may, half the time."""
    assert grammar.kind is GrammarKind.LARK
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar.text), log_level=0)
    ids: list[int] = []
    while not matcher.is_stopped():
        if matcher.is_accepting() and (len(ids) > 400 or draw.random() < 0.5):
            break
        bits = matcher.compute_bitmask()
        allowed = [8 * i + j for i, byte in enumerate(bits) if byte for j in range(8) if byte >> j & 1]
        ids.append(draw.choice([t for t in allowed if t not in (0, 2)]))
        matcher.consume_token(ids[-1])
        assert not matcher.is_error(), matcher.get_error()
    return tokenizer.decode_bytes([id for id in ids if id != MARK]).decode()


def read(format: ToolFormat, text: str) -> list[ToolCall]:
    """The calls of an answer; nothing else is in it."""
    reader = ToolCallReader(format)
    parts = [part for char in text for part in reader.push(char)] + [*reader.finish()]
    assert all(isinstance(part, ToolCall) for part in parts), (text, parts)
    return [part for part in parts if isinstance(part, ToolCall)]


@pytest.mark.parametrize(
    ("format", "mark_id"), [*((format, None) for format in ToolFormat), (ToolFormat.MISTRAL, MARK)]
)
def test_whatever_is_written_is_calls_that_fit(tokenizer: LLTokenizer, format: ToolFormat, mark_id: int | None) -> None:
    draw = random.Random(5)
    for choice in (REQUIRED, SINGLE, ToolChoice(ToolMode.REQUIRED, "weather")):
        grammar = forced_calls(choice, TOOLS, format, max_bytes=MAX_BYTES, mark_id=mark_id)
        counts: set[int] = set()
        names: set[str] = set()
        expected = {"weather"} if choice.name else set(SCHEMAS)
        for written_so_far in range(200):
            if written_so_far >= 10 and names == expected:
                break
            calls = read(format, written(tokenizer, grammar, draw))
            counts.add(len(calls))
            for call in calls:
                names.add(call.name)
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        assert names == expected
        alone = choice.single or choice.name or format is ToolFormat.LLAMA3
        assert counts == {1} if alone else (1 in counts and len(counts) > 1)


def test_a_tool_is_chosen_by_name(tokenizer: LLTokenizer) -> None:
    named = ToolChoice(ToolMode.REQUIRED, "now")
    grammar = forced_calls(named, TOOLS, ToolFormat.HERMES, max_bytes=MAX_BYTES)
    text = written(tokenizer, grammar, random.Random(1))
    assert "".join(text.split()) == '<tool_call>{"name":"now","arguments":{}}</tool_call>'
    assert grammar.origin == "tools"


@pytest.mark.parametrize(
    ("tools", "choice", "format", "field"),
    [
        (TOOLS, REQUIRED, None, "tool_choice"),
        (TOOLS, ToolChoice(ToolMode.REQUIRED, "tomorrow"), ToolFormat.HERMES, "tool_choice"),
        ([{"type": "function"}], REQUIRED, ToolFormat.HERMES, "tools[0].name"),
        ([{"function": {"name": ""}}], REQUIRED, ToolFormat.HERMES, "tools[0].function.name"),
        ([{"function": 1}], REQUIRED, ToolFormat.HERMES, "tools[0].function"),
        ([{"name": "a", "parameters": {"type": "string"}}], REQUIRED, ToolFormat.HERMES, "tools[0].parameters"),
        ([{"name": "a", "parameters": "{}"}], REQUIRED, ToolFormat.HERMES, "tools[0].parameters"),
        ([{"name": "a" * MAX_BYTES}], REQUIRED, ToolFormat.HERMES, "tools"),
    ],
)
def test_what_cannot_be_forced_is_named(tools: Any, choice: ToolChoice, format: ToolFormat | None, field: str) -> None:
    with pytest.raises(Error) as caught:
        forced_calls(choice, tools, format, max_bytes=MAX_BYTES)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_name_is_no_grammar(tokenizer: LLTokenizer, tmp_path: Path) -> None:
    """Text of a caller cannot end its place in the grammar."""
    for name in ('x" | "free', "x\n", "start: /.*/", "\\", '"', "%json {}", "\u2028"):
        grammar = forced_calls(SINGLE, [{"name": name}], ToolFormat.LLAMA3, max_bytes=MAX_BYTES)
        (call,) = read(ToolFormat.LLAMA3, written(tokenizer, grammar, random.Random(2)))
        assert call == ToolCall(name, "{}")
