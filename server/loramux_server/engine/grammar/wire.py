"""What is said between the engine and the processes that hold grammars (grammar_process.py). Nobody else listens.

Frames as in wire.py: a length, then MessagePack.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...core.errors import Code
from ...core.types import Grammar
from ..transport.wire import HEADER, frame_size


class Setup(msgspec.Struct, tag=True, frozen=True):
    """First message to the process that all others are forked from."""

    tokenizer: str
    """Folder of the base's tokenizer."""
    eos: tuple[int, ...]
    compile_seconds: float = 2.0
    """Processor time that compiling a grammar may take."""
    memory: int = 512 << 20
    """Bytes that a grammar may use beside the tokenizer."""


class Compile(msgspec.Struct, tag=True, frozen=True):
    """First message to the process of one grammar; answered by one ``Compiled``."""

    grammar: Grammar


class Open(msgspec.Struct, tag=True, frozen=True):
    """Begin an answer under ``key``; answered by a ``Mask``."""

    key: int


class Step(msgspec.Struct, tag=True, frozen=True):
    """A token was chosen; answered by the ``Mask`` for the next."""

    key: int
    token: int


class Close(msgspec.Struct, tag=True, frozen=True):
    """The answer is over, by whatever cause. Not answered."""

    key: int


class Forked(msgspec.Struct, tag=True, frozen=True):
    """The process of a grammar is there: what goes wrong from here on is the grammar's doing."""


class Compiled(msgspec.Struct, tag=True, frozen=True):
    """The grammar is ready, or ``error`` says what is wrong with it."""

    error: str = ""


class Mask(msgspec.Struct, tag=True, frozen=True):
    """Which tokens may come next: one bit each, the lowest first. ``complete``: none; the answer is whole."""

    key: int
    bits: bytes = b""
    complete: bool = False
    code: Code | None = None
    """Set when the answer cannot go on; ``error`` says why."""
    error: str = ""


Request = Setup | Compile | Open | Step | Close
Reply = Forked | Compiled | Mask

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    """A message with its length before it."""
    body = _ENCODER.encode(message)
    return HEADER.pack(len(body)) + body


def read_request(stream: Any) -> Request | None:
    """The next message from a blocking binary stream; None when the other side is gone."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = stream.read(size := frame_size(header))
    return _REQUESTS.decode(body) if len(body) == size else None


def decode_reply(body: bytes) -> Reply:
    """The reply in a frame's body."""
    return _REPLIES.decode(body)
