"""Folders to publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MakeFolder = Callable[[str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> MakeFolder:
    """``folder(content)``: a folder whose content, and so its digest, follows from the text."""

    def make(content: str) -> Path:
        path = tmp_path / "made" / content
        path.mkdir(parents=True, exist_ok=True)
        (path / "adapter_config.json").write_text("{}")
        (path / "adapter_model.safetensors").write_text(content)
        return path

    return make
