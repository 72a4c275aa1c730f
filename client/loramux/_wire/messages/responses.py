"""From messages of the API to the client's own values: each field from that of the same name. Pure functions.

An enum's value is a word: ``JOB_STATE_RUNNING`` is ``running``. What has another name on one side is given by keyword.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import Message as ProtoMessage

from ... import types
from ...v1 import adapters_pb2, common_pb2, inference_pb2, server_pb2, training_pb2, usage_pb2

T = TypeVar("T")
V = TypeVar("V")
Field = Any
"""A field's descriptor: a class of protobuf's C extension."""

_BYTES = "token_bytes"
"""The field of messages that values call ``bytes``."""


def read(kind: Callable[..., T], *messages: ProtoMessage, **given: Any) -> T:
    """A value: each field from ``given``, or the first message that has one of its name; unset ones take defaults."""
    for message in messages:
        for name, value_of in _plan(kind, message.DESCRIPTOR):
            if name not in given and (value := value_of(message)) is not ...:
                given[name] = value
    return kind(**given)


@cache
def _plan(kind: Any, message: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    fields = message.fields_by_name
    names = ((f, _BYTES if f.name == "bytes" else f.name) for f in dataclasses.fields(kind))
    return tuple((f.name, _reader(fields[name], f.default)) for f, name in names if name in fields)


def _reader(field: Field, default: object) -> Callable[[Any], Any]:
    """What gives a field's value; ``...`` where it is unset."""
    name, one = field.name, _one(field, default)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return lambda message: ordered(getattr(message, name))
    if field.is_repeated:
        return lambda message: tuple(map(one, getattr(message, name)))
    if field.has_presence and default is not dataclasses.MISSING:
        return lambda message: one(getattr(message, name)) if message.HasField(name) else ...
    return lambda message: one(getattr(message, name))


def _one(field: Field, default: object) -> Callable[[Any], Any]:
    if field.message_type is not None:
        own: dict[str, Callable[[Any], Any]] = {"Stack": stack, "JudgedRow": _judged}
        return own.get(field.message_type.name, lambda inner: read(getattr(types, inner.DESCRIPTOR.name), inner))
    if field.enum_type is not None:
        values, prefix = field.enum_type.values_by_number, field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        none = default is None
        return lambda number: None if none and not number else word(values[number].name, prefix)
    return lambda value: value


def word(name: str, prefix: str) -> str:
    """An enum value's name as a plain word: ``JOB_STATE_RUNNING`` -> ``running``."""
    return name.removeprefix(prefix).lower()


def chunk(message: inference_pb2.GenerateResponse) -> types.Chunk:
    return read(types.Chunk, message)


def completion(message: inference_pb2.GenerateResult) -> types.Completion:
    return read(types.Completion, message)


def score(message: inference_pb2.ScoreResponse) -> types.Score:
    return read(types.Score, message)


def embeddings(message: inference_pb2.EmbedResponse) -> types.Embeddings:
    return read(types.Embeddings, message, vectors=tuple(tuple(found.values) for found in message.embeddings))


def tokens(message: inference_pb2.TokenizeResponse) -> types.Tokens:
    return read(types.Tokens, message)


def stack(message: common_pb2.Stack) -> tuple[types.StackItem, ...]:
    return tuple(read(types.StackItem, entry) for entry in message.entries)


def adapter_version(message: adapters_pb2.AdapterVersion) -> types.AdapterVersion:
    return read(types.AdapterVersion, message)


def adapter(message: adapters_pb2.Adapter) -> types.Adapter:
    return read(types.Adapter, message)


def dataset(message: training_pb2.Dataset) -> types.Dataset:
    return read(types.Dataset, message)


def dataset_report(message: training_pb2.ValidateDatasetResponse) -> types.DatasetReport:
    shown = tuple(read(types.MarkedRow, row) for row in message.rows)
    return read(types.DatasetReport, message.summary, message, shown=shown)


def job_state(value: training_pb2.JobState.ValueType) -> str:
    return word(training_pb2.JobState.Name(value), "JOB_STATE_")


def gate(message: training_pb2.Gate) -> str:
    if message.kind in (training_pb2.Gate.KIND_UNSPECIFIED, training_pb2.Gate.KIND_NONE):
        return ""
    kind = word(training_pb2.Gate.Kind.Name(message.kind), "KIND_")
    if message.kind != training_pb2.Gate.KIND_MIN_ACCURACY:
        return kind
    exact = " exact" if message.match == training_pb2.Gate.MATCH_EXACT else ""
    return f"{kind} {message.min_accuracy:g}{exact}"


def job(message: training_pb2.Job) -> types.JobInfo:
    return read(
        types.JobInfo,
        message,
        error=message.error.message,
        error_reason=message.error.reason,
        settings=set_fields(message.settings),
        gate=gate(message.gate),
    )


def job_event(message: training_pb2.JobEvent) -> types.JobEvent:
    return read(types.JobEvent, message)


def _judged(row: training_pb2.JudgedRow) -> types.JudgedRow:
    answers = {answer.side: read(types.JudgedAnswer, answer) for answer in row.answers}
    return read(types.JudgedRow, row, answers=answers)


def server_info(message: server_pb2.ServerInfo) -> types.ServerInfo:
    base, limits = message.base, message.limits
    return read(
        types.ServerInfo,
        message,
        base,
        message.tokenizer,
        message.caller,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        base_revision=base.revision,
        limits={f.name: getattr(limits, f.name) for f, _ in limits.ListFields()},
    )


def server_stats(message: server_pb2.ServerStats) -> types.ServerStats:
    return read(types.ServerStats, message)


def replica(message: server_pb2.Replica) -> types.Replica:
    return read(types.Replica, message)


def usage_row(message: usage_pb2.UsageRow) -> types.UsageRow:
    return read(types.UsageRow, message)


def ordered(values: Mapping[str, V]) -> dict[str, V]:
    """A protobuf map as a dict in order of keys (protobuf's own order is random)."""
    return {key: values[key] for key in sorted(values)}


def set_fields(message: ProtoMessage) -> dict[str, object]:
    """The fields of a flat message that are set, by name; repeated ones as lists."""
    found: dict[str, object] = {}
    for descriptor, value in message.ListFields():
        found[descriptor.name] = list(value) if descriptor.is_repeated else value
    return found
