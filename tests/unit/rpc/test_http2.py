"""Frames of HTTP/2 from a raw socket: floods end their connection and nobody else's."""

from __future__ import annotations

import asyncio
import struct

from loramux.v1 import inference_pb2, inference_pb2_grpc

from .scripted import Door, open_door

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x1, 0x3, 0x4, 0x6, 0x7
END_HEADERS = 0x4
CANCEL, ENHANCE_YOUR_CALM = 0x8, 0xB
PATH = b"/loramux.v1.InferenceService/Generate"
# By HPACK's static table: two whole fields, then literals under its names.
CALL = b"\x83\x86" + b"".join(
    bytes((name, len(value))) + value
    for name, value in ((0x44, PATH), (0x41, b"localhost"), (0x5F, b"application/grpc"))
)


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


async def last_words(reader: asyncio.StreamReader) -> int | None:
    """The error code of the GOAWAY that ends the connection; None: it ended without one."""
    code = None
    try:
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == GOAWAY:
                code = struct.unpack(">II", payload[:8])[1]
    except (asyncio.IncompleteReadError, ConnectionError):
        return code


async def flood(door: Door, frames: bytes) -> int | None:
    reader, writer = await asyncio.open_connection(*door.server.address)
    try:
        writer.write(PREFACE + frame(SETTINGS))
        writer.write(frames)
        async with asyncio.timeout(20):
            return await last_words(reader)
    finally:
        writer.close()


async def answers(door: Door) -> bool:
    stub = inference_pb2_grpc.InferenceServiceStub(door.channel)
    return bool((await stub.GenerateOnce(inference_pb2.GenerateRequest(prompt="hi"), timeout=10)).choices)


async def test_a_ping_flood_is_told_to_calm_down() -> None:
    async with open_door() as door:
        assert await answers(door)
        assert await flood(door, frame(PING, b"12345678") * 2000) == ENHANCE_YOUR_CALM
        assert await answers(door)


async def test_calls_that_are_begun_and_reset_hold_nothing() -> None:
    async with open_door() as door:
        assert await answers(door)
        reset = struct.pack(">I", CANCEL)
        calls = (
            frame(HEADERS, CALL, END_HEADERS, stream) + frame(RST_STREAM, reset, 0, stream)
            for stream in range(1, 20_001, 2)
        )
        _, writer = await asyncio.open_connection(*door.server.address)
        writer.write(PREFACE + frame(SETTINGS) + b"".join(calls))
        assert await answers(door)  # meanwhile
        writer.close()
        assert await answers(door)
        async with asyncio.timeout(20):
            while door.server.running:  # noqa: ASYNC110 - a turn of the loop, not a time
                await asyncio.sleep(0)


async def test_bytes_that_are_no_http2_hurt_nobody_else() -> None:
    async with open_door() as door:
        headers = frame(HEADERS, b"\xff" * 400, END_HEADERS, stream=1)
        for garbage in (b"\x00" * 5000, b"\xff" * 5000, PREFACE + b"\xff" * 5000, PREFACE + headers):
            _, writer = await asyncio.open_connection(*door.server.address)
            writer.write(garbage)
            await writer.drain()
            assert await answers(door)
            writer.close()


async def test_one_byte_at_a_time_is_a_request_too() -> None:
    async with open_door() as door:
        reader, writer = await asyncio.open_connection(*door.server.address)
        for byte in PREFACE + frame(SETTINGS) + frame(PING, b"12345678"):
            writer.write(bytes((byte,)))
            await writer.drain()
        async with asyncio.timeout(20):
            while (head := await reader.readexactly(9))[3] != PING:
                await reader.readexactly(int.from_bytes(head[:3], "big"))
        assert head[4] & 1, "the ping was not acknowledged"
        writer.close()
        assert await answers(door)
