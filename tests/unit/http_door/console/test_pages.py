"""The console in a real browser over real services and a scripted engine: who may look, and hostile texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from loramux_server.core.backend import EngineStats
from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.services.access import refusals
from loramux_server.services.access.credentials import Credentials
from tests.browser import PHONE, Watched, console_page, needs_browser
from tests.unit.services.fakes import Script

from ..conftest import Http

pytestmark = needs_browser
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>{{alert(3)}} javascript:alert(4)"


class Keys:
    """Knows one key that may do everything, and two that may not."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        known = {
            ("Bearer operator",): Principal("acme", frozenset(Scope), "o"),
            ("Bearer writer",): Principal("acme", frozenset({Scope.TRAIN}), "w"),
            ("Bearer reader",): Principal("acme", frozenset({Scope.INFER}), "r"),
        }
        found = known.get(credentials.authorization)
        if found is None:
            raise refusals.invalid() if credentials.authorization else refusals.missing()
        return found


@pytest.fixture
async def console(http: Http) -> AsyncIterator[Watched]:
    async with console_page(f"http://{http.server.address}") as watched:
        yield watched


@pytest.mark.slow
async def test_an_open_server_asks_for_nothing(http: Http, console: Watched) -> None:
    await console.goto()
    await expect(console.page.get_by_role("heading", name="Chat")).to_be_visible()
    await expect(console.page.get_by_role("button", name="Sign out")).to_have_count(0)
    assert await console.page.evaluate("sessionStorage.length + localStorage.length") == 0


async def test_a_key_opens_what_it_may(http: Http, console: Watched) -> None:
    http.access.authenticator = Keys()
    console.refused = {401}
    page = console.page
    await console.goto()
    await expect(page.get_by_label("API key")).to_be_focused()
    await console.check_accessibility()
    await page.keyboard.type("wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("The key is not valid.")
    await page.get_by_label("API key").fill("writer")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("Your key does not have the scope infer")).to_be_visible()
    await console.check_accessibility()
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_label("API key").fill("reader")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Message")).to_be_visible()
    await page.get_by_role("link", name="Live").click()
    await expect(page.get_by_text("These are the figures of the tenant acme.")).to_be_visible()
    assert not await page.get_by_role("table").count()

    # The key is nowhere but in this tab: not in the address, not in a cookie, not in what other tabs read.
    assert await page.evaluate("[sessionStorage['loramux.key'], localStorage.length, document.cookie]") == [
        "reader",
        0,
        "",
    ]
    assert "reader" not in page.url
    await page.reload()
    await expect(page.get_by_role("heading", name="Live")).to_be_visible()
    http.access.authenticator = Nobody()
    await expect(page.get_by_role("alert")).to_have_text("The key is not valid.")
    assert await page.evaluate("sessionStorage.length") == 0


class Nobody:
    """Every key was revoked."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        raise refusals.invalid() if credentials.authorization else refusals.missing()


async def test_hostile_texts_are_shown_as_texts(http: Http, console: Watched) -> None:
    http.answers(HOSTILE)
    await console.goto()
    page = console.page
    await page.get_by_role("combobox").fill(HOSTILE)
    await page.keyboard.press("Enter")
    await expect(page.get_by_text(HOSTILE, exact=True)).to_be_visible()
    await page.get_by_role("button", name=f"Remove {HOSTILE}").click()
    await page.get_by_label("System prompt").fill(HOSTILE)
    await page.get_by_label("Message").fill(HOSTILE)
    await page.keyboard.press("Enter")
    await expect(page.locator(".said").get_by_text(HOSTILE, exact=True)).to_have_count(2)
    await page.get_by_role("button", name="Copy as code").click()
    await expect(page.get_by_label("The request", exact=True)).to_contain_text("onerror=alert(1)")
    assert await page.locator("main img").count() == 0
    assert await page.locator("main script").count() == 0


@pytest.mark.slow
async def test_stop_ends_the_work_behind_an_answer(http: Http, console: Watched) -> None:
    http.backend.script = lambda _: Script((5, 6, 7), hang=True)
    await console.goto()
    page = console.page
    await page.get_by_label("Message").fill("Hello")
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_text("Stopped after")).to_be_visible()
    async with asyncio.timeout(20):
        await http.server.calls.wait_idle()
    assert len(http.backend.aborted) == 1
    await console.check_accessibility()


@pytest.mark.slow
async def test_a_refusal_says_why_and_what_to_do(http: Http, console: Watched) -> None:
    console.refused = {400, 404}
    http.answers("Hello back.")
    await console.goto()
    page = console.page
    await page.get_by_role("combobox").fill("nobody")
    await page.keyboard.press("Enter")
    await page.get_by_label("Message").fill("Hello")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("nobody")
    await console.check_accessibility()
    await page.get_by_role("button", name="Remove nobody").click()
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".assistant .said")).to_have_text("Hello back.")
    await page.get_by_label("Temperature").fill("11")
    await page.get_by_label("Message").fill("Hello")
    await page.keyboard.press("Enter")
    await expect(page.locator(".turn.user")).to_have_count(1)  # the browser names the bound, and nothing was sent


@pytest.mark.slow
async def test_it_is_usable_on_a_phone_in_the_dark_and_in_german(http: Http) -> None:
    async def stats() -> EngineStats:
        return EngineStats(kv_pages_used=12, kv_pages_total=1456, memory={"base": 97_200_000, "free": 2_500_000_000})

    http.backend.stats = stats  # type: ignore[method-assign]
    async with console_page(f"http://{http.server.address}", size=PHONE, dark=True, locale="de-DE") as console:
        http.answers("Hello back.")
        await console.goto()
        page = console.page
        await page.get_by_label("Message").fill("Hello")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator(".assistant .said")).to_have_text("Hello back.")
        await page.get_by_role("button", name="Two stacks side by side").click()
        await console.check_accessibility()
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        await page.get_by_role("link", name="Live").click()
        await expect(page.get_by_text("12 of 1.456 pages of the KV cache")).to_be_visible()
        await expect(page.get_by_role("cell", name="97,2 MB")).to_be_visible()
        await console.check_accessibility()
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(18, 21, 28)"
