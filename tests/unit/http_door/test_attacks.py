"""What somebody with one tenant's key tries at the HTTP door."""

from __future__ import annotations

import asyncio
import json

import pytest

from loramux_server.core.callers.quota import Quota, Quotas

from .conftest import Http
from .hostile import BODY, get, post, statuses, talk
from .test_door import Keys

ASK = {"model": "base", "prompt": "x", "max_tokens": 4}


@pytest.fixture(autouse=True)
def keys(http: Http) -> None:
    http.access.authenticator = Keys()


async def test_a_stream_of_a_revoked_key_ends_with_the_reason(http: Http) -> None:
    http.answers("Paris is the capital of France. " * 4, hang=True)
    headers = {"authorization": "Bearer reader"}
    request = http.raw.build_request("POST", "/v1/completions", json={**ASK, "stream": True}, headers=headers)
    answer = await http.raw.send(request, stream=True)
    lines = answer.aiter_lines()
    assert (await anext(lines)).startswith("data: ")
    http.server.calls.fail_key("o")  # another's
    http.server.calls.fail_key("r")
    async with asyncio.timeout(20):
        said = [line async for line in lines if line]
    last = json.loads(said[-1].removeprefix("data: "))
    assert last["error"]["code"] == "invalid_api_key"


async def test_two_keys_are_none(http: Http) -> None:
    """In whichever headers, in either order, and however the names are written."""
    http.answers("x")
    pairs = (
        (b"Authorization: Bearer reader", b"Authorization: Bearer owner"),
        (b"authorization: Bearer owner", b"AUTHORIZATION: Bearer wrong"),
        (b"Authorization: Bearer reader", b"x-api-key: owner"),
        (b"X-API-Key: owner", b"x-api-key: reader"),
    )
    for pair in pairs:
        assert await talk(*http.server.address, post(*pair, b"Connection: close")) == [401], pair
    for one in (b"Authorization: Bearer reader, Bearer owner", b"Authorization: Bearer reader\tx", b"Authorization: "):
        assert await talk(*http.server.address, post(one, b"Connection: close")) == [401], one
    assert await talk(*http.server.address, post(b"Authorization: Bearer reader", b"Connection: close")) == [200]


@pytest.mark.parametrize("header", ["x-tenant", "x-loramux-tenant", "openai-organization", "x-forwarded-for", "user"])
async def test_no_header_makes_somebody_else_of_the_caller(http: Http, header: str) -> None:
    http.answers("x")
    asked = {"authorization": "Bearer reader", header: "globex"}
    assert (await http.raw.post("/v1/completions", json=ASK, headers=asked)).status_code == 200
    assert http.backend.commands[-1].tenant == "acme"


@pytest.mark.parametrize("id", ["a b", "x" * 129, "a\tb", "ü", "{jndi:x}"])
async def test_a_request_id_cannot_forge_headers_or_lines(http: Http, id: str) -> None:
    """What is no plain word is replaced; what is one comes back as it is."""
    headers = [(b"authorization", b"Bearer reader"), (b"x-request-id", id.encode())]
    answer = await http.raw.get("/v1/models", headers=headers)
    assert answer.status_code == 200
    back = answer.headers["x-request-id"]
    assert back == id if id == "{jndi:x}" else len(back) == 32


async def test_a_quota_counts_what_is_refused_too(http: Http) -> None:
    """Unknown models, bad bodies and other routes are requests: none of them is a way around the limit."""
    headers = {"authorization": "Bearer reader"}
    http.context.meter.quotas = Quotas({"tenant:acme": Quota(requests_per_minute=3)})
    asked = [{**ASK, "model": f"nobody{i}"} for i in range(3)]
    got = [(await http.raw.post("/v1/completions", json=body, headers=headers)).status_code for body in asked]
    assert got == [404] * 3
    for path in ("/v1/models", "/v1/models/base"):
        assert (await http.raw.get(path, headers=headers)).status_code == 429
    assert (await http.raw.post("/v1/completions", json=ASK, headers=headers)).status_code == 429


async def test_a_path_spelt_otherwise_asks_for_the_same_scope(http: Http) -> None:
    for path in (
        b"/v1/models/%61cme",
        b"/v1//models/acme",
        b"/v1/./models/acme",
        b"/V1/models/acme",
        b"/v1/models/acme/",
    ):
        sent = get(path, b"Authorization: Bearer reader", b"Connection: close").replace(b"GET", b"DELETE", 1)
        (status,) = await talk(*http.server.address, sent)
        assert status in (403, 404, 405), (path, status)
    sent = get(
        b"/v1/models/acme", b"Authorization: Bearer reader", b"X-HTTP-Method-Override: DELETE", b"Connection: close"
    )
    assert await talk(*http.server.address, sent) == [404]


def test_the_counter_of_answers_counts() -> None:
    """The other tests rest on it."""
    assert statuses(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{}HTTP/1.1 404 Not Found\r\n") == [200, 404]
    assert BODY
