"""From OpenAI's request for a fine-tuning job to the one that every door asks for, and back for errors."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import fields
from typing import Any

from ....core.backend import EngineInfo
from ....core.call import Call
from ....core.errors import Error, FieldViolation, invalid_field
from ....core.jobs import MIN_ACCURACY, TOP_K, Gate, JobRequest, TrainSpec
from ....core.types import StackItem
from ....services.jobs.checking.recipes import chosen_rate
from ...bodies.fields import as_text
from ...bodies.names import parse_model
from .ids import dataset_id
from .requests import CreateJob, Hyperparameters, Loramux, MinAccuracy

MOST_SUFFIX = 64
_SETTINGS = frozenset(field.name for field in fields(TrainSpec))
_METHODS = {"supervised": "sft", "dpo": "dpo"}
_HEAD = re.compile(r"[a-z0-9_]+")


class AskedJob:
    """A job as OpenAI's clients ask for it, on its way to a :class:`JobRequest`.

    Raises INVALID_ARGUMENT for what only this door can see: fields that contradict each other, and what it has not.
    """

    def __init__(self, asked: CreateJob, info: EngineInfo) -> None:
        self._asked, self._info = asked, info
        self._own = asked.loramux or Loramux()
        self._settings: dict[str, Any] = {}
        self._paths = {
            "name": "suffix" if asked.suffix is not None else "loramux.name",
            "dataset_id": "training_file",
            "data": "training_file",
            "validation": "validation_file",
            "validation_dataset_id": "validation_file",
            "adapter": "model",
            "metadata": "metadata",
            "idempotency_key": "idempotency-key",
        }
        if asked.integrations:
            raise invalid_field("integrations", "must be left out: metrics are events of the job, and in /metrics")
        self._read_own()
        self._read_method()
        if asked.seed is not None:
            self._set("seed", asked.seed, "seed")

    def request(self, call: Call, key: str) -> JobRequest:
        """The request as every door makes it; ``key`` is its idempotency key, empty for none."""
        asked, own = self._asked, self._own
        init_from = self._init_from()
        return JobRequest(
            name=self._name(f"{call.principal.tenant} {key}" if key else ""),
            dataset_id=dataset_id(asked.training_file),
            tenant=call.principal.tenant,
            spec=TrainSpec(**self._settings),
            validation_dataset_id=dataset_id(asked.validation_file or ""),
            on_top_of=_stacks(own.on_top_of),
            init_from=init_from,
            gate=_gate(own),
            compare_prompt=own.compare_prompt or "",
            compare_documents=dataset_id(own.compare_documents or ""),
            compare_top_k=TOP_K if own.compare_top_k is None else own.compare_top_k,
            metadata=asked.metadata or {},
            idempotency_key=key,
            recipe=own.recipe or "",
            given=frozenset(self._settings),
        )

    def named(self, error: Error) -> Error:
        """``error`` with the fields as this request has them."""
        message, found = error.message, []
        for violation in error.violations:
            field, description = self._path(violation.field), violation.description
            if field.endswith("learning_rate_multiplier"):
                description = f"leads to a learning rate that {description}"
            message = message.replace(
                f"{violation.field}: {violation.description}", f"{field}: {description}" if field else description, 1
            )
            found.append(FieldViolation(field, description))
        if not found:
            return error
        return Error(error.code, message, reason=error.reason, violations=found, retry_after=error.retry_after)

    def _read_own(self) -> None:
        for name in _SETTINGS & self._own.model_fields_set:
            value = getattr(self._own, name)
            if value is None or value == "auto":
                continue
            if name == "target_modules":
                value = (value,) if isinstance(value, str) else tuple(value)
            elif name == "layers":
                value = tuple(value)
            elif name == "chat_template_kwargs":
                value = as_text(value)
            elif name == "replay":
                value = dataset_id(value)
            self._set(name, value, f"loramux.{name}")

    def _read_method(self) -> None:
        asked, method = self._asked, self._asked.method
        if method is None:
            if asked.hyperparameters is not None:  # the older form, which knows no other method
                self._set("method", "sft", "hyperparameters")
                self._read_hyperparameters(asked.hyperparameters, "hyperparameters")
            return
        if asked.hyperparameters is not None:
            raise invalid_field("hyperparameters", "must be left out beside method, which has a place for them")
        if method.type not in _METHODS:
            raise invalid_field("method.type", f"is {method.type!r}, which is not done here; use supervised or dpo")
        for other in {"supervised", "dpo", "reinforcement"} - {method.type}:
            if getattr(method, other) is not None:
                raise invalid_field(f"method.{other}", f"must be left out where method.type is {method.type!r}")
        self._set("method", _METHODS[method.type], "method.type")
        given = getattr(method, method.type)
        if given is not None and given.hyperparameters is not None:
            self._read_hyperparameters(given.hyperparameters, f"method.{method.type}.hyperparameters")

    def _read_hyperparameters(self, given: Hyperparameters, path: str) -> None:
        values = {name: value for name, value in given if value is not None and value != "auto"}
        for theirs, ours in (("n_epochs", "epochs"), ("batch_size", "batch_size"), ("beta", "beta")):
            if theirs in values:
                self._set(ours, values[theirs], f"{path}.{theirs}")
        if (multiplier := values.get("learning_rate_multiplier")) is not None:
            rate = chosen_rate(self._settings["method"], self._own.recipe or "", self._info)
            self._set("learning_rate", multiplier * rate, f"{path}.learning_rate_multiplier")

    def _set(self, name: str, value: Any, path: str) -> None:
        if name in self._settings:
            raise invalid_field(path, f"says the same as {self._paths[name]}; give one of the two")
        self._settings[name], self._paths[name] = value, path

    def _init_from(self) -> str:
        items = parse_model(self._asked.model)
        self._paths["init_from"] = "model" if items else "loramux.init_from"
        if items and self._own.init_from:
            raise invalid_field("loramux.init_from", "says the same as model; set model to 'base', or leave this out")
        if len(items) > 1 or any(item.weight != 1 for item in items):
            raise invalid_field(
                "model", "is a stack; name 'base' or the one adapter to go on from, and the stack in loramux.on_top_of"
            )
        return items[0].adapter if items else self._own.init_from or ""

    def _name(self, seed: str) -> str:
        """The name of the adapter: as given, of the suffix, or a new one; the same for the same ``seed``."""
        suffix = self._asked.suffix
        if self._own.name is not None:
            if suffix is not None:
                raise invalid_field("loramux.name", "says the same as suffix; give one of the two")
            return self._own.name
        if suffix is None:
            return f"ft-{hashlib.sha256(seed.encode()).hexdigest()[:12] if seed else uuid.uuid4().hex[:12]}"
        slug = re.sub(r"[^a-z0-9._]+", "-", suffix[: MOST_SUFFIX + 1].lower()).strip("-._")
        if not slug or len(suffix) > MOST_SUFFIX:
            raise invalid_field("suffix", f"must be 1 to {MOST_SUFFIX} characters with a letter or digit among them")
        return slug

    def _path(self, field: str) -> str:
        head = _HEAD.match(field)
        if head is None:
            return field
        return self._paths.get(head[0], f"loramux.{head[0]}") + field[head.end() :]


def _gate(own: Loramux) -> Gate:
    if isinstance(own.gate, MinAccuracy):
        return Gate(MIN_ACCURACY, own.gate.min_accuracy, own.gate.match)
    return Gate(own.gate or "")


def _stacks(given: Any) -> tuple[tuple[StackItem, ...], ...]:
    """One stack, or a list of stacks: ``["acme"]``, ``{"acme": 0.5}``, ``[{"pine": 1.3}, ["summit"], []]``."""
    if given is None or given == []:
        return ()
    several = isinstance(given, list) and not any(isinstance(item, str) for item in given)
    return tuple(_stack(item, f"loramux.on_top_of[{i}]") for i, item in enumerate(given if several else [given]))


def _stack(given: Any, path: str) -> tuple[StackItem, ...]:
    if isinstance(given, str):
        return (StackItem(given),)
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return tuple(map(StackItem, given))
    if isinstance(given, dict) and all(type(weight) in (int, float) for weight in given.values()):
        return tuple(StackItem(name, float(weight)) for name, weight in given.items())
    raise invalid_field(path, "must be a list of names or an object of name to weight, such as {'pine': 1.3}")
