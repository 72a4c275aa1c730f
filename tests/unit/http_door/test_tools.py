"""Tools in chats: shown or not, called or not, and what says why an answer ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from loramux_server.core.types import FinishReason
from loramux_server.services.common.context import Context
from loramux_server.text.chat.chat_template import ChatTemplate

from .conftest import Http

CHAT: Any = [{"role": "user", "content": "Is it warm?"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("weather", "time")
]
NAMED: Any = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "CET"}}\n</tool_call>'
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
HERMES = (
    "{% for tool in tools or [] %}{{ (tool.function if tool.function else tool).name }} <tool_call> {% endfor %}"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
)


@pytest.fixture
def hermes(context: Context) -> Iterator[None]:
    """The base has a template that writes calls, and thinks."""
    kept = context.text.chat_template
    context.text.chat_template = ChatTemplate(HERMES + "{% if thinking %}<think>{% endif %}{{ '</think>'[:0] }}")
    yield
    context.text.chat_template = kept


@pytest.mark.parametrize(
    ("choice", "finish", "wanted"),
    [
        ("auto", STOP, "tool_calls"),
        ("required", STOP, "tool_calls"),
        (NAMED, STOP, "stop"),
        ("auto", LENGTH, "length"),
        (NAMED, LENGTH, "length"),
    ],
)
async def test_calls_at_once_and_streamed(
    hermes: None, http: Http, choice: Any, finish: FinishReason, wanted: str
) -> None:
    http.answers(CALL, finish=finish)
    asked: Any = {"model": "base", "messages": CHAT, "tools": TOOLS, "tool_choice": choice, "max_tokens": 60}
    done = await http.openai.chat.completions.create(**asked)
    (made,) = done.choices[0].message.tool_calls or ()
    assert made.type == "function"
    assert (made.function.name, made.function.arguments) == ("time", '{"zone": "CET"}')
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (None, wanted)
    stream = await http.openai.chat.completions.create(**asked, stream=True)
    choices = [choice for chunk in [chunk async for chunk in stream] for choice in chunk.choices]
    deltas = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert [(c.index, c.function and c.function.model_dump()) for c in deltas] == [
        (0, {"name": "time", "arguments": '{"zone": "CET"}'})
    ]
    assert len({made.id, *(call.id for call in deltas)}) == 2  # one call, one id, whatever the turn
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [wanted]
    assert "".join(choice.delta.content or "" for choice in choices) == ""


async def test_what_the_engine_is_asked(hermes: None, http: Http) -> None:
    http.answers(CALL, finish=STOP)

    async def asked(**changes: Any) -> tuple[str, str]:
        body: Any = {"model": "base", "messages": CHAT, "tools": TOOLS, **changes}
        await http.openai.chat.completions.create(**body)
        command = http.backend.commands[-1]
        return http.context.text.decode(command.prompt_ids), "" if command.grammar is None else command.grammar.text

    prompt, grammar = await asked()
    assert ("weather" in prompt, grammar) == (True, "")
    prompt, grammar = await asked(tool_choice="none")
    assert ("weather" in prompt, grammar) == (False, "")
    prompt, grammar = await asked(tool_choice="required")
    assert "weather" in prompt
    assert "weather" in grammar
    assert "time" in grammar
    assert "(" in grammar.splitlines()[0]
    _, grammar = await asked(tool_choice="required", parallel_tool_calls=False)
    assert grammar.splitlines()[0] == "start: call"
    _, grammar = await asked(tool_choice=NAMED)
    assert "weather" not in grammar
    assert "time" in grammar
    # The calls take the place of another shape.
    _, shaped = await asked(tool_choice=NAMED, response_format={"type": "json_object"})
    assert shaped == grammar


async def test_a_shape_keeps_calls_away_and_plain_text_does_not(hermes: None, http: Http) -> None:
    http.answers(CALL, finish=STOP)
    for kind, calls in (("text", 1), ("json_object", 0)):
        shape: Any = {"type": kind}
        done = await http.openai.chat.completions.create(
            model="base", messages=CHAT, tools=TOOLS, response_format=shape
        )
        assert len(done.choices[0].message.tool_calls or ()) == calls


async def test_a_forced_call_is_no_thought(hermes: None, http: Http) -> None:
    """Not even where the prompt opens thoughts: nothing but calls can be written."""
    http.answers(CALL, finish=STOP)
    body = {
        "model": "base",
        "messages": CHAT,
        "tools": TOOLS,
        "tool_choice": "required",
        "chat_template_kwargs": {"thinking": True},
    }
    answer = await http.raw.post("/v1/chat/completions", json=body)
    message = answer.json()["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"zone": "CET"}
    assert "reasoning_content" not in message


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice", "none of the tools"),
        ({"tool_choice": "required", "tools": [{"type": "function"}]}, "tools[0].name", "name"),
        ({"tool_choice": "required", "tools": [{"name": "x" * 70_000}]}, "tools", "fewer tools"),
    ],
)
async def test_what_cannot_be_forced(hermes: None, http: Http, changes: dict[str, Any], param: str, words: str) -> None:
    body = {"model": "base", "messages": CHAT, "tools": TOOLS, **changes}
    answer = await http.raw.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]
    assert http.backend.commands == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
async def test_what_no_text_can_hold_fails_no_answer(hermes: None, http: Http, path: str, stream: bool) -> None:
    """A model may write half of a character as an escape, in a name as well as in arguments."""
    http.answers(r'<tool_call>{"name": "a\udfff", "arguments": {"zone": "\ud800"}}</tool_call>', finish=STOP)
    chat = {"model": "base", "max_tokens": 60, "messages": CHAT}
    bodies: Any = {
        "chat/completions": {**chat, "tools": TOOLS},
        "responses": {"model": "base", "input": "Is it warm?", "tools": [{"type": "function", "name": "time"}]},
        "messages": {**chat, "tools": [{"name": "time", "input_schema": {"type": "object"}}]},
    }
    answer = await http.raw.post(f"/v1/{path}", json={**bodies[path], "stream": stream})
    assert answer.status_code == 200, answer.text
    assert "error" not in [line.partition(": ")[2] for line in answer.text.splitlines() if line.startswith("event")]
    assert "a\ufffd" in answer.text
    assert "zone" in answer.text
    assert (await http.calls.next())[1] == "OK"
