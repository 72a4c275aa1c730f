"""Responses as OpenAI's own client asks for them and reads them; what is sent is checked against its types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from loramux_server.core.errors import Code, Error
from loramux_server.core.types import FinishReason
from loramux_server.services.common.context import Context
from loramux_server.text.chat.chat_template import ChatTemplate

from .conftest import Http

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
ASKED: dict[str, Any] = {"model": "base", "input": "Where is the shop?"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{{ '\\n' }}{% endfor %}"
    "{{ '<think></think>' if never }}"
)
BEYOND = {"store", "presence_penalty", "frequency_penalty", "name"}
"""Fields that the specification of Open Responses has, and the package's types have not."""
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def template(context: Context) -> Iterator[None]:
    """A base whose template knows think marks and tool calls."""
    kept, context.text.chat_template = context.text.chat_template, ChatTemplate(TEMPLATE)
    yield
    context.text.chat_template = kept


def extras(value: Any) -> set[str]:
    """Names of fields, at any depth, that the package's types do not have."""
    if isinstance(value, list):
        return set().union(*map(extras, value)) if value else set()
    if not isinstance(value, BaseModel):
        return set()
    return set(value.model_extra or ()).union(*(extras(getattr(value, name)) for name in type(value).model_fields))


def checked(answer: Any) -> dict[str, Any]:
    """A response, once it is what the package's types say, and nothing else."""
    assert extras(Response.model_validate(answer, strict=True)) <= BEYOND
    return dict(answer)


async def post(http: Http, **changes: Any) -> dict[str, Any]:
    answer = await http.raw.post("/v1/responses", json={**ASKED, **changes})
    assert answer.status_code == 200, answer.text
    return checked(answer.json())


async def stream(http: Http, **changes: Any) -> list[dict[str, Any]]:
    """The events, once each is of the package's types, named by its type, and in order."""
    answer = await http.raw.post("/v1/responses", json={**ASKED, **changes, "stream": True})
    assert answer.status_code == 200, answer.text
    events = []
    for text in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert extras(EVENTS.validate_python(event, strict=True)) <= BEYOND
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def prompt(http: Http) -> str:
    return http.context.text.decode(http.backend.commands[-1].prompt_ids)


async def test_an_answer_at_once(http: Http) -> None:
    http.answers("In the harbour street.", finish=STOP)
    done = await http.openai.responses.create(
        model="base", input="Where is the shop?", max_output_tokens=20, temperature=0.5, metadata={"a": "b"}
    )
    assert (done.output_text, done.status, done.model, done.error) == (
        "In the harbour street.",
        "completed",
        "base",
        None,
    )
    assert (done.temperature, done.max_output_tokens, done.metadata) == (0.5, 20, {"a": "b"})
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
    (command,) = http.backend.commands
    assert (command.sampling.temperature, command.sampling.max_tokens) == (0.5, 20)
    assert await http.calls.next() == ("createResponse", "OK")
    checked((await http.raw.post("/v1/responses", json=ASKED)).json())


async def test_the_events_of_a_text(http: Http) -> None:
    http.answers("At nine.", finish=STOP)
    events = await stream(http)
    types = [event["type"].removeprefix("response.") for event in events]
    deltas = types.count("output_text.delta")
    assert types == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert deltas > 1
    assert [events[i]["response"]["status"] for i in (0, 1, -1)] == ["in_progress", "in_progress", "completed"]
    assert events[0]["response"]["output"] == []
    assert events[-1]["response"]["usage"]["output_tokens"] > 0


ANSWERS = [
    ("At nine.", ["message"]),
    ("", ["message"]),
    (CALL, ["function_call"]),
    (f"Let me see. {CALL}\n{CALL}", ["message", "function_call", "function_call"]),
    ("<think>\nAn office.\n</think>\n\nAt nine.", ["reasoning", "message"]),
    (f"<think>\nA city.\n</think>\n\n{CALL}", ["reasoning", "function_call"]),
    (f"<think>Both.</think>One: {CALL} and more", ["reasoning", "message", "function_call", "message"]),
    ("<think>No end", ["reasoning"]),
    ("<tool_call>no call</tool_call>", ["message"]),
]


