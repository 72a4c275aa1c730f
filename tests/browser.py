"""A real browser on a page of the console, which is watched for whatever a page must not do."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import ConsoleMessage, Page, Request, async_playwright, expect

CHROMIUM = os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("TEST_SCREENSHOTS")
"""Folder for pictures of the pages, which docs/images has; they are made where this is set."""
WIDE, PHONE = (1280, 800), (375, 812)
PATIENCE = 60_000
"""Milliseconds that a page may take for anything: a machine may run many tests at once."""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
expect.set_options(timeout=PATIENCE)


@dataclass
class Watched:
    """A page, and what went wrong on it. Requests that are meant to be refused are named in ``refused``."""

    page: Page
    origin: str
    refused: set[int] = field(default_factory=set)
    """Statuses of HTTP that the test provokes; browsers write each into their console as an error."""
    problems: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        self.page.on("request", self._requested)
        self.page.on("dialog", lambda dialog: self.problems.append(f"a dialog opened: {dialog.message}"))

    def _said(self, message: ConsoleMessage) -> None:
        expected = any(f"status of {status} " in message.text for status in self.refused)
        if message.type in ("error", "warning") and not expected:
            self.problems.append(f"{message.type}: {message.text}")

    def _requested(self, request: Request) -> None:
        url = urlsplit(request.url)
        if f"{url.scheme}://{url.netloc}" != self.origin and url.scheme not in ("data", "blob"):
            self.problems.append(f"a request left the origin: {request.url}")

    async def goto(self, page: str = "") -> None:
        """Open the console, at one of its pages."""
        await self.page.goto(f"{self.origin}/#/{page}")

    async def check_accessibility(self) -> None:
        """Nothing that axe-core calls serious or critical."""
        found = (await Axe().run(self.page)).response["violations"]
        bad = [each for each in found if each["impact"] in ("serious", "critical")]
        assert not bad, [(each["id"], each["help"], [node["html"] for node in each["nodes"]]) for each in bad]

    async def picture(self, name: str) -> None:
        """Keep a picture of what is seen, where ``TEST_SCREENSHOTS`` asks for it."""
        if SCREENSHOTS:
            await self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


@asynccontextmanager
async def console_page(
    origin: str, *, size: tuple[int, int] = WIDE, dark: bool = False, locale: str = "en-GB"
) -> AsyncIterator[Watched]:
    """A new browser at ``origin``. Fails in the end for an error in its console or a request to another origin."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        try:
            context = await browser.new_context(
                viewport={"width": size[0], "height": size[1]},
                color_scheme="dark" if dark else "light",
                locale=locale,
                permissions=["clipboard-read", "clipboard-write"],
            )
            context.set_default_timeout(PATIENCE)
            watched = Watched(await context.new_page(), origin)
            watched.watch()
            yield watched
            assert not watched.problems, watched.problems
        finally:
            await browser.close()
