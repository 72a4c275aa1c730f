"""Request messages of all methods, filled from their descriptors: a new field or method needs no line here."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from loramux.v1 import adapters_pb2, inference_pb2, server_pb2, training_pb2, usage_pb2
from loramux_server.api.methods import METHODS

STREAMED = ("UploadAdapter", "UploadDataset")
"""Methods whose request is a stream."""
SEPARATOR = b"\xff\x00\xff"
"""Between the messages of a stream."""
MOST_DEEP = 3

INPUTS: dict[str, Descriptor] = {
    f"{service.full_name}/{method.name}": method.input_type
    for pb in (inference_pb2, adapters_pb2, training_pb2, server_pb2, usage_pb2)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
assert set(INPUTS) == set(METHODS)

TEXTS = ("", "acme", "acme@1", "../x", "a\0b", "x" * 300, '{"type": "object"}', "[[" * 200, "ds-1", "user", "\u202e")
EDGES = (0, 1, -1, 2, 16, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
FLOATS = (0.0, 1.0, 0.5, -1.0, float("nan"), float("inf"), 1e30, -1e30, 1e-45)
Draw = Callable[[Any], Any]
"""Chooses one of several values."""


def fill(descriptor: Descriptor, draw: Draw, depth: int = 0) -> Any:
    """A message with some of its fields set."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw((True, True, False)):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(message, field, draw)
        elif field.is_repeated:
            for _ in range(draw((0, 1, 2))):
                _add(message, field, draw, depth)
        elif field.message_type is not None:
            if depth < MOST_DEEP:
                getattr(message, field.name).CopyFrom(fill(field.message_type, draw, depth + 1))
        else:
            setattr(message, field.name, _scalar(field, draw))
    return message


def _fill_map(message: Any, field: FieldDescriptor, draw: Draw) -> None:
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    if value.message_type is None:
        getattr(message, field.name)[_scalar(key, draw)] = _scalar(value, draw)


def _add(message: Any, field: FieldDescriptor, draw: Draw, depth: int) -> None:
    if field.message_type is None:
        getattr(message, field.name).append(_scalar(field, draw))
    elif depth < MOST_DEEP:
        getattr(message, field.name).append(fill(field.message_type, draw, depth + 1))


def _scalar(field: FieldDescriptor, draw: Draw) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = draw(TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return draw(FLOATS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return draw((True, False))
        case FieldDescriptor.CPPTYPE_ENUM:
            return draw((0, 1, 2, 99))
        case FieldDescriptor.CPPTYPE_INT32:
            return draw(tuple(n for n in EDGES if -(2**31) <= n < 2**31))
        case FieldDescriptor.CPPTYPE_UINT32:
            return draw(tuple(n for n in EDGES if 0 <= n < 2**32))
        case FieldDescriptor.CPPTYPE_UINT64:
            return draw(tuple(n for n in EDGES if n >= 0))
        case _:
            return draw(EDGES)


def sample(method: str, seed: int) -> bytes:
    """The bytes of one request, always the same for a seed; several messages where it is a stream."""
    draw = random.Random(f"{method}/{seed}").choice
    count = 2 if method.rpartition("/")[2] in STREAMED else 1
    return SEPARATOR.join(fill(INPUTS[method], draw).SerializeToString() for _ in range(count))


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method and the bytes of one of its requests."""
    method = draw(st.sampled_from(METHODS))
    count = draw(st.integers(0, 3)) if method.rpartition("/")[2] in STREAMED else 1
    choose: Draw = lambda values: draw(st.sampled_from(values))  # noqa: E731
    return method, SEPARATOR.join(fill(INPUTS[method], choose).SerializeToString() for _ in range(count))