async def test_pieces_are_the_whole(http: Http, template: None) -> None:
    """Deltas joined are what is done, which is in the object at the end, which is the answer without a stream."""
    for answer, kinds in ANSWERS:
        for finish in (STOP, LENGTH):
            await _pieces_are_the_whole(http, answer, kinds, finish)


async def _pieces_are_the_whole(http: Http, answer: str, kinds: list[str], finish: FinishReason) -> None:
    http.answers(answer, finish=finish)
    events = await stream(http, tools=[WEATHER])
    last = events[-1]["response"]
    status = "completed" if finish is STOP else "incomplete"
    assert (events[-1]["type"], last["status"]) == (f"response.{status}", status)
    assert last["incomplete_details"] == (None if finish is STOP else {"reason": "max_output_tokens"})
    assert [item["type"] for item in last["output"]] == kinds
    for index, item in enumerate(last["output"]):
        of_item = [event for event in events if event.get("output_index") == index]
        assert of_item[0]["type"] == "response.output_item.added"
        assert (of_item[-1]["type"], of_item[-1]["item"]) == ("response.output_item.done", item)
        assert {event["item_id"] for event in of_item[1:-1]} == {item["id"]}
        joined = "".join(event["delta"] for event in of_item if event["type"].endswith(".delta"))
        (done,) = [event for event in of_item if event["type"].endswith((".text.done", "_text.done", "arguments.done"))]
        if item["type"] == "function_call":
            assert joined == done["arguments"] == item["arguments"]
            assert (item["name"], json.loads(joined)) == ("weather", {"city": "Oslo"})
        else:
            assert joined == done["text"] == item["content"][0]["text"]
    assert [item["status"] for item in last["output"][:-1]] == ["completed"] * (len(kinds) - 1)
    whole = await post(http, tools=[WEATHER])
    assert [_same(item) for item in whole["output"]] == [_same(item) for item in last["output"]]
    assert (whole["usage"], whole["status"]) == (last["usage"], last["status"])


def _same(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


async def test_thoughts_are_counted(http: Http, template: None) -> None:
    http.answers("<think>\nAn office.\n</think>\n\nAt nine.", finish=STOP)
    usage = (await post(http))["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]


async def test_what_items_become(http: Http, template: None) -> None:
    http.answers("x")
    await post(
        http,
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Be kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Oslo"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
            },
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
            {"role": "user", "content": "And?"},
        ],
    )
    assert prompt(http).splitlines() == [
        "system: Be brief.",
        "",
        "Be kind.",
        "user: Oslo",
        'assistant: I look.<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call>',
        "tool: rain",
        "tool: sun",
        "user: And?",
    ]


async def test_tools_are_shown_as_a_chat_shows_them(http: Http, template: None) -> None:
    http.answers("x")
    await post(http, tools=[{**WEATHER, "strict": True}])
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    assert json.loads(prompt(http).splitlines()[0]) == {"type": "function", "function": function}
    await post(http, tools=[WEATHER], tool_choice="none")
    assert prompt(http).splitlines() == ["user: Where is the shop?"]


async def test_the_same_chat_has_the_same_prompt_and_sampling(http: Http) -> None:
    http.answers("{}")
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    own = {"top_k": 4, "min_p": 0.1, "seed": 7, "temperature": 0.5, "top_p": 0.9, "presence_penalty": 0.25}
    await post(
        http,
        **own,
        instructions="Be brief.",
        max_output_tokens=9,
        text={"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}},
    )
    await http.raw.post(
        "/v1/chat/completions",
        json={
            "model": "base",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED["input"]}],
            **own,
            "max_tokens": 9,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        },
    )
    one, other = http.backend.commands
    assert one.prompt_ids == other.prompt_ids
    assert (one.sampling, one.grammar) == (other.sampling, other.grammar)
    assert one.grammar is not None


