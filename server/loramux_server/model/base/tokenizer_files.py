"""The tokenizer beside the NF4 weights: the source's own files where it has fast ones, else made from what it has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import invalid_field
from . import gguf
from .source import Source

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def write(source: Source, folder: Path, config: PretrainedConfig) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if the model has one, chat_template.jinja into ``folder``.

    Raises INVALID_ARGUMENT on ``model`` if the source has no tokenizer.
    """
    if source.kind == "gguf":
        tokenizer = gguf.read_tokenizer(source.path)
        tokenizer.model_max_length = int(config.get_text_config().max_position_embeddings)
        tokenizer.save_pretrained(folder)
    elif (source.path / "tokenizer.json").is_file():
        for name in _FILES:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, folder / name)
        _template_file(folder)
    else:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=False, use_fast=True, local_files_only=True
            )
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise invalid_field("model", f"{source.name} has no tokenizer that transformers can read") from error
        tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer.json").is_file():
        raise invalid_field("model", f"{source.name} has no fast tokenizer (tokenizer.json) and none can be made")


def _template_file(folder: Path) -> None:
    """Older folders keep the template inside tokenizer_config.json; readers of ours may rely on the file."""
    settings = folder / "tokenizer_config.json"
    target = folder / "chat_template.jinja"
    if target.exists() or not settings.is_file():
        return
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, str):
        target.write_text(template, encoding="utf-8")
