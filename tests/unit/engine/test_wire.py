"""Frames between front and engine: what is no message is told apart from what loses the frames."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from loramux_server.engine.transport.protocol import AbortCommand, StatsCommand
from loramux_server.engine.transport.wire import HEADER, MAX_FRAME, Unreadable, decode, encode, read_frames

DEEP = b"\x91" * 100_000
NO_MESSAGES = {
    "nothing": b"",
    "one byte": b"\xc1",
    "no array": b"\xa5hello",
    "unknown kind": b"\x92\xa4Evil\xc0",
    "kind is not UTF-8": b"\x92\xa1\xff\xc0",
    "text is not UTF-8": b"\x92\xacStatsCommand\x81\xa2id\xa1\xff",
    "nested without end": b"\x92\xacStatsCommand" + DEEP,
    "outputs nested": b"\x92\xa7outputs" + DEEP,
    "a number for a text": b"\x92\xacStatsCommand\x81\xa2id\x07",
    "a map of 2^32": b"\x92\xacStatsCommand\xdf\xff\xff\xff\xff",
    "cut": encode(StatsCommand("whole"))[HEADER.size : -2],
}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("body", NO_MESSAGES.values(), ids=NO_MESSAGES.keys())
def test_what_is_no_message_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(body)


def test_a_body_that_is_no_message_costs_itself_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    good = encode(AbortCommand("a"))
    sent = b"".join(HEADER.pack(len(body)) + body + good for body in NO_MESSAGES.values())
    sender = threading.Thread(target=ours.sendall, args=(sent,))
    sender.start()
    messages = read_frames(theirs)
    for _ in NO_MESSAGES:
        assert isinstance(next(messages), Unreadable)
        assert next(messages) == AbortCommand("a")
    sender.join()


@pytest.mark.parametrize(("kind", "field"), [("GenerateCommand", "id"), ("TrainCommand", "job_id")])
def test_the_id_of_an_unreadable_command_is_found(
    pair: tuple[socket.socket, socket.socket], kind: str, field: str
) -> None:
    ours, theirs = pair
    body = msgspec.msgpack.encode((kind, {field: "mine", "prompt_ids": ["x"]}))
    ours.sendall(HEADER.pack(len(body)) + body)
    found = next(read_frames(theirs))
    assert isinstance(found, Unreadable)
    assert found.id == "mine"
    assert found.why


def test_a_length_that_no_frame_has_loses_the_frames(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(HEADER.pack(MAX_FRAME + 1) + b"whatever")
    with pytest.raises(msgspec.DecodeError, match=str(MAX_FRAME + 1)):
        next(read_frames(theirs))
