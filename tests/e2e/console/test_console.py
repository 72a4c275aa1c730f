"""The console in a real browser on a real server with a real base: what the pages show is what the other doors say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from loramux import Client
from tests.browser import PHONE, console_page, needs_browser
from tests.e2e.server_process import ServerProcess, environment, kill
from tests.e2e.test_keys import keys

pytestmark = [needs_browser, pytest.mark.e2e]
QUESTION = "Please tell me the deposit for one bike."
CHAT: Any = [{"role": "user", "content": QUESTION}]


async def add(page: Page, stack: str, adapter: str, weight: str) -> None:
    """Put an adapter on a stack, with the keyboard."""
    await page.get_by_label(f"Add an adapter to {stack}").fill(adapter[:3])
    await expect(page.get_by_role("option", name=adapter).first).to_be_visible()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    number = page.get_by_label(f"Weight of {adapter} as a number")
    await number.fill(weight)
    # A list of models that arrives while somebody types draws the stack anew, and leaves what is typed alone.
    await number.evaluate(
        """field => {
            const stack = field.closest("lm-stack");
            stack.models = [...stack.models];
            return stack.updateComplete;
        }"""
    )
    await number.blur()
    await expect(number).to_have_value(weight)


async def test_two_stacks_answer_side_by_side_as_over_grpc(
    server: ServerProcess, client: Client, tmp_path: Path
) -> None:
    stack = {"acme-bikes": 1.0, "json": 0.9}
    wanted = [
        client.generate(messages=CHAT, adapters=adapters, max_tokens=32).choices[0].text for adapters in (stack, None)
    ]
    async with console_page(f"http://{server.http_address}") as console:
        page = console.page
        await console.goto()
        await page.get_by_role("button", name="Two stacks side by side").click()
        for name, weight in stack.items():
            await add(page, "Stack A", name, f"{weight:g}")
        await page.get_by_label("Most tokens").fill("32")
        await page.get_by_label("Message").fill(QUESTION)
        await page.keyboard.press("Enter")
        answers = page.locator(".turn.assistant")
        for index, (text, model) in enumerate(zip(wanted, ("acme-bikes@1+json@1:0.9", "base"), strict=True)):
            answer = answers.nth(index)
            await expect(answer).to_have_attribute("aria-busy", "false")
            await expect(answer.locator(".said")).to_have_text(text)
            await expect(answer.locator(".who")).to_have_text(model)
            await expect(answer.locator(".figures")).to_contain_text("tokens/s")
        await console.check_accessibility()
        await console.picture("console-chat")

        # What is copied says the same to whoever runs it.
        await page.get_by_role("button", name="Copy as code").click()
        for language, command in (
            ("Python", (sys.executable, "-c")),
            ("OpenAI", (sys.executable, "-c")),
            ("curl", ("bash", "-c")),
        ):
            await page.get_by_label(language, exact=True).check()
            await page.get_by_role("button", name="Copy", exact=True).click()
            await expect(page.get_by_text("Copied.")).to_be_visible()
            code = await page.evaluate("navigator.clipboard.readText()")
            said = await asyncio.to_thread(run, tmp_path, server, *command, code)
            if language == "curl":
                said = json.loads(said)["choices"][0]["message"]["content"]
            assert said == wanted[0], (language, code)
        await page.keyboard.press("Escape")

        await page.get_by_role("link", name="Live").click()
        await expect(page.get_by_role("row", name="default")).to_be_visible()
        await expect(page.get_by_role("row", name="base")).to_contain_text("MB")
        await expect(page.get_by_role("row", name="device")).not_to_contain_text("0 byte")
        await console.check_accessibility()
        await console.picture("console-live")


def run(home: Path, server: ServerProcess, *command: str) -> str:
    """What a command prints whose environment says where the server is."""
    env = {**environment(home), "LORAMUX_ADDRESS": server.address, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
async def test_stop_frees_the_batch(server: ServerProcess) -> None:
    async with console_page(f"http://{server.http_address}", size=PHONE, dark=True) as console:
        page = console.page
        await console.goto()
        await page.get_by_label("Message").fill("Count from one to a thousand.")
        await page.get_by_text("Sampling").click()
        await page.get_by_label("Most tokens").fill("1500")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator(".assistant .said")).not_to_be_empty()
        await page.get_by_role("button", name="Stop").click()
        await expect(page.get_by_text("Stopped after")).to_be_visible()
        await page.get_by_role("link", name="Live").click()
        await expect(page.get_by_text("0 running, 0 waiting")).to_be_visible()
        await console.check_accessibility()
        await console.picture("console-phone")


@pytest.mark.slow
async def test_keys_of_a_real_server(
    state_with_base: Callable[[str], Path], start_server: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    state = state_with_base("console-keys")
    server = start_server(state)
    try:
        made = keys(state, tmp_path, "create", "--tenant", "acme", "--scope", "infer")
        narrow = keys(state, tmp_path, "create", "--tenant", "acme", "--scope", "train")
        async with console_page(f"http://{server.http_address}") as console:
            console.refused = {401}
            page = console.page
            await console.goto()
            await page.get_by_label("API key").fill(f"{made['key'][:-1]}-")
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("alert")).to_have_text("The key is not valid.")
            await page.get_by_label("API key").fill(narrow["key"])
            await page.keyboard.press("Enter")
            await expect(page.get_by_text("Your key does not have the scope infer")).to_be_visible()
            await page.get_by_role("button", name="Sign out").click()
            await page.get_by_label("API key").fill(made["key"])
            await page.keyboard.press("Enter")
            await page.get_by_label("Most tokens").fill("4")
            await page.get_by_label("Message").fill(QUESTION)
            await page.keyboard.press("Enter")
            await expect(page.locator(".figures")).to_contain_text("4 tokens")
            await page.get_by_role("button", name="Copy as code").click()
            assert made["key"] not in await page.content()
            await page.keyboard.press("Escape")
            keys(state, tmp_path, "revoke", made["id"])
            await page.get_by_label("Message").fill(QUESTION)
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("alert")).to_have_text("The key is not valid.")
            await expect(page.get_by_label("API key")).to_be_visible()
    finally:
        kill(server)
