"""Headers with any values: each request is answered, as the document says, and none breaks the server."""

from __future__ import annotations

import random

from tests.examples import ALL

from .conftest import Http

READ = (
    *("authorization", "x-api-key", "x-request-id", "idempotency-key", "origin", "host", "content-type", "accept"),
    *("if-none-match", "content-encoding", "expect", "access-control-request-method", "access-control-request-headers"),
)
"""Headers that the door, or what it is made of, reads."""
PIECES = (
    *(
        b"Bearer ",
        b"bearer\t",
        b"lmx_",
        b"application/json",
        b"multipart/form-data; boundary=",
        b"http://",
        b"127.0.0.1",
    ),
    *(b":8000", b"null", b"*", b"[::1", b"]", b'"', b";", b",", b"=", b"%00", b"..", b"\xff", b"\xc3\xa9", b"a" * 300),
)


async def test_any_headers_are_answered(http: Http) -> None:
    http.answers("x")
    draw = random.Random(7)
    for number in range(300 if ALL else 50):
        names = draw.sample(READ, draw.randint(1, 4))
        headers = [
            (name.encode(), b"".join(draw.choices(PIECES, k=draw.randint(0, 5))).strip())
            for name in names
            for _ in range(1 if name == "host" else draw.choice((1, 1, 1, 2)))
        ]
        method, path = draw.choice(
            (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/v1/files"), ("OPTIONS", "/v1/models"))
        )
        answer = await http.raw.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
        assert answer.status_code < 500, (number, headers)
        assert "Traceback" not in answer.text
    assert (await http.raw.get("/v1/models")).status_code == 200
