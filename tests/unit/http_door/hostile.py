"""Bytes that no client of good will sends to an HTTP server, and what each gets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass

BODY = b'{"model": "base", "prompt": "x", "max_tokens": 2}'
HIDDEN = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
"""The end of a chunked body, and a request that a proxy which counts bytes takes for a part of it."""


def post(*headers: bytes, body: bytes = BODY, counted: bool = True, path: bytes = b"/v1/completions") -> bytes:
    """A request with these headers beside the usual ones, ``counted``: with content-length."""
    length = (b"Content-Length: %d" % len(body),) if counted else ()
    head = (b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Type: application/json", *headers, *length)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def get(path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join((b"GET " + path + b" HTTP/1.1", b"Host: x", *headers)) + b"\r\n\r\n"


def chunked(body: bytes, *headers: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *headers, body=body, counted=False)


@dataclass(frozen=True)
class Case:
    """What is sent, the statuses of all answers, and whether the server then ends the connection."""

    sent: bytes
    statuses: tuple[int, ...]
    ends: bool = True


SIZE = b"%x" % len(BODY)
CASES = {
    "content-length beside chunks": Case(chunked(HIDDEN, b"Content-Length: 5"), (400,)),
    "content-length of the hidden request": Case(post(b"Transfer-Encoding: chunked", body=HIDDEN), (400,)),
    "two lengths": Case(post(b"Content-Length: 5"), (400,)),
    "a length with a sign": Case(post(b"Content-Length: +49", counted=False), (400,)),
    "a negative length": Case(post(b"Content-Length: -1", counted=False), (400,)),
    "a coding that is none": Case(post(b"Transfer-Encoding: xchunked", counted=False), (400,)),
    "two codings": Case(post(b"Transfer-Encoding: gzip, chunked", counted=False), (400,)),
    "space before the colon": Case(post(b"Transfer-Encoding : chunked"), (400,)),
    "a chunk with an extension": Case(chunked(SIZE + b";a=b\r\n" + BODY + b"\r\n0\r\n\r\n"), (200,), ends=False),
    "a chunk of a negative size": Case(chunked(b"-1\r\n"), (400,)),
    "a chunk of 2^120 bytes": Case(chunked(b"f" * 30 + b"\r\n"), (400,)),
    "trailers": Case(chunked(SIZE + b"\r\n" + BODY + b"\r\n0\r\nAuthorization: Bearer x\r\n\r\n"), (200,), ends=False),
    "HTTP/0.9": Case(b"GET /v1/models\r\n\r\n", (400,)),
    "HTTP/1.0": Case(post().replace(b"HTTP/1.1", b"HTTP/1.0"), (200,)),
    "no host": Case(b"GET /v1/models HTTP/1.1\r\n\r\n", (400,)),
    "two hosts": Case(get(b"/v1/models", b"Host: y"), (400,)),
    "an absolute address": Case(get(b"http://169.254.169.254/v1/models"), (404,), ends=False),
    "a tunnel": Case(b"CONNECT example.com:80 HTTP/1.1\r\nHost: example.com\r\n\r\n", (404,), ends=False),
    "a trace": Case(get(b"/v1/models").replace(b"GET", b"TRACE", 1), (405,), ends=False),
    "an upgrade to HTTP/2": Case(get(b"/v1/models", b"Connection: Upgrade", b"Upgrade: h2c"), (200,), ends=False),
    "an upgrade to a WebSocket": Case(
        get(b"/v1/models", b"Connection: Upgrade", b"Upgrade: websocket"), (200,), ends=False
    ),
    "NUL in a path": Case(get(b"/v1/models/a%00b"), (400,), ends=False),
    "NUL in the request": Case(get(b"/v1/models/a\0b"), (400,)),
    "a path upwards": Case(get(b"/v1/models/..%2f..%2fetc%2fpasswd"), (400,), ends=False),
    "a line break in a path": Case(get(b"/v1/x%0d%0aSet-Cookie:%20a=b"), (404,), ends=False),
    "no UTF-8 in a path": Case(get(b"/v1/models/%ff%fe"), (400,), ends=False),
    "no number in a path": Case(get(b"/v1/fine_tuning/jobs/ftjob-%F0%9F%92%A9"), (404,), ends=False),
    "a header of 100 KB": Case(get(b"/v1/models", b"A: " + b"b" * 100_000), (431,)),
    "six thousand headers": Case(get(b"/v1/models", *(b"a%d: b" % i for i in range(6000))), (431,)),
    "half of a JSON": Case(post(body=BODY[:20]), (400,), ends=False),
    "JSON that is deep": Case(post(body=b"[" * 100_000), (400,), ends=False),
    "no JSON at all": Case(post(body=b"\x80\x04\x95."), (400,), ends=False),
    "compressed without being so": Case(post(b"Content-Encoding: gzip", body=b"\x1f\x8b" + BODY), (400,), ends=False),
    "a body of 10^15 bytes": Case(post(b"Content-Length: 1000000000000000", counted=False), (413,), ends=False),
    "TLS": Case(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500, (400,)),
    "HTTP/2": Case(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (404, 400)),
    "zeros": Case(b"\0" * 5000 + b"\r\n\r\n", (400,)),
    "many at once": Case(post() * 20, (200,) * 20, ends=False),
    "one and garbage": Case(post() + b"\0\xff garbage\r\n\r\n", (200, 400)),
}


async def talk(host: str, port: int, *sent: bytes, answers: int = 1, ends: bool = True) -> list[int]:
    """The statuses that come back; ``ends``: wait until the server ends the connection too."""
    reader, writer = await asyncio.open_connection(host, port)
    came = b""
    try:
        async with asyncio.timeout(30):
            for each in sent:
                writer.write(each)
            while ends or len(statuses(came)) < answers:
                part = await reader.read(1 << 16)
                if not part:
                    break
                came += part
    except ConnectionError:  # it ended with bytes unread
        pass
    finally:
        writer.transport.abort()
    for leak in (b"Traceback", b'File "', b"set-cookie", b"\r\nSet-Cookie"):
        assert leak not in came
    return statuses(came)


def statuses(answers: bytes) -> list[int]:
    found: Iterable[bytes] = re.findall(rb"HTTP/1\.1 ([2-9]\d\d) ", answers)
    return [int(status) for status in found]
