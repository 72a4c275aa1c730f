"""From OpenAI's requests to the generation that every door asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...core.call import Call
from ...core.errors import invalid_field
from ...core.types import BASE_NAME, Message, SamplingParams, StackItem
from ...services.inference.types import GenerateRequest
from ...text.answers.forced_calls import ToolChoice, ToolMode
from ..bodies.fields import as_text
from ..bodies.names import parse_model
from .schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    JsonSchemaFormat,
    NamedTool,
    Sampling,
    StructuredOutputs,
    TextFormat,
)

_SAME = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_SPELT = {"developer": "system"}
"""Roles that no chat template knows, and the one that stands for them."""


def chat_request(asked: ChatRequest, call: Call, defaults: SamplingParams) -> GenerateRequest:
    """A chat as a generation."""
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise invalid_field("max_tokens", "must be left out beside max_completion_tokens")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid_field("top_logprobs", "needs logprobs: true")
    sampling = _sampling(asked, defaults)
    if asked.max_completion_tokens is not None:
        sampling = replace(sampling, max_tokens=asked.max_completion_tokens)
    if asked.logprobs:
        sampling = replace(sampling, logprobs=asked.top_logprobs or 0)
    return GenerateRequest(
        messages=tuple(_message(message) for message in asked.messages),
        tools=as_text(asked.tools or None),
        tool_choice=_tool_choice(asked),
        chat_template_kwargs=as_text(asked.chat_template_kwargs),
        continue_final_message=asked.continue_final_message,
        **_shared(asked, call, sampling),
    )


def completion_requests(asked: CompletionRequest, call: Call, defaults: SamplingParams) -> list[GenerateRequest]:
    """Plain prompts as generations, one each."""
    sampling = _sampling(asked, defaults)
    if asked.logprobs is not None:
        sampling = replace(sampling, logprobs=asked.logprobs)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if not prompts:
        raise invalid_field("prompt", "has no text")
    return [GenerateRequest(prompt=prompt, **_shared(asked, call, sampling)) for prompt in prompts]


def _shared(asked: ChatRequest | CompletionRequest, call: Call, sampling: SamplingParams) -> dict[str, Any]:
    stop = asked.stop if asked.stop is not None else []
    return {
        "adapters": _stack(asked),
        "sampling": sampling,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "n": 1 if asked.n is None else asked.n,
        "principal": call.principal,
        "request_id": call.request_id,
        "deadline": call.deadline,
        "response_format": _shape(asked),
    }


def _stack(asked: Sampling) -> tuple[StackItem, ...]:
    """The stack, in whichever of three ways it is written."""
    if asked.lora is None:
        return parse_model(asked.model, asked.adapters)
    if asked.adapters or asked.model != BASE_NAME:
        what = f"must be left out beside adapters, and where model names a stack; set model to {BASE_NAME!r}"
        raise invalid_field("lora", what)
    return tuple(StackItem(_named(a.id, f"lora[{i}].id"), float(a.scale)) for i, a in enumerate(asked.lora))


def _named(id: str | int, field: str) -> str:
    """An adapter's name: its place in a list changes when others come and go, and would silently mean another."""
    if isinstance(id, int):
        raise invalid_field(
            field, f"is {id}; adapters have names here: send an id of GET /lora-adapters, such as 'acme'"
        )
    return id


def _sampling(asked: Sampling, defaults: SamplingParams) -> SamplingParams:
    given = {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
    if asked.max_tokens is not None:
        given["max_tokens"] = asked.max_tokens
    return replace(
        defaults,
        **given,
        logit_bias=tuple(sorted(_bias(asked.logit_bias or {}))),
        stop_token_ids=tuple(asked.stop_token_ids or ()),
        ignore_eos=asked.ignore_eos,
        min_tokens=asked.min_tokens,
    )


def _bias(given: dict[str, float]) -> list[tuple[int, float]]:
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise invalid_field("logit_bias", f"has the key {token[:20]!r}; keys are token ids")
    return [(int(token), float(value)) for token, value in given.items()]


def _message(message: ChatMessage) -> Message:
    content = message.content if message.content is not None else ""
    calls = [call.model_dump(exclude_none=True) for call in message.tool_calls or ()]
    return Message(
        role=_SPELT.get(message.role, message.role),
        content=content if isinstance(content, str) else tuple({"type": "text", "text": p.text} for p in content),
        tool_calls=as_text(calls) if calls else "",
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
    )


def _tool_choice(asked: ChatRequest) -> ToolChoice:
    given, single = asked.tool_choice, asked.parallel_tool_calls is False
    if isinstance(given, NamedTool):
        return ToolChoice(ToolMode.REQUIRED, given.function.name, single)
    return ToolChoice(ToolMode(given or "auto"), single=single)


def _shape(asked: ChatRequest | CompletionRequest) -> dict[str, Any] | None:
    """``{"type": kind, kind: value}`` as the services take it; None: free text."""
    if asked.structured_outputs is not None:
        if asked.response_format is not None:
            raise invalid_field("structured_outputs", "must be left out beside response_format")
        return _structured(asked.structured_outputs)
    given = asked.response_format
    if given is None or isinstance(given, TextFormat):
        return None
    if isinstance(given, JsonSchemaFormat):
        return {"type": "json_schema", "json_schema": as_text(given.json_schema.schema_)}
    return {"type": "json_object"}


def _structured(given: StructuredOutputs) -> dict[str, Any]:
    json_schema = given.json_ if isinstance(given.json_, str) else as_text(given.json_)
    shapes = {
        "json_schema": json_schema or None,
        "regex": given.regex,
        "choice": given.choice,
        "grammar": given.grammar,
    }
    named = {kind: value for kind, value in shapes.items() if value is not None}
    if len(named) != 1:
        raise invalid_field("structured_outputs", "must have exactly one of json, regex, choice and grammar")
    ((kind, value),) = named.items()
    return {"type": kind, kind: value}
