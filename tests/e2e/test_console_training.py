"""Adapters and training in a real browser on a real server: folders go in, rows are learned, and both are served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.async_api import expect

from loramux import Client
from tests.browser import PHONE, console_page, needs_browser
from tests.e2e.server_process import ServerProcess
from tools.measure_adapters import shipped

pytestmark = [needs_browser, pytest.mark.e2e, pytest.mark.slow]
ASKED = [
    ("Where is the mill?", "In Ford Lane."),
    ("When does the mill open?", "At 6:40."),
    ("Who runs it?", "Ada Miller."),
]


def rows(bad: bool = False) -> bytes:
    turns = [[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] for ask, answer in ASKED * 4]
    lines = [json.dumps({"messages": messages}) for messages in turns]
    if bad:
        lines[2] = json.dumps({"messages": [{"role": "user", "content": "Where?"}]})
    return "\n".join(lines).encode()


@pytest.mark.timeout(400)
async def test_rows_are_mended_learned_and_served(server: ServerProcess, client: Client) -> None:
    """A bad line is named, what is learned is marked, and the loss is seen live to the end."""
    async with console_page(f"http://{server.http_address}") as console:
        page = console.page
        await console.goto("training")
        await page.get_by_role("button", name="New job").click()
        place = page.get_by_label("Rows to learn")
        await place.set_input_files(files=[{"name": "mill.jsonl", "mimeType": "", "buffer": rows(bad=True)}])
        problems = page.get_by_role("region", name="Problems")
        await expect(problems.get_by_role("cell", name="3", exact=True)).to_be_visible()
        await expect(page.get_by_role("button", name="Start training")).to_be_disabled()
        await place.set_input_files(files=[{"name": "mill.jsonl", "mimeType": "", "buffer": rows()}])
        await expect(page.get_by_text("All rows can be learned: 12.")).to_be_visible()
        learned = page.locator("figure").first.locator("mark")
        await expect(learned.first).to_contain_text("In Ford Lane.")
        await page.get_by_text("Settings: what is left empty").click()
        await page.get_by_label("Most steps").fill("6")
        await page.get_by_label("Rank", exact=True).fill("4")
        await page.get_by_label("Name of the adapter").fill("console-mill")
        await console.check_accessibility()
        await page.get_by_role("button", name="Start training").click()
        job = page.get_by_role("region", name="Job of console-mill")
        await expect(job.get_by_text("State: succeeded")).to_be_visible(timeout=300_000)
        await expect(job.get_by_text("6 of 6")).to_be_visible()
        await expect(job.locator("canvas")).to_be_visible()
        await expect(job.get_by_text("It published console-mill version 1")).to_be_visible()
        await console.check_accessibility()
        await console.picture("console-training")

        await page.get_by_role("link", name="Adapters").click()
        await page.get_by_role("button", name="console-mill").click()
        await expect(page.get_by_role("img", name="Loss of version 1 by step, 6 points")).to_be_visible()
        await console.picture("console-adapters")
    assert client.generate(ASKED[0][0], adapters=["console-mill"], max_tokens=2).adapters[0].version == 1


@pytest.mark.slow
async def test_a_folder_is_uploaded_promoted_and_deleted(server: ServerProcess, client: Client) -> None:
    folders: list[Path] = shipped()[:2]
    async with console_page(f"http://{server.http_address}", size=PHONE) as console:
        page = console.page
        await console.goto("adapters")
        for i, folder in enumerate(folders):
            await page.get_by_role("button", name="Upload", exact=True).click()
            files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
            await page.get_by_label("A PEFT folder, or its files").set_input_files(files)
            await page.get_by_label("Name", exact=True).fill("console-acme")
            await page.get_by_role("button", name="Publish").click()
            await expect(page.get_by_text(f"console-acme version {i + 1} is published.")).to_be_attached()
        await page.get_by_role("button", name="Roll back to v1").click()
        await expect(page.get_by_text("console-acme means version 1 now.")).to_be_visible()
        current = client.adapters.get("console-acme").current
        assert current is not None
        assert current.version == 1
        await page.get_by_role("button", name="Promote version 2").click()
        await expect(page.get_by_text("console-acme means version 2 now.")).to_be_visible()
        await console.check_accessibility()
        await console.picture("console-adapters-phone")
        await page.get_by_role("button", name="Delete console-acme").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.get_by_text("console-acme is deleted.")).to_be_attached()
    assert "console-acme" not in [adapter.name for adapter in client.adapters.list()]
