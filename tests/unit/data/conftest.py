from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_server.text import TextTokenizer
from tests.unit.text.templates import FAMILIES
from tests.unit.text.text_models import byte_level_folder, sentencepiece_folder

Make = Callable[..., TextTokenizer]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``family(name)``: a byte-level tokenizer with that family's chat template, or its SentencePiece kin."""
    made: dict[str, TextTokenizer] = {}

    def get(name: str) -> TextTokenizer:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name.startswith("sentencepiece"):
                folder = sentencepiece_folder(folder, FAMILIES["mistral"][0], legacy=name.endswith("legacy"))
            else:
                template, bos, eos = FAMILIES[name]
                folder = byte_level_folder(folder, template, bos_token=bos, eos_token=eos)
            made[name] = TextTokenizer.load(folder)
        return made[name]

    return get


@pytest.fixture
def with_template(tmp_path: Path) -> Make:
    """``with_template(source, **config)``: a small tokenizer with that chat template."""

    def make(source: str | None, **config: Any) -> TextTokenizer:
        settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"} | config
        return TextTokenizer.load(byte_level_folder(tmp_path / "made", source, **settings))

    return make
