"""From Python arguments to messages of the API. Pure functions; what has no form in a message is InvalidArgument."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from ..errors import invalid
from ..v1 import adapters_pb2, common_pb2, inference_pb2, training_pb2
from . import responses
from .fields import assign, items, shown, strings
from .stacks import Adapters, stack, stacks

_LAYER_DIGITS = 5
"""Most digits of a layer's number."""
ChatMessage: TypeAlias = "Mapping[str, Any]"
Gate: TypeAlias = "str | Mapping[str, float | str]"
"""``none``, ``improves``, ``{"min_accuracy": 0.9}`` or ``{"min_accuracy": 0.9, "match": "exact"}``."""


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


class TrainOptions(TypedDict, total=False):
    """How to train, in PEFT's and TRL's words. What is left out or None takes the server's default."""

    rank: int | None
    alpha: float | None
    rslora: bool | None
    dropout: float | None
    target_modules: str | Sequence[str] | None
    layers: str | Sequence[int] | None
    learning_rate: float | Literal["auto"] | None
    lr_scheduler: str | None
    warmup_ratio: float | None
    warmup_steps: int | None
    beta1: float | None
    beta2: float | None
    weight_decay: float | None
    max_grad_norm: float | None
    epochs: float | None
    max_steps: int | None
    batch_size: int | None
    max_length: int | None
    seed: int | None
    validation_split: float | None
    eval_steps: int | None
    early_stopping_patience: int | None
    method: Literal["auto", "sft", "dpo"] | None
    beta: float | None
    replay_rows: int | None
    chat_template_kwargs: Mapping[str, Any] | None


def generate(
    prompt: str | None,
    messages: Iterable[ChatMessage] | None,
    adapters: Adapters | None,
    options: Mapping[str, Any],
) -> inference_pb2.GenerateRequest:
    """A generation; exactly one of ``prompt`` and ``messages``."""
    request = inference_pb2.GenerateRequest(adapters=stack(adapters))
    _input(request, prompt, messages)
    _known(options, GenerateOptions)
    given = _asked(options)
    if "stop" in given:
        given["stop"] = strings("stop", given["stop"])
    if "response_format" in given:
        shape = response_format(given.pop("response_format"))
        if shape is not None:
            request.response_format.CopyFrom(shape)
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
    assign(request, {"continuation": continuation, "continue_final_message": continue_final_message, **_asked(given)})
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
    assign(request, {"continue_final_message": continue_final_message, **_asked(given)})
    return request


def create_job(
    name: str,
    *,
    on_top_of: Adapters | Sequence[Adapters] | None,
    init_from: str | None,
    gate: Gate | None,
    compare_prompt: str | None,
    recipe: str | None,
    metadata: Mapping[str, str] | None,
    idempotency_key: str,
    options: Mapping[str, Any],
) -> training_pb2.CreateJobRequest:
    """A training job; the ids of its datasets are still to be filled in."""
    request = training_pb2.CreateJobRequest(settings=train_settings(options))
    request.on_top_of.extend(common_pb2.Stack(entries=entries) for entries in stacks(on_top_of))
    if gate is not None:
        request.gate.CopyFrom(_gate(gate))
    given = {
        "name": name,
        "init_from": init_from,
        "compare_prompt": compare_prompt,
        "recipe": recipe,
        "metadata": metadata,
        "idempotency_key": idempotency_key,
    }
    assign(request, {field: value for field, value in given.items() if value is not None})
    return request


def train_settings(options: Mapping[str, Any]) -> training_pb2.TrainSettings:
    """Training settings from keyword arguments."""
    _known(options, TrainOptions)
    given = _asked(options)
    if "target_modules" in given:
        given["target_modules"] = strings("target_modules", given["target_modules"])
    if "layers" in given:
        given["layers"] = layers(given["layers"])
    for name in ("learning_rate", "method"):
        if given.get(name) == "auto":
            del given[name]  # what is not given is the server's to choose
    settings = training_pb2.TrainSettings()
    assign(settings, given)
    return settings


