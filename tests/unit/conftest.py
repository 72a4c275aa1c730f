"""An open store and the default base's tokenizer, for the suites that need one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from loramux_server.store.store import Store
    from loramux_server.text import TextTokenizer
    from tests.unit.logged import Logged


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """The log of this process, once the test starts it."""
    from tests.unit.logged import logging_here

    with logging_here(capfd) as log:
        yield log


@pytest.fixture(scope="session")
def smollm(default_base: Path) -> TextTokenizer:
    """The default base's tokenizer."""
    from loramux_server.text import TextTokenizer

    return TextTokenizer.load(default_base)


@pytest.fixture(scope="session")
def empty_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with nothing in it but the tables: making them takes longer than most tests of a store."""
    from loramux_server.store.store import Store

    path = tmp_path_factory.mktemp("empty") / "state"
    Store.open(path).close()
    return path


@pytest.fixture
def store(empty_state: Path, tmp_path: Path) -> Iterator[Store]:
    """An open store in ``tmp_path / "state"``."""
    from loramux_server.store.store import Store

    opened = Store.open(shutil.copytree(empty_state, tmp_path / "state"))
    yield opened
    opened.close()
