"""The console's page of adapters in a real browser, over real services and a scripted engine."""

from __future__ import annotations

import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.compose import ComposeCommand, ComposeMethod, ComposeResult
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.adapters.service import AdapterService
from tests.browser import PHONE, Watched, console_page, needs_browser
from tests.unit.services.adapter_files import CONFIG, WEIGHTS, write_adapter
from tests.unit.services.tenants import adapter_files

from ..conftest import Http

pytestmark = needs_browser
HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.fixture
async def console(http: Http) -> AsyncIterator[Watched]:
    async with console_page(f"http://{http.server.address}") as watched:
        await watched.goto("adapters")
        yield watched


async def publish(page: Page, folder: Path, name: str) -> None:
    """Upload a folder's files as a reader does."""
    await page.get_by_role("button", name="Upload", exact=True).click()
    await page.get_by_label("A PEFT folder, or its files").set_input_files([folder / CONFIG, folder / WEIGHTS])
    await page.get_by_label("Name", exact=True).fill(name)
    await page.get_by_role("button", name="Publish").click()


async def test_the_life_of_an_adapter(http: Http, console: Watched, tmp_path: Path) -> None:
    page = console.page
    await expect(page.get_by_text("There is no adapter yet.")).to_be_visible()
    await console.check_accessibility()
    for i, b in enumerate((0.25, 0.5)):
        await publish(page, write_adapter(tmp_path / str(b), http.context.info, b=b), "acme")
        await expect(page.get_by_text(f"acme version {i + 1} is published.")).to_be_attached()
    row = page.get_by_role("region", name="Adapters").get_by_role("row", name="acme")
    await expect(row).to_contain_text("v2")
    await console.check_accessibility()
    await console.picture("adapters")

    # Roll back, promote, name.
    await page.get_by_role("button", name="Roll back to v1").click()
    await expect(row).to_contain_text("v1")
    await page.get_by_role("button", name="Promote version 2").click()
    await expect(page.get_by_text("acme means version 2 now.")).to_be_visible()
    await page.get_by_label("Alias").fill("prod")
    await page.get_by_label("means version").select_option("1")
    await page.get_by_role("button", name="Set").click()
    await expect(row).to_contain_text("@prod")
    await page.get_by_role("button", name="Remove @prod").click()
    await expect(row).not_to_contain_text("@prod")

    # Download.
    async with page.expect_download() as coming:
        await page.get_by_role("button", name="Download version 1").click()
    download = await coming.value
    assert download.suggested_filename == "acme@1.zip"
    with zipfile.ZipFile(await download.path()) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == adapter_files(http.context, 0.25)

    # Share and take back; delete, which asks first.
    await page.get_by_role("button", name="Share with all tenants").click()
    await expect(row).to_contain_text("shared")
    await page.get_by_role("button", name="Take back from all tenants").click()
    await page.get_by_role("button", name="Take back", exact=True).click()
    await expect(row).not_to_contain_text("shared")
    await page.get_by_role("button", name="Delete version 1").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(page.get_by_text("Version 1 is deleted.")).to_be_visible()
    await page.get_by_role("button", name="Delete acme").click()
    await console.check_accessibility()
    await page.keyboard.press("Enter")  # the safe answer has the focus
    await expect(row).to_be_visible()
    await page.get_by_role("button", name="Delete acme").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(page.get_by_text("There is no adapter yet.")).to_be_visible()
    assert not http.context.store.adapters.list("default")[0]


async def upload(http: Http, name: str, b: float) -> None:
    parts: list[Any] = [("header", (None, f'{{"name": "{name}"}}'))]
    parts += [("file", file) for file in adapter_files(http.context, b).items()]
    assert (await http.raw.post("/loramux.v1.AdapterService/UploadAdapter", files=parts)).status_code == 200