async def test_what_changes_nothing_is_ignored(http: Http) -> None:
    http.answers("x")
    made = await post(
        http,
        store=False,
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "high", "summary": "auto"},
        text={"verbosity": "low"},
        truncation="disabled",
        parallel_tool_calls=True,
        user="u",
        safety_identifier="s",
        service_tier="auto",
        prompt_cache_key="k",
        client_metadata={"a": "b"},
        max_tool_calls=3,
        background=False,
        previous_response_id=None,
        stream_options={"include_obfuscation": False},
    )
    assert (made["user"], made["safety_identifier"], made["prompt_cache_key"]) == ("u", "s", "k")
    assert (made["reasoning"], made["service_tier"]) == ({"effort": None, "summary": None}, "default")


def _part(part: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Look"}, part]}]}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"store": True}, "store", "send all items"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send all items"),
    ({"conversation": "conv_1"}, "conversation", "send all items"),
    ({"background": True}, "background", "use stream"),
    ({"prompt": {"id": "p"}}, "prompt", "instructions"),
    ({"truncation": "auto"}, "truncation", "disabled"),
    ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1]", "'web_search'"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "missing"),
    ({"tools": [{**WEATHER, "parameters": []}]}, "tools[0].parameters", ""),
    ({"tool_choice": "some"}, "tool_choice", ""),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice", ""),
    (_part({"type": "input_image", "image_url": "x"}), "input[0].content[1]", "'input_image'"),
    (_part({"type": "input_file", "file_id": "x"}), "input[0].content[1]", "'input_file'"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "'item_reference'"),
    ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0]", "'computer_call'"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing"),
    ({"input": [{"role": "user", "content": "x", "extra": 1}]}, "input[0].extra", ""),
    ({"input": [7]}, "input[0]", "object"),
    ({"input": 7}, "input", ""),
    ({"input": []}, "input", ""),
    ({"input": [{"role": "judge", "content": "x"}]}, "input[0]", "judge"),
    ({"instructions": "a", "input": [{"role": "judge", "content": "x"}]}, "input[0]", "judge"),
    (
        {
            "input": [
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"},
                {"role": "user", "content": "x"},
            ]
        },
        "input[0]",
        "JSON",
    ),
    ({"input": [{"role": "assistant", "content": "x"}]}, "continue_final_message", ""),
    ({"max_output_tokens": 0}, "max_output_tokens", ""),
    ({"max_output_tokens": "9"}, "max_output_tokens", ""),
    ({"temperature": -1}, "temperature", ""),
    ({"top_logprobs": 3}, "top_logprobs", "include"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "missing"),
    (
        {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"title": "x" * 2**17}}}},
        "text.format.schema",
        "",
    ),
    ({"text": {"format": {"type": "grammar"}}}, "text.format", "'grammar'"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", ""),
    ({"metadata": "x"}, "metadata", ""),
    ({"metadata": {"a": 1}}, "metadata.a", ""),
    ({"include": ["everything"]}, "include[0]", ""),
    ({"max_tokens": 3}, "max_tokens", "no field"),
    ({"messages": []}, "messages", "no field"),
    ({"model": "base+x"}, "model", ""),
]


async def test_bad_fields_are_named(http: Http) -> None:
    for changes, param, words in BAD:
        answer = await http.raw.post("/v1/responses", json={**ASKED, **changes, "stream": len(param) % 2 == 0})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"].startswith(param), error
        assert words in error["message"]
        assert error["message"].startswith(error["param"])
    assert http.backend.commands == []


async def test_an_unknown_model_is_never_the_base(http: Http) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await http.openai.responses.create(model="nobody", input="x")
    assert caught.value.code == "model_not_found"
    assert http.backend.commands == []


async def test_no_answer_is_kept(http: Http) -> None:
    http.answers("x")
    id = (await post(http))["id"]
    for ask in (
        http.openai.responses.retrieve,
        http.openai.responses.delete,
        http.openai.responses.cancel,
        http.openai.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError, match="answers are not kept"):
            await ask(id)


