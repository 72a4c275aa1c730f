from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.text.templates import FAMILIES
from tests.unit.text.text_models import byte_level_folder, sentencepiece_folder


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory, default_base: Path) -> dict[str, Path]:
    """A tokenizer folder of each kind, by name."""
    parent = tmp_path_factory.mktemp("tokenizers")
    return {
        "smollm": default_base,
        "byte-level": byte_level_folder(parent / "byte-level", eos_token="<|endoftext|>", add_bos_token=True),
        "byte-level-bos": byte_level_folder(
            parent / "byte-level-bos", bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", bos=True
        ),
        "sentencepiece": sentencepiece_folder(parent / "sentencepiece"),
        "sentencepiece-legacy": sentencepiece_folder(parent / "sentencepiece-legacy", legacy=True),
    }


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A byte-level tokenizer with each family's chat template, by family."""
    parent = tmp_path_factory.mktemp("families")
    return {
        name: byte_level_folder(parent / name, template, bos_token=bos, eos_token=eos)
        for name, (template, bos, eos) in FAMILIES.items()
    }


@pytest.fixture(scope="session")
def oracles() -> Any:
    """transformers' tokenizer of a folder, made once."""
    from transformers import AutoTokenizer

    made: dict[Path, Any] = {}

    def of(folder: Path) -> Any:
        if folder not in made:
            made[folder] = AutoTokenizer.from_pretrained(str(folder))
        return made[folder]

    return of
