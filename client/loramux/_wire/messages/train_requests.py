"""From Python arguments to the messages of training. Pure functions; errors as in :mod:`.requests`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from ...errors import invalid
from ...v1 import common_pb2, training_pb2
from . import responses
from .fields import assign, items, shown, strings
from .options import check_known, chosen
from .stacks import Adapters, stacks

_LAYER_DIGITS = 5
"""Most digits of a layer's number."""
Gate: TypeAlias = "str | Mapping[str, float | str]"
"""``none``, ``improves``, ``{"min_accuracy": 0.9}`` or ``{"min_accuracy": 0.9, "match": "exact"}``."""


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
    method: Literal["auto", "sft", "dpo", "distill"] | None
    context: str | None
    on_policy: bool | None
    beta: float | None
    replay_rows: int | None
    chat_template_kwargs: Mapping[str, Any] | None


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
    compare_top_k: int | None = None,
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
        "compare_top_k": compare_top_k,
        "recipe": recipe,
        "metadata": metadata,
        "idempotency_key": idempotency_key,
    }
    assign(request, {field: value for field, value in given.items() if value is not None})
    return request


def train_settings(options: Mapping[str, Any]) -> training_pb2.TrainSettings:
    """Training settings from keyword arguments."""
    check_known(options, TrainOptions)
    given = chosen(options)
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
