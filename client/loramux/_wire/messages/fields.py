"""From Python values to fields of messages: what does not fit is InvalidArgument under the field's own name."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ...errors import invalid

M = TypeVar("M", bound=Message)
MAX_SECONDS = 1e9
"""Longest time that is sent, 31 years: gRPC counts nanoseconds, and takes what is beyond its range as over."""


def assign(message: Message, values: Mapping[str, Any], path: str = "") -> None:
    """Set fields one by one, each as its descriptor says: scalar, list, map or message."""
    for name, value in values.items():
        try:
            _set(message, message.DESCRIPTOR.fields_by_name[name], value)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise invalid(f"{path}{name}", f"{shown(value)} does not fit: {error}") from None


def filled(message: M, **values: Any) -> M:
    """The message with fields set as :func:`assign` does."""
    assign(message, values)
    return message


def strings(field: str, value: str | Iterable[str]) -> list[str]:
    """A list of texts; one text is a list of one."""
    if isinstance(value, str):
        return [value]
    found = items(field, value, "text or a list of texts")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise invalid(f"{field}[{i}]", f"must be text, not {type(text).__name__}")
    return found


def items(field: str, value: Any, wanted: str) -> list[Any]:
    """What an iterable gives. Text, bytes and mappings are none here; ``wanted`` says what it must be."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return list(value)
    raise invalid(field, f"must be {wanted}, not {type(value).__name__}")


def seconds(value: Any, field: str = "timeout") -> float | None:
    """A time in seconds; None: no limit."""
    if value is None:
        return None
    with suppress(OverflowError):  # an integer beyond every float
        if isinstance(value, Real) and math.isfinite(number := float(value)):
            return max(0.0, min(number, MAX_SECONDS))
    raise invalid(field, f"must be a number of seconds, not {shown(value)}")


def count(field: str, value: Any) -> int | None:
    """How many at most; None: no limit."""
    if value is None:
        return None
    if isinstance(value, Integral) and 1 <= (number := int(value)) <= sys.maxsize:
        return number
    raise invalid(field, f"must be a whole number of at least 1, not {shown(value)}")


def path_of(field: str, value: str | os.PathLike[str]) -> Path:
    """A path. Raises InvalidArgument for what is none."""
    try:
        if isinstance(text := os.fspath(value), str) and b"\0" not in os.fsencode(text):
            Path(text).exists()  # raises for a name that no file can have
            return Path(text)
    except (TypeError, UnicodeEncodeError):
        pass
    except OSError as error:
        raise invalid(field, f"{shown(text)} cannot be read: {error.strerror}") from None
    raise invalid(field, f"must be a path, not {shown(value)}") from None


def file_of(field: str, value: str | os.PathLike[str]) -> Path:
    """The path of a file. Raises InvalidArgument where there is none."""
    path = path_of(field, value)
    if not path.is_file():
        raise invalid(field, f"{str(path)!r} is no file")
    return path


def shown(value: object) -> str:
    """A value for an error message, cut to one line."""
    try:
        text = repr(value)
    except Exception:  # integers of thousands of digits, and objects of others
        text = f"this {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _set(message: Message, field: Any, value: Any) -> None:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            raise TypeError("it must be a dict")
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
            raise TypeError("it must be a list")
        getattr(message, field.name).extend(value)
    elif isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    elif field.type == FieldDescriptor.TYPE_STRING and not isinstance(value, str):
        raise TypeError("it must be text")
    else:
        setattr(message, field.name, value)
