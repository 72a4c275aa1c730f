"""The marked examples of the Markdown pages, run against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.docs.markdown import ROOT, blocks, pages
from tests.unit.docs.running import run_page

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MARKED = [page for page in pages() if any(block.mark == "test: e2e" for block in blocks(page))]


@pytest.mark.parametrize("page", MARKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: Path, server: Any, tmp_path: Path) -> None:
    """``server`` is the suite's running server; its ``address`` stands in for localhost:50051."""
    assert run_page(blocks(page), server.address, tmp_path, server.http_address) > 0
