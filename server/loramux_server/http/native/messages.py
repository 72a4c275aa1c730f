"""Messages as JSON, by protobuf's own mapping, and what is wrong with JSON that is none of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from loramux.v1.common_pb2 import FileChunk

from ...api.entries import MAX_ENTRIES, check_entries, too_many
from ...core.errors import Error, invalid_field

M = TypeVar("M", bound=Message)
Descriptor: TypeAlias = Any
"""Of a message; protobuf's implementations have types of their own for it."""

_TYPES = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits, as a number or as text",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_MESSAGE: "an object",
}


def as_json(message: Message) -> dict[str, Any]:
    """The message as JSON: camelCase, 64-bit integers as text, bytes in base64, without what is unset."""
    plain: dict[str, Any] = MessageToDict(message)
    return plain


def message_of(kind: type[M], value: Any) -> M:
    """The message in ``value``. Field names are taken in camelCase and as in the proto.

    Raises INVALID_ARGUMENT, naming the field, for one that is unknown, of another type or in lists that are too long.
    """
    if not isinstance(value, dict):
        raise invalid_field("", "the body must be a JSON object", reason="MALFORMED")
    _check(kind.DESCRIPTOR, value, MAX_ENTRIES, "")
    try:
        message = ParseDict(value, kind())
    except Exception:  # protobuf raises what Python's own conversions do
        raise _refusal(kind.DESCRIPTOR, value, "") from None
    check_entries(message)
    return message


def _check(descriptor: Descriptor, value: Mapping[str, Any], budget: int, path: str) -> int:
    """Refuse unknown fields and long lists before anything is made of them; how many more entries there may be."""
    for key, given in value.items():
        name = f"{path}{key[:80]}"
        if (field := _fields(descriptor).get(key)) is None:
            raise invalid_field(name, "is no field of this request; leave it out")
        if isinstance(given, list) or (is_map(field) and isinstance(given, dict)):
            budget -= len(given)
            if budget < 0:
                raise too_many(name, len(given))
        for kind, inner, where in _messages(field, given, name):
            if not isinstance(inner, dict):
                raise invalid_field(where, "must be an object")
            budget = _check(kind, inner, budget, f"{where}.")
    return budget


def _refusal(descriptor: Descriptor, value: Mapping[str, Any], path: str) -> Error:
    """What to say of JSON that cannot be parsed: each field is tried by itself."""
    for key, given in value.items():
        field, name = _fields(descriptor)[key], f"{path}{key}"
        if _parses(descriptor, {key: given}):
            continue
        for kind, inner, where in _messages(field, given, name):
            if not _parses(kind, inner):
                return _refusal(kind, inner, f"{where}.")
        return invalid_field(name, f"must be {_wanted(field)}")
    return invalid_field(path.rstrip("."), "sets two fields of which only one may be set")


def _parses(descriptor: Descriptor, value: Mapping[str, Any]) -> bool:
    try:
        ParseDict(dict(value), GetMessageClass(descriptor)())
    except Exception:
        return False
    return True


def _messages(field: FieldDescriptor, given: Any, name: str) -> Iterator[tuple[Descriptor, Any, str]]:
    """What is to be a message in a field, with its kind and path."""
    kind = field.message_type
    if kind is None or is_map(field) or given is None:
        return
    if not field.is_repeated:
        yield kind, given, name
    elif isinstance(given, list):
        yield from ((kind, each, f"{name}[{i}]") for i, each in enumerate(given))


def _wanted(field: FieldDescriptor) -> str:
    if field.message_type is not None and is_map(field):
        return f"an object whose values are each {_wanted(field.message_type.fields_by_name['value'])}"
    if field.enum_type is not None:
        one = f"one of {', '.join(value.name for value in field.enum_type.values)}"
    elif field.type == FieldDescriptor.TYPE_BYTES:
        one = "bytes as text in base64"
    else:
        one = _TYPES[field.cpp_type]
    return f"a list, each of it {one}" if field.is_repeated else one


def gives_files(descriptor: Descriptor) -> bool:
    """Whether a message holds a piece of a named file."""
    chunk = descriptor.fields_by_name.get("chunk")
    return chunk is not None and chunk.message_type is FileChunk.DESCRIPTOR


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is an object of any keys."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@cache
def _fields(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """By both names."""
    return {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
