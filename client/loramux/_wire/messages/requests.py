"""From Python arguments to messages of the API. Pure functions; what has no form in a message is InvalidArgument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, TypeAlias, TypedDict

from ...errors import invalid
from ...types.usage import DIMENSIONS
from ...v1 import adapters_pb2, inference_pb2, usage_pb2
from .fields import assign, filled, items, shown, strings
from .options import check_known, chosen, json_objects, json_text
from .stacks import Adapters, stack

ChatMessage: TypeAlias = "Mapping[str, Any]"
Day: TypeAlias = "date | str"
"""A day of UTC; as text ``YYYY-MM-DD``."""


class GenerateOptions(TypedDict, total=False):
    """How tokens are chosen, counted in tokens. What is left out or None takes the server's default."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    logprobs: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    min_tokens: int | None
    n: int | None
    response_format: Mapping[str, Any] | None
    request_id: str | None
    continue_final_message: bool | None
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None


def generate(
    prompt: str | None,
    messages: Iterable[ChatMessage] | None,
    adapters: Adapters | None,
    options: Mapping[str, Any],
) -> inference_pb2.GenerateRequest:
    """A generation; exactly one of ``prompt`` and ``messages``."""
    request = inference_pb2.GenerateRequest(adapters=stack(adapters))
    _input(request, prompt, messages)
    check_known(options, GenerateOptions)
    given = chosen(options)
    if "stop" in given:
        given["stop"] = strings("stop", given["stop"])
    if "response_format" in given:
        shape = response_format(given.pop("response_format"))
        if shape is not None:
            request.response_format.CopyFrom(shape)
    if given.keys() & {"tool_choice", "parallel_tool_calls"}:
        choice = tool_choice(given.pop("tool_choice", "auto"), given.pop("parallel_tool_calls", True))
        request.tool_choice.CopyFrom(choice)
    assign(request, given)
    return request


