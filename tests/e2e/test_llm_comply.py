"""llm-comply, which holds a server's answers against the published specifications, run as its users run it.

What it reports and stays is listed here and in the docs, with the reason. Anything else that it reports is a failure,
and so is an entry that it no longer reports.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess
from tests.unit.docs.markdown import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

MODEL = "json"
"""An adapter: its answers come to an end, where the small base may go on until it is cut."""
STAYS = {
    "open-responses": ("docs/openai.md", {"image-input"}),
    "anthropic": ("docs/anthropic.md", {"anth-image-input"}),
    "openai-chat": ("docs/openai.md", {"chat-image-input"}),
}
"""By format: the page that says why, and the checks that fail."""


def failures(server: ServerProcess, format: str) -> dict[str, list[str]]:
    """The checks of a format that fail, each with what is wrong."""
    command = [str(Path(sys.executable).with_name("llm-comply")), "--format", format, "--json", "--timeout", "300"]
    command += ["--base-url", f"http://{server.http_address}/v1", "--api-key", "none", "--model", MODEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 0, done.stderr
    return {each["id"]: each["errors"] for each in report["results"] if each["status"] not in ("passed", "skipped")}


@pytest.mark.parametrize("format", STAYS)
def test_what_is_reported_is_known(server_with_tools: ServerProcess, format: str) -> None:
    page, stays = STAYS[format]
    failed = failures(server_with_tools, format)
    assert failed.keys() == stays, failed
    told = (ROOT / page).read_text()
    assert [check for check in stays if f"`{check}`" not in told] == []