def job_states(states: Sequence[str]) -> list[training_pb2.JobState.ValueType]:
    """States of jobs by their words."""
    known = {responses.job_state(value): value for value in training_pb2.JobState.values() if value}
    wanted = strings("states", states)
    for state in wanted:
        if state not in known:
            raise invalid("states", f"{state!r} is no state; there are {', '.join(known)}")
    return [known[state] for state in wanted]


def layers(value: str | Sequence[int]) -> list[int]:
    """Layer numbers from a list or from text such as ``15-29`` or ``0,2,4-6`` (both ends included)."""
    if isinstance(value, str):
        found: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise invalid("layers", f"{shown(part.strip())} is no layer; write for example 15-29 or 0,2,4-6")
            if max(len(first), len(last)) > _LAYER_DIGITS or int(first) > int(last or first):
                raise invalid("layers", f"{shown(part.strip())} is no range of layers")
            found += range(int(first), int(last or first) + 1)
        return sorted(set(found))
    found = items("layers", value, "layer numbers, such as '15-29' or [0, 2, 4]")
    if not found:
        raise invalid("layers", "is empty; leave it out for all layers")
    return found


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
        assign(message, {kind: _json("response_format.json_schema", shape)}, "response_format.")
    elif kind in ("regex", "grammar"):
        assign(message, {kind: shape}, "response_format.")
    elif kind == "choice":
        message.choice.choices.extend(strings("response_format.choice", shape))
    elif kind == "json_object":
        message.json_object.SetInParent()
    else:
        raise invalid(f"response_format.{kind}", "is unknown; use json_schema, regex, choice, grammar or json_object")
    return message


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, those for the chat template as JSON text."""
    given = {name: value for name, value in options.items() if value is not None}
    if "tools" in given:
        given["tools"] = _objects("tools", given["tools"])
    kwargs = given.get("chat_template_kwargs", "")
    if not isinstance(kwargs, str):
        if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
            raise invalid("chat_template_kwargs", f"must be a dict of names and values, not {shown(kwargs)}")
        given["chat_template_kwargs"] = _json("chat_template_kwargs", dict(kwargs))
    return given


def _objects(field: str, value: Any) -> str:
    """A list of dicts as JSON text."""
    if not isinstance(value, str) and not (
        isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)
    ):
        raise invalid(field, f"must be a list of dicts, not {shown(value)}")
    return _json(field, value)


def _json(field: str, value: Any) -> str:
    """A value as JSON text; text is JSON already."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(field, f"cannot be written as JSON: {error}") from None


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
            turn["tool_calls"] = _objects(f"messages[{i}].tool_calls", calls)
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


def _gate(value: Gate) -> training_pb2.Gate:
    kinds = {"none": training_pb2.Gate.KIND_NONE, "improves": training_pb2.Gate.KIND_IMPROVES}
    matches = {"contained": training_pb2.Gate.MATCH_CONTAINED, "exact": training_pb2.Gate.MATCH_EXACT}
    if isinstance(value, str) and value in kinds:
        return training_pb2.Gate(kind=kinds[value])
    if isinstance(value, Mapping) and {"min_accuracy"} <= value.keys() <= {"min_accuracy", "match"}:
        message = training_pb2.Gate(kind=training_pb2.Gate.KIND_MIN_ACCURACY)
        match = value.get("match", "contained")
        if not isinstance(match, str) or match not in matches:
            raise invalid("gate.match", f"is {shown(match)}; it must be 'contained' or 'exact'")
        message.match = matches[match]
        assign(message, {"min_accuracy": value["min_accuracy"]}, "gate.")
        return message
    raise invalid("gate", "must be 'none', 'improves', {'min_accuracy': 0.9} or that with 'match': 'exact' beside it")


def _known(options: Mapping[str, Any], allowed: type) -> None:
    unknown = options.keys() - allowed.__annotations__.keys()
    if unknown:
        raise invalid(min(unknown), f"is no setting; there are {', '.join(allowed.__annotations__)}")