def score(
    prompt: str | None,
    messages: Iterable[ChatMessage] | None,
    continuation: str,
    adapters: Adapters | None,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> inference_pb2.ScoreRequest:
    """A continuation to score after exactly one of ``prompt`` and ``messages``."""
    request = inference_pb2.ScoreRequest(adapters=stack(adapters))
    _input(request, prompt, messages)
    given = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
    assign(request, {"continuation": continuation, "continue_final_message": continue_final_message, **chosen(given)})
    return request


def embed(
    input: str | Iterable[str | Sequence[int]],
    adapters: Adapters | None,
    pooling: str | None,
    normalize: bool | None,
    dimensions: int | None,
) -> inference_pb2.EmbedRequest:
    """Texts to embed, or their token ids."""
    request = inference_pb2.EmbedRequest(adapters=stack(adapters))
    texts = [input] if isinstance(input, str) else items("input", input, "a text or a list of texts or of lists of ids")
    for i, given in enumerate(texts):
        entry = request.input.add()
        if isinstance(given, str):
            assign(entry, {"text": given}, f"input[{i}].")
        else:
            ids = items(f"input[{i}]", given, "a text or a list of token ids")
            entry.token_ids.SetInParent()
            assign(entry.token_ids, {"ids": ids}, f"input[{i}].")
    if pooling is not None:
        words = {w.removeprefix("POOLING_").lower(): n for w, n in inference_pb2.Pooling.items() if n}
        if not isinstance(pooling, str) or pooling not in words:
            raise invalid("pooling", f"is {shown(pooling)}; it must be one of {', '.join(words)}")
        request.pooling = words[pooling]
    assign(request, {k: v for k, v in {"normalize": normalize, "dimensions": dimensions}.items() if v is not None})
    return request


def tokenize(
    prompt: str | None,
    messages: Iterable[ChatMessage] | None,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> inference_pb2.TokenizeRequest:
    """A text to tokenise: exactly one of ``prompt`` and ``messages``."""
    request = inference_pb2.TokenizeRequest()
    _input(request, prompt, messages)
    given = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
    assign(request, {"continue_final_message": continue_final_message, **chosen(given)})
    return request


def response_format(value: Mapping[str, Any]) -> inference_pb2.ResponseFormat | None:
    """A shape for the answer; None for free text.

    ``{"json_schema": schema}``, ``{"regex": text}``, ``{"choice": [texts]}``, ``{"grammar": Lark text}``,
    ``{"json_object": True}``; or with the kind under "type", as OpenAI writes it:
    ``{"type": "json_schema", "json_schema": {"schema": schema}}``, ``{"type": "json_object"}``, ``{"type": "text"}``,
    ``{"type": "regex", "regex": text}`` and so on.
    """
    kind, shape = _kind_of_format(value)
    message = inference_pb2.ResponseFormat()
    if kind == "text":
        return None
    if kind == "json_schema":
        assign(message, {kind: json_text("response_format.json_schema", shape)}, "response_format.")
    elif kind in ("regex", "grammar"):
        assign(message, {kind: shape}, "response_format.")
    elif kind == "choice":
        message.choice.choices.extend(strings("response_format.choice", shape))
    elif kind == "json_object":
        message.json_object.SetInParent()
    else:
        raise invalid(f"response_format.{kind}", "is unknown; use json_schema, regex, choice, grammar or json_object")
    return message


def tool_choice(value: str | Mapping[str, Any], parallel: bool) -> inference_pb2.ToolChoice:
    """Which tools are called: ``"auto"``, ``"none"``, ``"required"``, or the one that must be, as OpenAI writes it.

    That is ``{"type": "function", "function": {"name": "weather"}}``. ``parallel``: perhaps several in one answer.
    """
    message = inference_pb2.ToolChoice()
    if not isinstance(parallel, bool):
        raise invalid("parallel_tool_calls", f"must be True or False, not {shown(parallel)}")
    message.single = not parallel
    modes = {m.removeprefix("TOOL_MODE_").lower(): n for m, n in inference_pb2.ToolMode.items() if n}
    if isinstance(value, str) and value in modes:
        message.mode = modes[value]
        return message
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str) or not name:
        wanted = f"must be one of {', '.join(modes)}, or {{'type': 'function', 'function': {{'name': ...}}}}"
        raise invalid("tool_choice", f"is {shown(value)}; it {wanted}")
    assign(message, {"mode": inference_pb2.TOOL_MODE_REQUIRED, "name": name}, "tool_choice.")
    return message


def _kind_of_format(value: Mapping[str, Any]) -> tuple[str, Any]:
    """The kind of a shape and what belongs to it, from either way to write it."""
    known = "must be a dict with one of json_schema, regex, choice, grammar, json_object"
    if not isinstance(value, Mapping):
        raise invalid("response_format", known)
    parts = dict(value)
    if not all(isinstance(key, str) for key in parts) or not isinstance(parts.get("type", ""), str):
        raise invalid("response_format", known)
    typed = "type" in parts
    kind = parts.pop("type") if typed else next(iter(parts), "")
    if typed and kind in ("json_object", "text"):
        parts.setdefault(kind, None)
    if len(parts) != 1 or kind not in parts:
        wanted = f"with the type {kind!r} must have {kind!r} beside it and nothing else" if typed else known
        raise invalid("response_format", wanted)
    shape = parts[kind]
    if typed and kind == "json_schema":
        if not isinstance(shape, Mapping) or "schema" not in shape:
            raise invalid("response_format.json_schema", "must be a dict with the schema under 'schema'")
        shape = shape["schema"]
    return kind, shape


def _input(
    request: inference_pb2.GenerateRequest | inference_pb2.ScoreRequest | inference_pb2.TokenizeRequest,
    prompt: str | None,
    messages: Iterable[ChatMessage] | None,
) -> None:
    if (prompt is None) == (messages is None):
        raise invalid("prompt", "give exactly one of prompt and messages")
    if prompt is not None:
        assign(request, {"prompt": prompt})
        return
    for i, message in enumerate(items("messages", messages, "a list of messages")):
        if not isinstance(message, Mapping):
            raise invalid(f"messages[{i}]", "must be a dict with role and content")
        turn = {name: value for name, value in message.items() if value is not None or name == "content"}
        if (calls := turn.get("tool_calls")) is not None:
            turn["tool_calls"] = json_objects(f"messages[{i}].tool_calls", calls)
        if calls and turn.get("content") is None:
            turn["content"] = ""
        missing = {"role", "content"} - turn.keys()
        extra = turn.keys() - {"role", "content", "weight", "tool_calls", "tool_call_id", "name"}
        if missing or extra:
            what = f"has no {min(missing)}" if missing else f"has an unknown key {shown(min(extra, key=shown))}"
            known = "role, content, tool_calls, tool_call_id, name and, for training, weight"
            raise invalid(f"messages[{i}]", f"{what}; it takes {known}")
        if isinstance(turn["content"], list | tuple):
            turn["content"] = _joined(turn["content"], f"messages[{i}].content")
        assign(request.messages.add(), turn, f"messages[{i}].")


def _joined(parts: Sequence[Any], path: str) -> str:
    """The text of content in OpenAI's form, a list of parts, put together as training rows are."""
    texts: list[str] = []
    for i, part in enumerate(parts):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise invalid(f"{path}[{i}]", f"must be a text part, {{'type': 'text', 'text': ...}}, not {shown(part)}")
        texts.append(text)
    return "".join(texts)


def compose(
    name: str, adapters: Adapters, method: str, metadata: Mapping[str, str] | None, **settings: float | None
) -> adapters_pb2.ComposeAdapterRequest:
    """A merge of a stack; settings that are None take the server's default."""
    methods = {m.removeprefix("COMPOSE_METHOD_").lower(): n for m, n in adapters_pb2.ComposeMethod.items() if n}
    if not isinstance(method, str) or method not in methods:
        raise invalid("method", f"is {shown(method)}; it must be one of {', '.join(methods)}")
    request = adapters_pb2.ComposeAdapterRequest(adapters=stack(adapters), method=methods[method])
    given = {key: value for key, value in settings.items() if value is not None}
    assign(request, {"name": name, "metadata": {} if metadata is None else metadata, **given})
    return request


def usage(
    since: Day | None, until: Day | None, group_by: str | Iterable[str] | None, tenant: str, adapter: str
) -> usage_pb2.GetUsageRequest:
    """Usage of a time, grouped by dimensions such as ``day``."""
    request = usage_pb2.GetUsageRequest(since=_day("since", since), until=_day("until", until))
    for dimension in strings("group_by", group_by or ()):
        if dimension not in DIMENSIONS:
            raise invalid("group_by", f"is {shown(dimension)}; it must be day, tenant, adapter or method")
        request.group_by.append(usage_pb2.UsageDimension.Value(f"USAGE_DIMENSION_{dimension.upper()}"))
    return filled(request, tenant=tenant, adapter=adapter)


def _day(field: str, value: Day | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    raise invalid(field, f"must be a date or text such as '2026-11-30', a day of UTC, not {shown(value)}")
