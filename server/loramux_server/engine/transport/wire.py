"""Commands and outputs as bytes: frames of MessagePack over a Unix socket, decoded into known types only.

A frame is a length (4 bytes, little-endian) and a two-element array: the kind of message and its fields.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from ...core.backend import (
    EmbedCommand,
    EmbedResult,
    EngineInfo,
    EngineStats,
    GenerateCommand,
    ProfileCommand,
    ProfileResult,
    ScoreCommand,
    ScoreResult,
    TokenEvent,
)
from ...core.errors import Code, Error
from ...core.jobs import TrainCommand, TrainEvent
from ...core.settings import EngineSettings
from .protocol import AbortCommand, Failure, LoadCommand, Output, PinCommand, StatsCommand, UnloadCommand

HEADER = struct.Struct("<I")
MAX_FRAME = 64 << 20
"""Bytes: many times the ids of the longest context. Rows of jobs cross as a file."""


@dataclass(frozen=True, slots=True)
class Start:
    """First message to the engine: what to build, and the secret behind the tenants' prefix-cache salts."""

    settings: EngineSettings
    secret: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """A slow step of the start; ``fraction`` of it that is done, if that is known."""

    step: str
    fraction: float | None


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is up."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Broken:
    """The start failed."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Stop:
    """Last message to the engine."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a frame whose body is no message. ``id``: of the command that it may have been; empty: unknown."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class _Envelope:
    """An ``Output`` whose payload's type is named beside it."""

    id: str
    kind: str
    payload: msgspec.Raw
    failure: Failure | None
    done: bool


_MESSAGES: dict[str, type] = {
    t.__name__: t
    for t in (
        Start,
        Progress,
        Ready,
        Broken,
        Stop,
        GenerateCommand,
        ScoreCommand,
        EmbedCommand,
        TrainCommand,
        LoadCommand,
        UnloadCommand,
        PinCommand,
        StatsCommand,
        ProfileCommand,
        AbortCommand,
    )
}
_PAYLOADS: dict[str, type] = {
    t.__name__: t for t in (TokenEvent, ScoreResult, EmbedResult, TrainEvent, EngineStats, ProfileResult)
}
_DECODERS: dict[str, Any] = {name: msgspec.msgpack.Decoder(t) for name, t in {**_MESSAGES, **_PAYLOADS}.items()}
_OUTPUTS = msgspec.msgpack.Decoder(list[_Envelope])
_FRAME = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: object) -> bytes:
    """The frame of a message, or of a list of ``Output``. RESOURCE_EXHAUSTED for one that the reader would refuse."""
    kind = type(message).__name__
    if isinstance(message, list):
        kind, message = "outputs", [_wrap(output) for output in message]
    body = _ENCODER.encode((kind, message))
    if len(body) > MAX_FRAME:
        raise Error(Code.RESOURCE_EXHAUSTED, f"a message of {len(body)} bytes; at most {MAX_FRAME} can be sent")
    return HEADER.pack(len(body)) + body


def _wrap(output: Output) -> _Envelope:
    payload = output.payload
    kind = "" if payload is None else type(payload).__name__
    return _Envelope(output.id, kind, msgspec.Raw(_ENCODER.encode(payload)), output.failure, output.done)


def decode(body: bytes) -> Any:
    """The message in a frame's body. Raises ``msgspec.DecodeError`` for anything that is not one."""
    try:
        return _decode(body)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8, and arrays nested without end
        raise msgspec.DecodeError(str(error)) from None


def _decode(body: bytes) -> Any:
    kind, fields = _FRAME.decode(body)
    if kind == "outputs":
        return [
            Output(e.id, _DECODERS[e.kind].decode(e.payload) if e.kind in _PAYLOADS else None, e.failure, e.done)
            for e in _OUTPUTS.decode(fields)
        ]
    if kind not in _MESSAGES:
        raise msgspec.DecodeError(f"unknown message {kind!r}")
    return _DECODERS[kind].decode(fields)


def _unreadable(body: bytes, why: str) -> Unreadable:
    id = None
    with suppress(ValueError, RecursionError, TypeError):
        fields = msgspec.msgpack.decode(_FRAME.decode(body)[1])
        if isinstance(fields, dict):
            id = fields.get("id", fields.get("job_id"))
    return Unreadable(id if isinstance(id, str) else "", why[:500])


def read_frames(connection: socket.socket) -> Iterator[Any]:
    """Messages from a blocking socket until the other side closes it. A body that is none is an ``Unreadable``.

    Raises ``msgspec.DecodeError`` for a length that no frame has: where the next one begins cannot be known.
    """
    with connection.makefile("rb") as stream:
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            size = frame_size(header)
            body = stream.read(size)
            if len(body) < size:
                return
            try:
                yield decode(body)
            except msgspec.DecodeError as error:
                yield _unreadable(body, str(error))


def frame_size(header: bytes) -> int:
    """Length of the body that follows a header."""
    size = int(HEADER.unpack(header)[0])
    if size > MAX_FRAME:
        raise msgspec.DecodeError(f"a frame of {size} bytes")
    return size