async def test_tokens_are_counted_as_they_are_used(http: Http, template: None) -> None:
    http.answers("x")
    for more in ({}, {"tools": [WEATHER]}, {"instructions": "Be brief.", "tools": [WEATHER], "tool_choice": "none"}):
        counted = await http.openai.responses.input_tokens.count(**ASKED, **more)
        assert counted.input_tokens == (await post(http, **more))["usage"]["input_tokens"]
    with pytest.raises(openai.NotFoundError):
        await http.openai.responses.input_tokens.count(model="nobody", input="x")
    with pytest.raises(openai.BadRequestError, match="input: "):
        await http.openai.responses.input_tokens.count(model="base", input=[])
    with pytest.raises(openai.NotFoundError, match="not compacted"):
        await http.openai.responses.compact(model="base", input="x")


async def test_forced_calls(http: Http, template: None) -> None:
    """A choice of tool reaches the services as that of a chat does."""
    http.answers(CALL, finish=STOP)
    for choice in ("required", {"type": "function", "name": "weather"}):
        made = await post(http, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
        assert [item["type"] for item in made["output"]] == ["function_call"]
        assert made["tool_choice"] == choice
        assert http.backend.commands[-1].grammar is not None
    answer = await http.raw.post(
        "/v1/responses", json={**ASKED, "tools": [WEATHER], "tool_choice": {"type": "function", "name": "time"}}
    )
    assert (answer.status_code, answer.json()["error"]["param"].partition(".")[0]) == (400, "tool_choice")


async def test_an_error_after_the_first_piece_fails_the_response(http: Http) -> None:
    http.answers("The office", raises=Error(Code.UNAVAILABLE, "the engine is starting again", retry_after=5))
    *_, last = await stream(http)
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine is starting again"}
    (item,) = last["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "The office")
    assert await http.calls.next() == ("createResponse", "UNAVAILABLE")
    answer = await http.raw.post("/v1/responses", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")


async def test_a_client_that_leaves_stops_the_engines_work(http: Http) -> None:
    http.answers("The shop is in the harbour street.", hang=True)
    async with http.raw.stream("POST", "/v1/responses", json={**ASKED, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if "output_text.delta" in line:
                break
    assert await asyncio.wait_for(http.calls.next(), 10) == ("createResponse", "CANCELLED")
    assert http.server.running == 0


async def test_logprobs_are_those_of_the_text(http: Http) -> None:
    http.answers("At nine.", finish=STOP)
    include = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = await stream(http, **include)
    assert http.backend.commands[-1].sampling.logprobs == 2
    said = [entry for event in events if event["type"].endswith("text.delta") for entry in event["logprobs"]]
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["logprobs"] == said
    assert (await post(http, **include))["output"][0]["content"][0]["logprobs"] == said


async def test_the_packages_own_stream_and_parsing(http: Http, template: None) -> None:
    """What ``responses.stream`` and ``responses.parse`` gather is the answer."""

    class Shop(BaseModel):
        street: str

    http.answers(f"<think>\nA city.\n</think>\n\nI look. {CALL}", finish=STOP)
    tools: Any = [WEATHER]
    async with http.openai.responses.stream(model="base", input="x", tools=tools) as gathered:
        texts = [event.delta async for event in gathered if event.type == "response.output_text.delta"]
        done = await gathered.get_final_response()
    assert "".join(texts) == done.output_text == "I look."
    assert [item.type for item in done.output] == ["reasoning", "message", "function_call"]
    http.answers('{"street": "Harbour Street"}', finish=STOP)
    parsed = await http.openai.responses.parse(model="base", input="x", text_format=Shop)
    assert parsed.output_parsed == Shop(street="Harbour Street")
    assert http.backend.commands[-1].grammar is not None


async def test_the_client_that_is_not_async(http: Http) -> None:
    http.answers("At nine.", finish=STOP)

    def ask() -> tuple[str, str]:
        with openai.OpenAI(base_url=http.openai.base_url, api_key="none", max_retries=0) as client:
            events = client.responses.create(model="base", input="x", stream=True)
            text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            return text, client.responses.create(model="base", input="x").output_text

    assert await asyncio.to_thread(ask) == ("At nine.", "At nine.")
