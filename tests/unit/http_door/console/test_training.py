"""The console's page of training in a real browser, over real services and scripted training."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, expect

from tests.browser import PHONE, Watched, console_page, needs_browser
from tests.unit.services.scripted_training import ScriptedTraining

from ..conftest import Http

pytestmark = needs_browser
HOSTILE = "<img src=x onerror=alert(1)>"
ROWS = [{"prompt": f"Where is shop {i}?", "completion": f" In street {i}."} for i in range(8)]


@pytest.fixture
async def console(http: Http) -> AsyncIterator[Watched]:
    async with console_page(f"http://{http.server.address}") as watched:
        await watched.goto("training")
        yield watched


def lines(rows: list[object]) -> bytes:
    return b"".join((row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows)


async def drop(page: Page, name: str, data: bytes) -> None:
    """Choose a file of rows as a reader does."""
    if not await page.get_by_role("region", name="New job").count():
        await page.get_by_role("button", name="New job").click()
    await page.get_by_label("Rows to learn").set_input_files(
        files=[{"name": name, "mimeType": "application/jsonl", "buffer": data}]
    )


@pytest.mark.slow
async def test_problems_come_all_at_once_by_line(http: Http, console: Watched) -> None:
    page = console.page
    await expect(page.get_by_text("No job was started yet.")).to_be_visible()
    await console.check_accessibility()
    bad = [*ROWS[:2], "{no json", ROWS[2], {"prompt": HOSTILE, "completion": ""}, {"promt": "x", "completion": "y"}]
    await drop(page, "bad.jsonl", lines(bad))
    table = page.get_by_role("region", name="Problems")
    for line in (3, 5, 6):
        await expect(table.get_by_role("cell", name=str(line), exact=True)).to_be_visible()
    await expect(page.get_by_text("3 problems keep this file from being learned")).to_be_visible()
    await expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    await console.check_accessibility()
    await console.picture("training-problems")
    assert await page.locator("main img").count() == 0

    await drop(page, "good.jsonl", lines(ROWS))
    await expect(page.get_by_text("All rows can be learned: 8.")).to_be_visible()
    await expect(table).to_have_count(0)
    first = page.locator("figure").first
    await expect(first.locator("mark").first).to_contain_text("In street 0.")
    await expect(first.locator("mark").first).not_to_contain_text("Where")
    await page.get_by_role("button", name="Next rows").click()
    await expect(page.get_by_text("Line 4,")).to_be_visible()
    await expect(page.get_by_role("button", name="Start training")).to_be_enabled()
    await console.check_accessibility()


@pytest.mark.slow
async def test_settings_change_the_estimate_and_reach_the_job(http: Http, console: Watched) -> None:
    page = console.page
    await drop(page, "good.jsonl", lines(ROWS))
    await page.get_by_text("Settings: what is left empty").click()
    steps = page.locator("dt", has_text="Steps").locator("xpath=following-sibling::dd")
    await page.get_by_label("Most steps").fill("7")
    await page.get_by_label("Most steps").press("Tab")
    await expect(steps).to_have_text("7")
    await page.get_by_label("Rank", exact=True).fill("4")
    await page.get_by_label("Facts").check()
    await page.get_by_text("Train over other adapters").click()
    await page.get_by_role("button", name="Add a stack to train over").click()
    await page.get_by_text("Gate and comparison").click()
    await page.get_by_label("The name moves").select_option("KIND_NONE")
    await page.get_by_label("Compare with this prompt").fill("The shops are in streets.")
    await page.get_by_label("Held-out share").fill("0.25")
    await page.get_by_label("Documents to compare with").set_input_files(
        files=[
            {"name": "streets.md", "mimeType": "text/markdown", "buffer": "# Straßen\nShop 1 is in street 1.".encode()},
            {"name": "more.jsonl", "mimeType": "application/jsonl", "buffer": b'{"text": "Shop 2 is in street 2."}'},
        ]
    )
    await expect(page.get_by_label("Documents", exact=True)).to_contain_text("documents.jsonl (2 rows")
    await page.get_by_label("Passages of the documents").fill("2")
    await console.check_accessibility()
    await page.get_by_label("Name of the adapter").fill("shops")
    await page.get_by_role("button", name="Start training").click()
    await expect(page.get_by_role("heading", name="Job of shops")).to_be_visible()
    (job,), _ = http.context.store.jobs.list("default")
    spec = job.request.spec
    assert (spec.max_steps, spec.rank, spec.validation_split, job.request.on_top_of) == (7, 4, 0.25, ((),))
    assert (job.request.recipe or "facts", job.request.compare_prompt) == ("facts", "The shops are in streets.")
    assert job.request.compare_top_k == 2
    stored = http.context.store.datasets.get(job.request.compare_documents, "default")
    assert [json.loads(line) for line in http.context.store.datasets.read(stored.digest).splitlines()] == [
        {"text": "# Straßen\nShop 1 is in street 1.", "name": "streets.md"},
        {"text": "Shop 2 is in street 2."},
    ]


@pytest.mark.slow
async def test_documents_that_are_no_text_are_refused_by_name(http: Http, console: Watched) -> None:
    page = console.page
    await drop(page, "good.jsonl", lines(ROWS))
    for data in (b"\x89PNG\xff", b"a\0b"):
        await page.get_by_label("Documents to compare with").set_input_files(
            files=[{"name": "picture.md", "mimeType": "text/markdown", "buffer": data}]
        )
        await expect(page.get_by_text("picture.md is no text")).to_be_visible()
        await page.get_by_label("Documents to compare with").set_input_files(
            files=[{"name": "good.txt", "mimeType": "text/plain", "buffer": b"good"}]
        )
        await expect(page.get_by_text("picture.md is no text")).to_have_count(0)


@pytest.mark.slow
async def test_a_comparison_is_a_table_with_its_verdict(http: Http, console: Watched) -> None:
    """All ways to answer, what each costs, and what to choose."""
    page = console.page
    await drop(page, "good.jsonl", lines(ROWS))
    await page.get_by_text("Settings: what is left empty").click()
    await page.get_by_label("Held-out share").fill("0.25")
    await page.get_by_label("Documents to compare with").set_input_files(
        files=[{"name": "streets.txt", "mimeType": "text/plain", "buffer": b"Shop 1 is in street 1.\n\nShop 2."}]
    )
    await expect(page.get_by_label("Documents", exact=True)).to_contain_text("streets.txt")
    await page.get_by_label("Name of the adapter").fill("shops")
    await page.get_by_role("button", name="Start training").click()
    job = page.get_by_role("region", name="Job of shops")
    async with http.working():
        await expect(job.get_by_text("State: succeeded")).to_be_visible()
    table = job.get_by_role("region", name="Comparison")
    for row in ("the base with passages", "the new adapter with passages"):
        await expect(table.get_by_role("row", name=row, exact=False).first).to_contain_text("± ")
    await expect(table.get_by_role("columnheader", name="Tokens of 1,000 requests")).to_be_visible()
    await expect(job.locator("p.verdict")).to_contain_text("Look again when")
    await job.get_by_text("Answers to held-out questions").click()
    await job.get_by_text("Passages found").first.click()
    await expect(job.get_by_text("Shop 1 is in street 1.").first).to_be_visible()
    await console.check_accessibility()


async def test_a_job_is_watched_to_its_end(http: Http, console: Watched) -> None:
    http.backend.training = ScriptedTraining(http.context.info, steps=5)
    page = console.page
    await drop(page, "good.jsonl", lines(ROWS))
    await page.get_by_label("Name of the adapter").fill("shops")
    await page.get_by_role("button", name="Start training").click()
    job = page.get_by_role("region", name="Job of shops")
    await expect(job.get_by_text("State: queued")).to_be_visible()
    async with http.working():
        await expect(job.get_by_text("State: succeeded")).to_be_visible()
    await expect(job.get_by_text("5 of 5")).to_be_visible()
    await expect(job.get_by_text("It published shops version 1, which the name means now.")).to_be_visible()
    await expect(job.get_by_role("img", name="Loss of the job by step, 5 points, last 0.2")).to_be_visible()
    assert await job.locator("canvas").count() == 1
    await expect(page.get_by_role("region", name="Jobs").get_by_role("row", name="shops")).to_contain_text("succeeded")
    await console.check_accessibility()
    await console.picture("training-job")

    await page.get_by_role("link", name="Adapters").click()
    await page.get_by_role("button", name="shops").click()
    await expect(page.get_by_role("img", name="Loss of version 1 by step, 5 points")).to_be_visible()
    await console.check_accessibility()


@pytest.mark.slow
async def test_jobs_are_paused_resumed_and_cancelled(http: Http) -> None:
    training = http.backend.training = ScriptedTraining(http.context.info, steps=5, at=3, hang=True)
    async with console_page(f"http://{http.server.address}", size=PHONE, dark=True) as console, http.working():
        page = console.page
        await console.goto("training")
        await drop(page, "good.jsonl", lines(ROWS))
        await page.get_by_label("Name of the adapter").fill("shops")
        await page.get_by_role("button", name="Start training").click()
        job = page.get_by_role("region", name="Job of shops")
        await expect(job.get_by_text("2 of 5")).to_be_visible()
        await job.get_by_role("button", name="Pause").click()
        await expect(job.get_by_text("State: paused")).to_be_visible()
        await console.check_accessibility()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await console.picture("training-phone")
        await job.get_by_role("button", name="Resume").click()
        async with asyncio.timeout(60):
            await training.waiting.wait()
        await job.get_by_role("button", name="Cancel job").click()
        await page.get_by_role("dialog").get_by_role("button", name="Leave it").click()
        await job.get_by_role("button", name="Cancel job").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
        await expect(job.get_by_text("State: cancelled")).to_be_visible()
        await expect(job.get_by_role("button", name="Pause")).to_have_count(0)