@pytest.mark.slow
async def test_lists_are_searched_and_paged(http: Http) -> None:
    for i in range(52):
        await upload(http, f"a{i:02}", 1 + i)
    await upload(http, "zoo", 0.5)
    async with console_page(f"http://{http.server.address}", size=PHONE) as console:
        await console.goto("adapters")
        page, table = console.page, console.page.get_by_role("region", name="Adapters")
        await expect(table.get_by_role("row")).to_have_count(51)
        await page.get_by_role("button", name="Show more").click()
        await expect(table.get_by_role("row")).to_have_count(54)
        await page.get_by_label("Find by the beginning").fill("zo")
        await expect(table.get_by_role("row")).to_have_count(2)
        await page.get_by_label("Find by the beginning").fill("nothing")
        await expect(page.get_by_text("No adapter's name begins with “nothing”.")).to_be_visible()
        await page.get_by_label("Find by the beginning").fill("zo")
        await page.get_by_role("button", name="zoo").press("Enter")
        await expect(page.get_by_role("heading", name="zoo")).to_be_visible()
        await console.check_accessibility()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await console.picture("adapters-phone")


@pytest.mark.slow
async def test_stacks_are_merged(http: Http, console: Watched) -> None:
    commands: list[ComposeCommand] = []

    async def composer(command: ComposeCommand) -> ComposeResult:
        commands.append(command)
        write_adapter(Path(command.output), http.context.info)
        return ComposeResult(0.125)

    services = http.availability.services
    assert services is not None
    http.availability.services = replace(services, adapters=AdapterService(http.context, composer))
    for name, b in (("acme", 0.25), ("json", 0.5)):
        await upload(http, name, b)
    page = console.page
    await page.get_by_role("button", name="Merge a stack").click()
    for name in ("acme", "json"):
        await page.get_by_role("combobox", name="Add an adapter").fill(name)
        await expect(page.get_by_role("option", name=name)).to_be_visible()  # the list has come
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name=f"Remove {name}")).to_be_visible()
    await page.get_by_label("Name of the result").fill("both")
    await page.get_by_label("Method").select_option("SVD")
    await page.get_by_label("Rank", exact=True).fill("0")
    await page.get_by_role("button", name="Merge", exact=True).click()
    assert await page.get_by_label("Rank", exact=True).evaluate("input => !input.validity.valid")
    await console.check_accessibility()
    await page.get_by_label("Rank", exact=True).fill("4")
    await page.get_by_role("button", name="Merge", exact=True).click()
    await expect(page.get_by_role("heading", name="both")).to_be_visible()
    await expect(page.get_by_text("acme@1 + json@1 with svd")).to_be_visible()
    assert [(c.method, c.rank) for c in commands] == [(ComposeMethod.SVD, 4)]


@pytest.mark.slow
async def test_what_is_no_adapter_is_told(http: Http, console: Watched, tmp_path: Path) -> None:
    console.refused = {400}
    page = console.page
    await page.get_by_role("button", name="Upload", exact=True).click()
    place = page.get_by_label("A PEFT folder, or its files")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    await place.set_input_files([tmp_path / "adapter_config.json", tmp_path / "adapter_model.bin"])
    await expect(page.get_by_role("alert")).to_contain_text("adapter_model.safetensors is missing")
    await expect(page.get_by_role("button", name="Publish")).to_be_disabled()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    await place.set_input_files([tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"])
    await page.get_by_label("Name", exact=True).fill("acme")
    await page.get_by_role("button", name="Publish").click()
    await expect(page.get_by_role("alert")).to_contain_text("only 'LORA' adapters can be served")


class Reader:
    """A key that may look, and nothing else."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        return Principal("default", frozenset({Scope.READ_ADAPTERS}), "r")


@pytest.mark.slow
async def test_a_key_that_may_look_is_offered_nothing_else(http: Http) -> None:
    await upload(http, "acme", 0.5)
    http.access.authenticator = Reader()
    async with console_page(f"http://{http.server.address}") as console:
        page = console.page
        await console.goto("adapters")
        await page.get_by_role("button", name="acme").click()
        await expect(page.get_by_role("heading", name="Version 1")).to_be_visible()
        await expect(page.get_by_role("button", name="Download version 1")).to_be_visible()
        for name in ("Upload", "Merge a stack", "Delete acme", "Share with all tenants", "Set"):
            await expect(page.get_by_role("button", name=name)).to_have_count(0)
