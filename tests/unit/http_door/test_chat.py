"""Chats as OpenAI's own client asks them."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest

from loramux_server.core.types import FinishReason, TokenLogprob
from loramux_server.http.openai.answer import LEAST_LOGPROB, logprob_of
from loramux_server.http.openai.completions import logprobs_of
from loramux_server.services.common.context import Context
from loramux_server.text.chat.chat_template import ChatTemplate

from .conftest import Http

CHAT: Any = [{"role": "user", "content": "Where is the shop?"}]
STOP = FinishReason.STOP


async def test_an_answer_at_once(http: Http) -> None:
    http.answers("In the harbour street.", finish=STOP)
    done = await http.openai.chat.completions.create(
        model="base", messages=CHAT, temperature=0.5, seed=7, max_tokens=20
    )
    (choice,) = done.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "In the harbour street.")
    assert (choice.finish_reason, done.model, done.object) == ("stop", "base", "chat.completion")
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens > 0
    (command,) = http.backend.commands
    assert (command.sampling.temperature, command.sampling.seed, command.sampling.max_tokens) == (0.5, 7, 20)
    assert await http.calls.next() == ("createChatCompletion", "OK")


async def test_a_stream_has_the_role_first_then_pieces_the_reason_and_usage(http: Http) -> None:
    http.answers("The office opens at nine.", finish=STOP)
    stream = await http.openai.chat.completions.create(
        model="base", messages=CHAT, stream=True, stream_options={"include_usage": True}, n=2, logprobs=False
    )
    chunks = [chunk async for chunk in stream]
    deltas = [(c.index, c.delta) for chunk in chunks for c in chunk.choices]
    assert [(i, d.role, d.content) for i, d in deltas[:2]] == [(0, "assistant", ""), (1, "assistant", "")]
    for index in (0, 1):
        assert "".join(d.content or "" for i, d in deltas if i == index) == "The office opens at nine."
    reasons = [(c.index, c.finish_reason) for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(reasons) == [(0, "stop"), (1, "stop")]
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_last_event_is_done(http: Http) -> None:
    http.answers("Paris.")
    body = {"model": "base", "messages": CHAT, "stream": True}
    answer = await http.raw.post("/v1/chat/completions", json=body, headers={"x-request-id": "r-1"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"] == "r-1"
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["id"] == "chatcmpl-r-1" for event in events[:-1])


async def test_logprobs_have_bytes(http: Http) -> None:
    http.answers("nine")
    done = await http.openai.chat.completions.create(model="base", messages=CHAT, logprobs=True, top_logprobs=2)
    (command,) = http.backend.commands
    assert command.sampling.logprobs == 2
    assert done.choices[0].logprobs is not None


def test_logprobs_of_what_cannot_come_are_json() -> None:
    """Logits of a 16-bit base can overflow to minus infinity, which JSON has no number for."""
    entry = TokenLogprob(1, 0.0, ((1, 0.0), (2, -math.inf)), (b"a", b"a", b"b"))
    assert [top["logprob"] for top in logprob_of(entry)["top_logprobs"]] == [0.0, LEAST_LOGPROB]
    assert logprobs_of([entry])["top_logprobs"] == [{"a": 0.0, "b": LEAST_LOGPROB}]


async def test_what_every_field_becomes(http: Http) -> None:
    http.answers("x")
    await http.openai.chat.completions.create(
        model="base",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Where is the shop?"}]},
        ],
        max_completion_tokens=9,
        top_p=0.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"5": 2},
        stop=["END", "STOP"],
        user="u",
        metadata={"a": "b"},
        store=False,
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 1, "stop_token_ids": [7]},
    )
    sampling = http.backend.commands[0].sampling
    assert (sampling.max_tokens, sampling.top_p, sampling.top_k, sampling.min_p) == (9, 0.5, 4, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.25, -0.5, 1.2)
    assert (sampling.logit_bias, sampling.stop_token_ids, sampling.min_tokens) == (((5, 2.0),), (7,), 1)
    assert "system\nBe brief." in http.context.text.decode(http.backend.commands[0].prompt_ids)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
        ),
        ({"messages": "hi"}, "messages"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"unknown": 1}, "unknown"),
        ({"store": True}, "store"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": "any", "tools": [{"name": "a"}]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [{"name": "a"}]}, "tool_choice"),
        # The base's template has no form of calls.
        ({"tool_choice": "required", "tools": [{"name": "a"}]}, "tool_choice"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"model": "acme:x"}, "model"),
        ({"model": ""}, "model"),
        ({"model": "base+acme"}, "model"),
        ({"model": "acme", "adapters": [{"name": "b"}]}, "adapters"),
        ({"adapters": [{"name": "b", "scale": 1}]}, "adapters[0].scale"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
    ],
)
async def test_bad_fields_are_named(http: Http, changes: dict[str, Any], param: str) -> None:
    answer = await http.raw.post("/v1/chat/completions", json={"model": "base", "messages": CHAT, **changes})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param), error
    assert http.backend.commands == []


async def test_an_unknown_model_is_never_the_base(http: Http) -> None:
    for model in ("nobody", "nobody@3", "gpt-4o", "base@1", "nobody:0", "nobody+also:0.5"):
        with pytest.raises(openai.NotFoundError) as caught:
            await http.openai.chat.completions.create(model=model, messages=CHAT)
        assert caught.value.code == "model_not_found"
        assert http.backend.commands == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'"x"', b"NaN", b'{"a":' * 5000 + b"1" + b"}" * 5000])
async def test_bodies_that_are_no_request(http: Http, body: bytes) -> None:
    answer = await http.raw.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_bodies_that_are_too_large_or_no_json(http: Http) -> None:
    large = b'{"model": "' + b"x" * (9 << 20) + b'"}'
    answer = await http.raw.post("/v1/chat/completions", content=large, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    answer = await http.raw.post("/v1/chat/completions", content=b"a=b", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-type")


async def test_a_client_that_leaves_stops_the_engines_work(http: Http) -> None:
    http.answers("The shop is in the harbour street.", hang=True)
    body = {"model": "base", "messages": CHAT, "stream": True}
    async with http.raw.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if "harbour" in line or "shop" in line:
                break
    assert await asyncio.wait_for(http.calls.next(), 10) == ("createChatCompletion", "CANCELLED")
    assert http.server.running == 0


async def test_an_error_after_the_first_piece_is_an_event(http: Http) -> None:
    from loramux_server.core.errors import Code, Error

    http.answers("The office", raises=Error(Code.UNAVAILABLE, "the engine is starting again", retry_after=5))
    with pytest.raises(openai.APIError, match="starting again"):
        async for _ in await http.openai.chat.completions.create(model="base", messages=CHAT, stream=True):
            pass


async def test_too_many_at_once_are_told_when_to_try_again(http: Http) -> None:
    http.answers("x", hang=True)
    waiting = [asyncio.create_task(http.openai.chat.completions.create(model="base", messages=CHAT)) for _ in range(4)]
    while http.server.running < 4:  # noqa: ASYNC110 - a turn of the loop, not a time
        await asyncio.sleep(0)
    with pytest.raises(openai.RateLimitError) as caught:
        await http.openai.chat.completions.create(model="base", messages=CHAT)
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.code == "rate_limit_exceeded"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_shapes(http: Http) -> None:
    http.answers("{}")
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    shapes: list[dict[str, Any]] = [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}},
        {"structured_outputs": {"regex": "[0-9]+"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"json": schema}},
    ]
    for shape in shapes:
        answer = await http.raw.post("/v1/chat/completions", json={"model": "base", "messages": CHAT, **shape})
        assert answer.status_code == 200, answer.text
        assert http.backend.commands[-1].grammar is not None
    await http.openai.chat.completions.create(model="base", messages=CHAT, response_format={"type": "text"})
    assert http.backend.commands[-1].grammar is None


async def test_thoughts_that_the_prompt_opens(context: Context, http: Http) -> None:
    """The template decides, by the arguments that it is given; those that are none are refused before."""
    source = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if thinking %}<think>\n{% endif %}{# </think> #}"
    context.text.chat_template, kept = ChatTemplate(source + "{{ '</think>' if never }}"), context.text.chat_template
    try:
        http.answers("hm, 9</think>Nine.", finish=STOP)
        body: dict[str, Any] = {"model": "base", "messages": CHAT}
        for kwargs, thoughts, content in (({"thinking": True}, "hm, 9", "Nine."), ({}, None, "hm, 9</think>Nine.")):
            answer = await http.raw.post("/v1/chat/completions", json={**body, "chat_template_kwargs": kwargs})
            message = answer.json()["choices"][0]["message"]
            assert (message.get("reasoning_content"), message["content"]) == (thoughts, content)
        answer = await http.raw.post("/v1/chat/completions", json={**body, "chat_template_kwargs": {"messages": []}})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    finally:
        context.text.chat_template = kept
