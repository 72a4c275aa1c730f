"""Pages of other sites: what a browser of this machine would send for them, and what it gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx2
import pytest

from loramux_server.config import Address
from loramux_server.http.exchanges.pages import Pages
from loramux_server.http.server import HttpServer

from .conftest import Http

CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
FRIEND, FOREIGN = "https://chat.example.org", "https://evil.example"
Doors = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def doors(http: Http) -> Doors:
    """Another door over the same services, with pages that may call, open unless said otherwise."""

    @asynccontextmanager
    async def start(pages: Pages | None = None, *, everybody: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
        http.answers("Hello.")
        calls, address = http.server.calls, Address("127.0.0.1", 0)
        server = HttpServer(http.availability, calls, address, pages=pages, takes_everybody=lambda: everybody)
        await server.start()
        await server.set_serving(True)
        try:
            async with httpx2.AsyncClient(base_url=f"http://{server.address}", timeout=20) as client:
                yield client
        finally:
            await server.stop()

    return start


async def code_of(client: httpx2.AsyncClient, path: str = "/v1/models", method: str = "GET", **options: object) -> str:
    """The status, and the code of an error."""
    answer = await client.request(method, path, **options)  # type: ignore[arg-type]
    return str(answer.status_code) if answer.is_success else f"{answer.status_code} {answer.json()['error']['code']}"


@pytest.mark.parametrize("everybody", [True, False])
async def test_a_foreign_page_cannot_call_even_without_a_preflight(http: Http, doors: Doors, everybody: bool) -> None:
    """Forms, texts, bodies without a type and no body at all: what browsers send to any site without asking first."""
    async with doors(everybody=everybody) as client:
        for headers, content in (
            ({"content-type": "text/plain"}, b'{"model": "base"}'),
            ({"content-type": "application/x-www-form-urlencoded"}, b"model=base"),
            ({"content-type": "multipart/form-data; boundary=x"}, b"--x--"),
            ({}, b'{"model": "base", "prompt": "x"}'),
        ):
            for origin in (FOREIGN, "null", f"http://{client.base_url.host}:1", f"{client.base_url}.evil.example"):
                for path in ("/v1/completions", "/v1/files", "/v1/fine_tuning/jobs/ftjob-job-1/cancel"):
                    told = {**headers, "origin": origin}
                    assert await code_of(client, path, "POST", content=content, headers=told) == "403 origin_refused"
        assert not http.backend.commands


async def test_a_form_is_no_chat_whoever_sends_it(doors: Doors) -> None:
    async with doors() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            headers = {"content-type": kind}
            told = await code_of(client, "/v1/chat/completions", "POST", content=b"{}", headers=headers)
            assert told == "400 invalid_argument"


async def test_the_doors_own_page_and_programs_can_call(doors: Doors) -> None:
    async with doors() as client:
        own = {"origin": str(client.base_url).rstrip("/")}
        assert await code_of(client, "/v1/chat/completions", "POST", json=CHAT, headers=own) == "200"
        assert await code_of(client, "/v1/chat/completions", "POST", json=CHAT) == "200"


async def test_a_name_that_strangers_dns_leads_here_opens_nothing(doors: Doors) -> None:
    """DNS rebinding: the page's own name means this machine by now, so that it is its own origin."""
    async with doors(Pages(hosts=("gpu.example.org",))) as client:
        port = client.base_url.port
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "x@localhost", "[::1", "a,b"):
            headers = {"host": f"{host}:{port}", "origin": f"http://{host}:{port}"}
            for path in ("/v1/models", "/health", "/"):
                assert await code_of(client, path, headers=headers) == "403 host_refused", host
        for host in ("localhost", "LOCALHOST", "127.0.0.1", "10.1.2.3", "[::1]", "a.localhost", "GPU.example.org"):
            assert await code_of(client, headers={"host": f"{host}:{port}"}) == "200", host
    async with doors(everybody=False) as client:  # such a page has no key
        assert await code_of(client, headers={"host": "behind.a.proxy"}) == "200"


async def test_pages_of_named_origins_can_call_and_read(doors: Doors) -> None:
    async with doors(Pages(origins=(FRIEND,))) as client:
        asks = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,x-stainless-os",
        }
        answer = await client.options("/v1/chat/completions", headers={"origin": FRIEND, **asks})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["access-control-max-age"] == "600"
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"origin": FRIEND})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, FRIEND)
        assert "origin" in answer.headers["vary"].lower()
        refused = await client.post("/v1/completions", json={}, headers={"origin": FRIEND})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, FRIEND)
        for origin in (FOREIGN, FRIEND.upper(), f"{FRIEND}:444", f"{FRIEND}.evil.example", "http://chat.example.org"):
            answer = await client.options("/v1/chat/completions", headers={"origin": origin, **asks})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
    async with doors() as client:
        answer = await client.options("/v1/chat/completions", headers={"origin": FRIEND, **asks})
        assert answer.status_code == 403
        answer = await client.get("/v1/models")
        assert not [name for name in answer.headers if name.startswith("access-control")]
