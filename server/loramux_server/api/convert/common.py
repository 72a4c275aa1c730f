"""Between protobuf messages and frozen dataclasses whose fields have the same names.

An enum's value is a word: ``JOB_STATE_RUNNING`` is ``running``, its zero the empty text. A stack is a tuple of items.
What has another name on one side is given by keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.message_factory import GetMessageClass

from loramux.v1 import common_pb2

from ...core.errors import invalid_field
from ...core.types import Message, StackEntry, StackItem

M = TypeVar("M", bound=ProtoMessage)
T = TypeVar("T")
_STACK = common_pb2.Stack.DESCRIPTOR
_MISSING = object()


def to_proto(kind: Callable[..., M], *sources: object, **given: Any) -> M:
    """A message with its fields filled in: from ``given``, else from the first source with an attribute of the name.

    None leaves a field unset, and so does a value of a message field that is false.
    """
    for name, converted in _writers(kind):
        value = given.pop(name, _MISSING)
        for source in sources if value is _MISSING else ():
            if (value := getattr(source, name, _MISSING)) is not _MISSING:
                break
        if value is not _MISSING and value is not None:
            given[name] = value if converted is None else converted(value)
    return kind(**given)


def from_proto(kind: type[T], message: ProtoMessage, **given: Any) -> T:
    """A dataclass from a message: what is unset takes the dataclass's default.

    Raises INVALID_ARGUMENT, naming the field, for a number that an enum does not have.
    """
    return msgspec.convert(_plain(message) | given, kind)


def word(kind: EnumDescriptor, number: int, path: str) -> str:
    """The word of an enum's number, the opposite of :func:`numbers`. Raises INVALID_ARGUMENT for an unknown one."""
    if number == 0:
        return ""
    if (found := kind.values_by_number.get(number)) is None:
        names = ", ".join(value.name for value in kind.values if value.number)
        raise invalid_field(path, f"is {number}, which {kind.name} does not have; use one of {names}")
    return found.name.removeprefix(_prefix(kind)).lower()


@cache
def numbers(kind: EnumDescriptor) -> dict[str, Any]:
    """The numbers of an enum by their words; 0 for the empty one."""
    return {word(kind, value.number, ""): value.number for value in kind.values}


def _prefix(kind: EnumDescriptor) -> str:
    """What the names of an enum's values begin with: ``JOB_STATE_``."""
    return kind.values[0].name.removesuffix("UNSPECIFIED")


@cache
def _writers(kind: Any) -> tuple[tuple[str, Callable[[Any], Any] | None], ...]:
    """Each field of a message and what makes its value, if anything does. Cached, for descriptors are slow to read."""
    return tuple((field.name, _writer(field)) for field in kind.DESCRIPTOR.fields)


def _writer(field: Any) -> Callable[[Any], Any] | None:
    message = field.message_type
    if message is None or message.GetOptions().map_entry:
        return numbers(field.enum_type).__getitem__ if field.enum_type is not None else None
    inner = GetMessageClass(message)

    def one(value: Any) -> Any:
        if isinstance(value, ProtoMessage):
            return value
        return to_proto(inner, entries=value) if message is _STACK else to_proto(inner, value)

    if field.is_repeated:
        return lambda values: [one(value) for value in values]
    return lambda value: one(value) if value else None


def _plain(message: ProtoMessage, path: str = "") -> dict[str, Any]:
    """The fields that are set or cannot be unset, as values of built-in types."""

    def value(field: Any, found: Any, path: str) -> Any:
        if field.enum_type is not None:
            return word(field.enum_type, found, path)
        if field.message_type is None:
            return found
        inner = _plain(found, f"{path}.")
        return inner.get("entries", []) if field.message_type is _STACK else inner

    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        name, found = f"{path}{field.name}", getattr(message, field.name)
        if not (found if field.is_repeated else not field.has_presence or message.HasField(field.name)):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            plain[field.name] = dict(found)
        elif field.is_repeated:
            plain[field.name] = [value(field, item, f"{name}[{i}]") for i, item in enumerate(found)]
        else:
            plain[field.name] = value(field, found, name)
    return plain


def set_fields(message: ProtoMessage, names: Iterable[str]) -> dict[str, Any]:
    """Those of ``names`` that the caller set, with their values."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def stack_from_proto(entries: Iterable[common_pb2.StackEntry]) -> tuple[StackItem, ...]:
    """A stack as the caller wrote it."""
    return tuple(StackItem(e.adapter, e.weight if e.HasField("weight") else 1.0) for e in entries)


def applied_to_proto(entries: Iterable[StackEntry]) -> list[common_pb2.AppliedAdapter]:
    """The versions that answered."""
    return [to_proto(common_pb2.AppliedAdapter, entry.adapter, entry) for entry in entries]


def messages_from_proto(messages: Iterable[common_pb2.Message]) -> tuple[Message, ...]:
    """The turns of a chat. Raises INVALID_ARGUMENT for one that says something in two ways."""
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _message(message: common_pb2.Message, path: str) -> Message:
    if message.content and message.content_parts:
        raise invalid_field(f"{path}.content", "is given together with content_parts; give one of the two")
    parts = tuple({"type": part.type or "text", "text": part.text} for part in message.content_parts)
    return Message(
        role=message.role,
        content=parts or message.content,
        weight=message.weight if message.HasField("weight") else 1.0,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
    )
