"""Tool calls and thoughts in answers, however the text is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.text.answers.reasoning import ReasoningReader, Thought, thinks
from loramux_server.text.answers.tool_calls import ToolCall, ToolCallReader, ToolFormat, new_call_id, tool_format
from tests.examples import examples

CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'
WEATHER = ToolCall("weather", '{"city": "Köln"}')
TIME = ToolCall("time", "{}")
BAD = '<tool_call>{"name": "say", "arguments": {"n": %s}}</tool_call>'
CASES: dict[str, tuple[ToolFormat, str, list[str | ToolCall]]] = {
    "hermes": (ToolFormat.HERMES, f"<tool_call>\n{CALL}\n</tool_call>", [WEATHER]),
    "hermes after text": (ToolFormat.HERMES, f"Let me look.<tool_call>{CALL}</tool_call>", ["Let me look.", WEATHER]),
    "hermes twice": (
        ToolFormat.HERMES,
        f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>',
        [WEATHER, TIME],
    ),
    "hermes mark in a string": (
        ToolFormat.HERMES,
        '<tool_call>{"name": "say", "arguments": {"text": "a \\"</tool_call>"}}</tool_call>',
        [ToolCall("say", '{"text": "a \\"</tool_call>"}')],
    ),
    "hermes unclosed": (ToolFormat.HERMES, f"<tool_call>{CALL}", [WEATHER]),
    "hermes broken": (ToolFormat.HERMES, "<tool_call>nothing</tool_call> x", ["<tool_call>nothing</tool_call> x"]),
    "hermes no call": (ToolFormat.HERMES, "a < b and <tool", ["a < b and <tool"]),
    "llama": (ToolFormat.LLAMA3, '{"name": "weather", "parameters": {"city": "Köln"}}', [WEATHER]),
    "llama tagged": (ToolFormat.LLAMA3, f"<|python_tag|>{CALL}", [WEATHER]),
    "llama twice": (ToolFormat.LLAMA3, f'{CALL}; {{"name": "time", "parameters": {{}}}}', [WEATHER, TIME]),
    "llama text": (ToolFormat.LLAMA3, "It is {warm}.", ["It is {warm}."]),
    "llama JSON": (ToolFormat.LLAMA3, '{"warm": true}', ['{"warm": true}']),
    "mistral": (ToolFormat.MISTRAL, f'[TOOL_CALLS][{CALL}, {{"name": "time", "arguments": {{}}}}]', [WEATHER, TIME]),
    "mistral unmarked": (ToolFormat.MISTRAL, f" [{CALL}]", [WEATHER]),
    "a lone surrogate": (
        ToolFormat.HERMES,
        '<tool_call>{"name": "say\\udfff", "arguments": {"text": "a\\ud800b\\ud83d\\ude00"}}</tool_call>',
        [ToolCall("say\ufffd", '{"text": "a\ufffdb\U0001f600"}')],
    ),
    "a lone surrogate in JSON as text": (
        ToolFormat.HERMES,
        r'<tool_call>{"name": "say", "arguments": "{\"text\": \"\\ud800\"}"}</tool_call>',
        [ToolCall("say", '{"text": "\ufffd"}')],
    ),
    "a lone surrogate in arguments that are no JSON": (
        ToolFormat.HERMES,
        r'<tool_call>{"name": "say", "arguments": "\ud800"}</tool_call>',
        [ToolCall("say", "\ufffd")],
    ),
    "a constant that is no JSON": (ToolFormat.HERMES, BAD % "NaN", [BAD % "NaN"]),
    "a number beyond every float": (ToolFormat.LLAMA3, BAD % "1e999", [BAD % "1e999"]),
    "nested deeper than a turn may be": (
        ToolFormat.HERMES,
        BAD % ("[" * 101 + "]" * 101),
        [BAD % ("[" * 101 + "]" * 101)],
    ),
    "mistral text": (ToolFormat.MISTRAL, "[1] is a list", ["[1] is a list"]),
}


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def joined(parts: list[str | ToolCall]) -> list[str | ToolCall]:
    found: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("case", CASES)
@given(cuts=st.lists(st.integers(0, 200), max_size=12))
@examples(40)
def test_calls_are_found_wherever_the_text_is_cut(case: str, cuts: list[int]) -> None:
    format, text, wanted = CASES[case]
    reader = ToolCallReader(format)
    found = [part for piece in pieces(text, cuts) for part in reader.push(piece)] + [*reader.finish()]
    assert joined(found) == wanted


@given(st.text(alphabet='<tool_cal/>{}[]"name:x ;', max_size=60), st.sampled_from(ToolFormat))
@examples(300)
def test_no_text_is_lost_and_nothing_fails(text: str, format: ToolFormat) -> None:
    reader = ToolCallReader(format)
    found = [part for char in text for part in reader.push(char)] + [*reader.finish()]
    said = "".join(part for part in found if isinstance(part, str))
    if not any(isinstance(part, ToolCall) for part in found):
        assert said.rstrip() == text.rstrip() if format is not ToolFormat.HERMES else said.split() == text.split()
    for part in found:
        if isinstance(part, ToolCall):
            json.loads(part.arguments)


def test_the_format_follows_from_the_template() -> None:
    assert tool_format("x<tool_call>y") is ToolFormat.HERMES
    assert tool_format("[TOOL_CALLS]") is ToolFormat.MISTRAL
    assert tool_format('ipython {"name": function name, "parameters": dictionary}') is ToolFormat.LLAMA3
    assert tool_format("<|im_start|>") is None


@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "answer"),
    [
        ("<think>\nhm, 2 < 3\n</think>\n\nYes.", False, "hm, 2 < 3", "Yes."),
        ("hm\n</think>\n\nYes.", True, "hm", "Yes."),
        ("Yes <think> no", False, "", "Yes <think> no"),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>never ends", False, "never ends", ""),
        ("  Yes.", False, "", "  Yes."),
        ("<thin", False, "", "<thin"),
    ],
)
@given(cuts=st.lists(st.integers(0, 100), max_size=8))
@examples(40)
def test_thoughts_are_parted_from_the_answer(
    text: str, opened: bool, thoughts: str, answer: str, cuts: list[int]
) -> None:
    reader = ReasoningReader(opened)
    found = [part for piece in pieces(text, cuts) for part in reader.push(piece)] + [*reader.finish()]
    assert "".join(part.text for part in found if isinstance(part, Thought)) == thoughts
    assert "".join(part for part in found if isinstance(part, str)) == answer


def test_which_bases_think() -> None:
    assert thinks("<think>\n\n</think>")
    assert not thinks("<|im_start|>")


def test_ids_of_calls_are_what_templates_take() -> None:
    """Mistral's template refuses any id that is not nine letters and digits."""
    ids = [new_call_id(ToolFormat.MISTRAL) for _ in range(20)]
    assert len(set(ids)) == 20
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert new_call_id(ToolFormat.HERMES) != new_call_id(ToolFormat.HERMES)
