"""Messages as Anthropic's own client asks them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.backend import EngineInfo
from loramux_server.core.call import Call
from loramux_server.core.callers.principal import LOCAL, Principal, Scope
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import Chunk, FinishReason, SamplingParams, Usage
from loramux_server.http.anthropic.answer import MessageAnswer
from loramux_server.http.anthropic.convert import prompt_request
from loramux_server.http.anthropic.schema import CountRequest
from loramux_server.http.bodies.parts import AnswerFormat
from loramux_server.services.common.context import Context
from loramux_server.services.inference.types import GenerateRequest
from loramux_server.text import TextTokenizer
from loramux_server.text.answers.tool_calls import ToolFormat
from loramux_server.text.chat.chat_template import ChatTemplate
from tests.examples import examples
from tests.unit.services.fakes import engine_info

from .conftest import Http
from .test_door import Keys

CHAT: Any = [{"role": "user", "content": "Where is the shop?"}]
STOP = FinishReason.STOP
TEMPLATE = (
    "{% if tools %}tools {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.name %} ({{ m.name }}, {{ m.tool_call_id }}){% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
    "{{ '</think>' if never }}"
)
WEATHER: Any = {
    "name": "weather",
    "description": "What the weather is",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def info(text: TextTokenizer) -> EngineInfo:
    """A base that reads long prompts."""
    return engine_info(text.vocab_size, max_context=4096)


@pytest.fixture
def agent(context: Context, http: Http) -> Iterator[Http]:
    """A base whose chat template knows tools and thoughts."""
    context.text.chat_template, kept = ChatTemplate(TEMPLATE), context.text.chat_template
    yield http
    context.text.chat_template = kept


def prompt(http: Http) -> str:
    """What the engine was asked last."""
    return http.context.text.decode(http.backend.commands[-1].prompt_ids)


async def test_an_answer_at_once(http: Http) -> None:
    http.answers("In the harbour street.", finish=STOP)
    done = await http.anthropic.messages.create(
        model="base",
        messages=CHAT,
        max_tokens=20,
        system="Be brief.",
        extra_body={"temperature": 0.5, "top_k": 4, "top_p": 0.5},
    )
    assert (done.role, done.type, done.model, done.stop_reason, done.stop_sequence) == (
        *("assistant", "message", "base", "end_turn"),
        None,
    )
    (block,) = done.content
    assert block.type == "text"
    assert block.text == "In the harbour street."
    assert done.usage.input_tokens == len(http.backend.commands[0].prompt_ids)
    assert done.usage.output_tokens > 0
    sampling = http.backend.commands[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (20, 0.5, 4, 0.5)
    assert prompt(http).startswith("system\nBe brief.\nuser\nWhere is the shop?")
    assert await http.calls.next() == ("createMessage", "OK")


async def test_events_are_complete_and_in_order(http: Http) -> None:
    http.answers("The office opens at nine.", finish=STOP)
    body = {"model": "base", "messages": CHAT, "max_tokens": 20, "stream": True}
    answer = await http.raw.post("/v1/messages", json=body, headers={"x-request-id": "r-1"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["x-request-id"], answer.headers["request-id"]) == ("r-1", "r-1")
    events = [event.split("\n") for event in answer.text.removesuffix("\n\n").split("\n\n")]
    told = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [name for name, _ in events] == [f"event: {event['type']}" for event in told]
    kinds = [event["type"] for event in told]
    pieces = kinds.count("content_block_delta")
    assert kinds == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * pieces,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert pieces > 1
    start, delta = told[0]["message"], told[-2]
    assert (start["id"], start["model"], start["content"], start["stop_reason"]) == ("msg_r-1", "base", [], None)
    assert start["usage"]["input_tokens"] == len(http.backend.commands[0].prompt_ids) == delta["usage"]["input_tokens"]
    assert delta["delta"]["stop_reason"] == "end_turn"
    assert delta["usage"]["output_tokens"] >= start["usage"]["output_tokens"]


async def test_the_streaming_helper(http: Http) -> None:
    http.answers("The office opens at nine.", finish=STOP)
    async with http.anthropic.messages.stream(model="base", messages=CHAT, max_tokens=20) as stream:
        assert "".join([text async for text in stream.text_stream]) == "The office opens at nine."
        done = await stream.get_final_message()
    assert done.stop_reason == "end_turn"
    assert done.usage.input_tokens == len(http.backend.commands[0].prompt_ids)


async def test_the_sync_client(http: Http) -> None:
    http.answers("At nine.", finish=STOP)

    def ask() -> str:
        with (
            anthropic.Anthropic(base_url=f"http://{http.server.address}", api_key="none") as client,
            client.messages.stream(model="base", messages=CHAT, max_tokens=20) as stream,
        ):
            return "".join(stream.text_stream)

    assert await asyncio.to_thread(ask) == "At nine."


async def test_tools_are_called_and_answered(agent: Http) -> None:
    calls = [{"name": "weather", "arguments": {"city": city}} for city in ("Köln", "Rome")]
    said = "Let me look." + "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
    agent.answers(said, "Warm.", finish=STOP)
    asked: list[Any] = [*CHAT]
    first = await agent.anthropic.messages.create(model="base", messages=asked, max_tokens=200, tools=[WEATHER])
    assert first.stop_reason == "tool_use"
    text, *used = first.content
    assert text.type == "text"
    assert text.text == "Let me look."
    assert [block.input for block in used if block.type == "tool_use"] == [{"city": "Köln"}, {"city": "Rome"}]
    assert '"parameters": {"type": "object"' in prompt(agent)
    ids = [block.id for block in used if block.type == "tool_use"]
    assert len(set(ids)) == 2
    results = [{"type": "tool_result", "tool_use_id": id, "content": f"warm in {id}"} for id in ids]
    results[1]["content"] = [{"type": "text", "text": "hot"}, {"type": "text", "text": "dry"}]  # type: ignore[assignment]
    asked += [
        {"role": "assistant", "content": first.content},
        {
            "role": "user",
            "content": [*results, {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}}],
        },
    ]
    second = await agent.anthropic.messages.create(model="base", messages=asked, max_tokens=20, tools=[WEATHER])
    assert second.stop_reason == "end_turn"
    shown = prompt(agent)
    assert shown.count("<tool_call>") == 2
    assert f"tool\nwarm in {ids[0]} (weather, {ids[0]})\n" in shown
    assert f"tool\nhot\ndry (weather, {ids[1]})\nuser\nAnd?\nassistant" in shown


async def test_tools_that_are_not_to_be_called_are_not_shown(agent: Http) -> None:
    agent.answers('<tool_call>{"name": "weather", "arguments": {}}</tool_call>', finish=STOP)
    asked: Any = {"model": "base", "messages": CHAT, "max_tokens": 200, "tools": [WEATHER]}
    done = await agent.anthropic.messages.create(**asked, tool_choice={"type": "none"})
    assert "tools" not in prompt(agent)
    assert [block.type for block in done.content] == ["text"]
    counted = await agent.anthropic.messages.count_tokens(
        model="base", messages=CHAT, tools=[WEATHER], tool_choice={"type": "none"}
    )
    assert counted.input_tokens == done.usage.input_tokens


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_calls_that_are_forced(agent: Http, choice: Any) -> None:
    agent.answers('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', finish=STOP)
    asked: Any = {"model": "base", "messages": CHAT, "max_tokens": 200, "tools": [WEATHER]}
    done = await agent.anthropic.messages.create(**asked, tool_choice={**choice, "disable_parallel_tool_use": True})
    grammar = agent.backend.commands[-1].grammar
    assert grammar is not None
    assert "weather" in grammar.text
    assert "start: call\n" in grammar.text  # one alone
    (block,) = done.content
    assert block.type == "tool_use"
    assert block.input == {"city": "Rome"}
    assert done.stop_reason == "tool_use"
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        await agent.anthropic.messages.create(**{**asked, "tools": []}, tool_choice=choice)


async def test_thoughts(agent: Http) -> None:
    """The template decides by ``thinking``; in a later turn they are ignored."""
    agent.answers("hm, 9</think>Nine.", finish=STOP)
    asked: Any = {"model": "base", "messages": CHAT, "max_tokens": 20}
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    done = await agent.anthropic.messages.create(**asked, thinking=thinking)
    first, second = done.content
    assert first.type == "thinking"
    assert (first.thinking, first.signature) == ("hm, 9", "")
    assert second.type == "text"
    assert second.text == "Nine."
    async with agent.anthropic.messages.stream(**asked, thinking={**thinking, "display": "omitted"}) as stream:
        events = [event.type async for event in stream]
        hidden = (await stream.get_final_message()).content
    assert "thinking" not in events
    assert [block.to_dict() for block in hidden] == [{**first.to_dict(), "thinking": ""}, second.to_dict()]
    for off in ({"type": "disabled"}, None):
        done = await agent.anthropic.messages.create(**asked, **({"thinking": off} if off else {}))
        assert [block.type for block in done.content] == ["text"]
    own = {"chat_template_kwargs": {"enable_thinking": False}}
    done = await agent.anthropic.messages.create(**asked, thinking={"type": "adaptive"}, extra_body=own)
    assert [block.type for block in done.content] == ["text"]
    redacted = {"type": "redacted_thinking", "data": "x"}
    turns: Any = [*CHAT, {"role": "assistant", "content": [first, redacted, second]}, *CHAT]
    await agent.anthropic.messages.create(model="base", max_tokens=20, messages=turns)
    assert "assistant\nNine.\nuser" in prompt(agent)


async def test_why_an_answer_ended(http: Http) -> None:
    http.answers("The office opens at nine.", finish=STOP)
    asked: Any = {"model": "base", "messages": CHAT}
    done = await http.anthropic.messages.create(**asked, max_tokens=20, stop_sequences=["at ten", " at "])
    assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", " at ")
    assert done.content[0].to_dict()["text"] == "The office opens"
    http.answers("x", finish=FinishReason.LENGTH)
    done = await http.anthropic.messages.create(**asked, max_tokens=1)
    assert done.stop_reason == "max_tokens"
    done = await http.anthropic.messages.create(**asked, max_tokens=1000)
    assert done.stop_reason == "model_context_window_exceeded"


async def test_the_last_turn_of_the_assistant_is_gone_on_with(http: Http) -> None:
    http.answers(" street.", finish=STOP)
    turns: Any = [*CHAT, {"role": "assistant", "content": "In the harbour"}]
    done = await http.anthropic.messages.create(model="base", messages=turns, max_tokens=20)
    assert prompt(http).endswith("assistant\nIn the harbour")
    assert done.content[0].to_dict()["text"] == " street."


async def test_turns_of_one_role_are_one(http: Http) -> None:
    http.answers("x", finish=STOP)
    texts: Any = [{"type": "text", "text": "Hello."}, {"type": "text", "text": "Where?", "citations": None}]
    turns: Any = [{"role": "user", "content": texts}, {"role": "user", "content": "And when?"}]
    await http.anthropic.messages.create(model="base", messages=turns, max_tokens=2, system=texts)
    assert prompt(http) == "system\nHello.\nWhere?\nuser\nHello.\nWhere?\nAnd when?\nassistant\n"


async def test_what_changes_nothing_is_taken(http: Http) -> None:
    http.answers("x", finish=STOP)
    body = {
        "model": "base",
        "messages": CHAT,
        "max_tokens": 2,
        "seed": 7,
        "min_p": 0.1,
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "context_management": {"edits": []},
        "output_config": {"effort": "low"},
        "speed": "standard",
        "tools": [{**WEATHER, "type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "whatever-2026"}
    answer = await http.raw.post("/v1/messages?beta=true", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert http.backend.commands[-1].sampling.seed == 7


async def test_shapes(http: Http) -> None:
    http.answers("{}", finish=STOP)
    shape = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    for body in ({"output_config": {"format": shape}}, {"output_format": shape}):
        answer = await http.raw.post("/v1/messages", json={"model": "base", "messages": CHAT, "max_tokens": 9, **body})
        assert answer.status_code == 200, answer.text
        assert http.backend.commands[-1].grammar is not None


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
USED = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "warm"}


def turn(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"max_tokens": 0}, "max_tokens: is 0"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"temperature": -1}, "temperature: is -1"),
        ({"unknown": 1}, "unknown: is no field"),
        ({"container": "c"}, "container: is no field"),
        ({"mcp_servers": []}, "mcp_servers: is no field"),
        (turn({"type": "text", "text": "x"}, IMAGE), "messages[0].content[1]: is of type 'image'"),
        (turn({"type": "document", "source": {}}), "messages[0].content[0]: is of type 'document'"),
        (turn("x"), "messages[0].content[0]: must be an object"),
        (turn({"type": ["text"]}), "messages[0].content[0]: is of type ['text']"),
        (turn({"type": "text"}), "messages[0].content[0].text: is missing"),
        (turn({"type": "text", "text": "x", "extra": 1}), "messages[0].content[0].extra: is no field"),
        (turn(USED), "messages[0].content[0]: is tool_use"),
        (turn(RESULT, role="assistant"), "messages[0].content[0]: is tool_result"),
        (turn({**RESULT, "content": [IMAGE]}), "messages[0].content[0].content[0]: is of type 'image'"),
        ({"messages": [*CHAT, {"role": "assistant", "content": [USED]}]}, "messages: end with tool_use"),
        ({"system": [IMAGE]}, "system[0]: is of type 'image'"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0]: is of type 'web_search_20250305'",
        ),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema: is missing"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name: "),
        ({"tool_choice": {"type": "auto", "name": "a"}}, "tool_choice.name: "),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "none"}}, "tool_choice: "),
        ({"thinking": {"type": "maximal"}}, "thinking.type: "),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format"),
        ({"stop_sequences": [""]}, "stop"),
        ({"model": "acme:x"}, "model: "),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
async def test_bad_fields_are_named(http: Http, changes: dict[str, Any], said: str) -> None:
    body = {"model": "base", "messages": CHAT, "max_tokens": 9, **changes}
    answer = await http.raw.post("/v1/messages", json={key: value for key, value in body.items() if value is not None})
    assert answer.status_code == 400, answer.text
    told = answer.json()
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert told["error"]["message"].startswith(said), told
    assert told["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    assert http.backend.commands == []


async def test_errors_are_the_clients_own(http: Http) -> None:
    asked: Any = {"messages": CHAT, "max_tokens": 9}
    for model in ("nobody", "nobody@3", "nobody+also:0.5"):
        with pytest.raises(anthropic.NotFoundError) as missing:
            await http.anthropic.messages.create(model=model, **asked)
        assert missing.value.type == "not_found_error"
        with pytest.raises(anthropic.NotFoundError):
            await http.anthropic.messages.count_tokens(model=model, messages=CHAT)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await http.anthropic.messages.create(model="base", messages=CHAT, max_tokens=-1)
    large = b'{"model": "' + b"x" * (9 << 20) + b'"}'
    answer = await http.raw.post("/v1/messages", content=large, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")
    answer = await http.raw.get("/v1/messages")
    assert (answer.status_code, answer.json()["type"], answer.headers["allow"]) == (405, "error", "POST")
    http.access.authenticator = Keys()
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        await http.anthropic.messages.create(model="base", **asked)
    assert unknown.value.request_id
    http.answers("x", finish=STOP)
    reader = {"x-api-key": "reader"}
    answer = await http.raw.post("/v1/messages", json={"model": "base", **asked}, headers=reader)
    assert answer.status_code == 200


class Trainer:
    """Knows everybody as somebody who may train alone."""

    async def authenticate(self, credentials: object) -> Principal:
        return Principal("acme", frozenset({Scope.TRAIN}), "t")


async def test_a_missing_scope_is_a_permission(http: Http) -> None:
    http.access.authenticator = Trainer()
    with pytest.raises(anthropic.PermissionDeniedError, match="infer") as refused:
        await http.anthropic.messages.create(model="base", messages=CHAT, max_tokens=9)
    assert refused.value.type == "permission_error"


async def test_a_full_server_is_overloaded(http: Http) -> None:
    http.answers("x", hang=True)
    asked: Any = {"model": "base", "messages": CHAT, "max_tokens": 9}
    waiting = [asyncio.create_task(http.anthropic.messages.create(**asked)) for _ in range(4)]
    while http.server.running < 4:  # noqa: ASYNC110 - a turn of the loop, not a time
        await asyncio.sleep(0)
    with pytest.raises(anthropic.OverloadedError) as caught:
        await http.anthropic.messages.create(**asked)
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.type == "overloaded_error"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Error(Code.UNAVAILABLE, "the engine is starting again", retry_after=5), 503, "api_error"),
        (Error(Code.DEADLINE_EXCEEDED, "too late"), 504, "timeout_error"),
        (Error(Code.RESOURCE_EXHAUSTED, "a quota", reason="QUOTA_EXCEEDED"), 429, "rate_limit_error"),
        (KeyError("/secret/path"), 500, "api_error"),
    ],
)
async def test_failures_have_their_types(http: Http, error: Exception, status: int, kind: str) -> None:
    def broken(command: object) -> Any:
        raise error

    http.backend.script = broken
    with pytest.raises(anthropic.APIStatusError) as caught:
        await http.anthropic.messages.create(model="base", messages=CHAT, max_tokens=9)
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert "secret" not in str(caught.value)


async def test_an_error_after_the_first_piece_is_an_event(http: Http) -> None:
    http.answers("The office", raises=Error(Code.UNAVAILABLE, "the engine is starting again", retry_after=5))
    async with http.anthropic.messages.stream(model="base", messages=CHAT, max_tokens=9) as stream:
        texts = stream.text_stream
        assert await anext(texts)
        with pytest.raises(anthropic.APIStatusError, match="starting again"):
            await _rest(texts)


async def _rest(texts: AsyncIterator[str]) -> list[str]:
    return [text async for text in texts]


async def test_a_client_that_leaves_stops_the_engines_work(http: Http) -> None:
    http.answers("The shop is in the harbour street.", hang=True)
    body = {"model": "base", "messages": CHAT, "max_tokens": 99, "stream": True}
    async with http.raw.stream("POST", "/v1/messages", json=body) as answer:
        async for line in answer.aiter_lines():
            if "harbour" in line or "shop" in line:
                break
    assert await asyncio.wait_for(http.calls.next(), 10) == ("createMessage", "CANCELLED")
    assert http.server.running == 0


async def test_tokens_are_counted_as_they_are_asked(agent: Http) -> None:
    agent.answers("x", finish=STOP)
    asked: Any = {"model": "base", "messages": CHAT, "system": "Be brief.", "tools": [WEATHER]}
    asked["thinking"] = {"type": "adaptive"}
    done = await agent.anthropic.messages.create(**asked, max_tokens=2)
    counted = await agent.anthropic.messages.count_tokens(**asked)
    assert counted.input_tokens == done.usage.input_tokens
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await agent.anthropic.messages.count_tokens(**asked, extra_body={"max_tokens": 2})


async def test_models(http: Http) -> None:
    (base,) = [model async for model in await http.anthropic.models.list(limit=1)]
    assert (base.id, base.type, base.max_input_tokens) == ("base", "model", http.context.info.max_context)
    assert (await http.anthropic.models.retrieve("base")).to_dict() == base.to_dict()
    with pytest.raises(anthropic.NotFoundError):
        await http.anthropic.models.retrieve("nobody")


# Blocks, however the text is cut.

CALL = '<tool_call>{"name": "f", "arguments": %s}</tool_call>'
PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "hm, ", "Nine", " ", "\n", "<tool", "<tool_call>", "</tool_call>"),
        *(CALL % arguments for arguments in ('{"a": "ü"}', "{}", "[1]", '"{\\"a\\": 1}"', '"x"', '{"a": NaN}')),
        *(CALL % arguments for arguments in ('{"a": "\\ud800"}', '{"a": 1e999}', "null")),
    ]
)
FORMATS = st.builds(
    AnswerFormat, tools=st.sampled_from([None, *ToolFormat]), reasoning=st.booleans(), opened=st.booleans()
)


def chunks(texts: list[str], stop: str) -> list[Chunk]:
    usage = Usage(9, len(texts), 4)
    made = [Chunk(text=text) for text in [*texts, ""]]
    made[0] = Chunk(text=made[0].text, usage_so_far=Usage(9, 1, 4))
    last = made.pop()
    made.append(Chunk(text=last.text, usage_so_far=last.usage_so_far, finish_reason=STOP, stop=stop, usage=usage))
    return made


@given(
    parts=st.lists(PIECES, max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    format=FORMATS,
    shows=st.booleans(),
    stop=st.sampled_from(["", "END"]),
)
@examples(300)
def test_events_tell_the_whole_message(
    parts: list[str], cuts: list[int], format: AnswerFormat, shows: bool, stop: str
) -> None:
    """What Anthropic's client gathers from the events is the message that is answered at once."""
    from anthropic.lib.streaming._messages import accumulate_event

    text = "".join(parts)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    request = GenerateRequest(principal=LOCAL, request_id="r", sampling=SamplingParams(max_tokens=99))

    def play() -> tuple[list[Any], dict[str, Any]]:
        answer = MessageAnswer(request, format, shows_thoughts=shows)
        events = [
            event for chunk in chunks([text[a:b] for a, b in pairwise(places)], stop) for event in answer.add(chunk)
        ]
        return json.loads(json.dumps(events, allow_nan=False)), answer.message

    events, whole = play()
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    open_blocks: list[int] = []
    for number, event in enumerate(events):
        read: Any = event
        snapshot = accumulate_event(event=read, current_snapshot=snapshot, json_bufs=buffers)
        match event["type"]:
            case "content_block_start":
                assert open_blocks == []
                open_blocks.append(event["index"])
            case "content_block_delta":
                assert open_blocks == [event["index"]]
            case "content_block_stop":
                assert open_blocks.pop() == event["index"]
        assert (event["type"] == "message_start") == (number == 0)
        assert (event["type"] == "message_stop") == (number == len(events) - 1)
    gathered = json.loads(snapshot.to_json())
    json.dumps(whole, ensure_ascii=False, allow_nan=False).encode()
    assert gathered == json.loads(json.dumps(whole))


def test_turns_of_one_role_are_joined_in_a_time_that_grows_with_their_length() -> None:
    """Each is copied once: a copy for every further turn would take minutes."""
    texts = [f"{i} {'x' * 190}" for i in range(30_000)]
    turns = [{"role": "user", "content": text} for text in texts] + [{"role": "assistant", "content": "so"}]
    asked = CountRequest.model_validate({"model": "base", "messages": turns})
    started = time.process_time()
    made = prompt_request(asked, Call("countMessageTokens", "1", LOCAL)).messages
    assert time.process_time() - started < 2
    assert [(message.role, message.content) for message in made] == [("user", "\n".join(texts)), ("assistant", "so")]
