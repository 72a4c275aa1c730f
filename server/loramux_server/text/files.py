"""What a tokenizer folder says beside ``tokenizer.json``: named special tokens, end tokens, chat templates."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import Code, Error


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Settings read from a tokenizer folder."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    """Named tokens: ``bos_token``, ``eos_token``, ... -> text. Unset names are absent."""
    extra_special_tokens: tuple[str, ...] = ()
    generation_end_ids: tuple[int, ...] = ()
    """End tokens that generation_config.json names."""
    config_end_ids: tuple[int, ...] = ()
    """End tokens that config.json names, or a generation_config.json that transformers made from it."""
    chat_template: str | None = None
    tools_template: str | None = None
    """Used instead of ``chat_template`` when a conversation has tools; None: the same."""


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the settings of a tokenizer folder. Every file is optional.

    Raises FAILED_PRECONDITION naming the file when one is there and cannot be read.
    """
    config = _read_json(folder / "tokenizer_config.json")
    # As transformers reads them: the older file counts only where the config does not list its added tokens.
    listed = config.get("added_tokens_decoder")
    named = config if listed is not None else {**config, **_read_json(folder / "special_tokens_map.json")}
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or ()
    extra = [
        *(extra.values() if isinstance(extra, dict) else extra),
        *(token for token in (listed or {}).values() if token.get("special")),
    ]
    templates = _templates(folder, config.get("chat_template"))
    generation, model = _read_json(folder / "generation_config.json"), _read_json(folder / "config.json")
    inherited = bool(generation.get("_from_model_config"))
    return TokenizerFiles(
        special_tokens={
            name: text
            for name, value in named.items()
            if name.endswith("_token") and (text := _token_text(value)) is not None
        },
        extra_special_tokens=tuple(text for value in extra if (text := _token_text(value)) is not None),
        generation_end_ids=() if inherited else _end_ids(generation),
        config_end_ids=_end_ids(model) + (_end_ids(generation) if inherited else ()),
        chat_template=templates.get("default"),
        tools_template=templates.get("tool_use"),
    )


def _templates(folder: Path, in_config: Any) -> dict[str, str]:
    """Name -> template. A ``chat_template.jinja`` file wins over the config; named ones may lie beside it."""
    templates: dict[str, str] = {}
    if isinstance(in_config, str):
        templates["default"] = in_config
    elif isinstance(in_config, list):
        templates |= {each["name"]: each["template"] for each in in_config}
    elif isinstance(in_config, dict):
        templates |= in_config
    main = folder / "chat_template.jinja"
    if main.is_file():
        templates = {"default": _read_text(main)}
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            templates[path.stem] = _read_text(path)
    return templates


def _end_ids(config: dict[str, Any]) -> tuple[int, ...]:
    """``eos_token_id`` of a configuration, which is a number, a list, or that of the part for text."""
    part = config.get("text_config")
    value = config.get("eos_token_id", part.get("eos_token_id") if isinstance(part, dict) else None)
    ids = value if isinstance(value, list) else [value]
    return tuple(id for id in ids if isinstance(id, int) and not isinstance(id, bool) and id >= 0)


def _token_text(value: Any) -> str | None:
    """A token as the files write it: a string, or an object with its ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except ValueError as error:
        raise unreadable(path, error) from error
    if not isinstance(value, dict):
        raise unreadable(path, "it does not hold a JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: object) -> Error:
    """FAILED_PRECONDITION for a file of the base's tokenizer."""
    return Error(
        Code.FAILED_PRECONDITION,
        f"the base's tokenizer file {path} cannot be used: {error}; fetch the base again or give another --model",
        reason="TOKENIZER_UNREADABLE",
    )
