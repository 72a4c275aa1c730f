"""Write the tables of limits in docs/operations.md from the code: ``python -m tools.limits``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import ByteSize

from loramux_server.api import entries
from loramux_server.config.limits import LimitSettings
from loramux_server.config.tree import Leaf, leaves
from loramux_server.core import bounds
from loramux_server.core.jobs import MAX_REPLAY_ROWS
from loramux_server.core.reading import json_values
from loramux_server.engine.grammar import host as grammar_host
from loramux_server.engine.grammar import process as grammar_process
from loramux_server.peft.config import MAX_CONFIG_BYTES
from loramux_server.peft.weights_header import MAX_HEADER_BYTES
from loramux_server.services.jobs.checking.dataset_report import MAX_SHOWN
from loramux_server.services.jobs.checking.settings import MAX_STACKS
from loramux_server.services.jobs.service import MAX_KEY_BYTES
from loramux_server.store.paging import MAX_PAGE
from loramux_server.text.answers import response_format
from loramux_server.text.chat import chat_template, conversation

from . import tables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
ELSEWHERE = (
    "max_running",
    "max_queue",
    "max_training_jobs",
    "training.max_dataset_size",
    "training.max_dataset_rows",
    "training.max_row_tokens",
)
"""Settings of other groups that limit what clients can size."""


def settings() -> str:
    """The table of the limits that are settings."""
    named = {leaf.name: leaf for leaf in leaves()}
    rows = [(f"`{leaf.flag}`", _default(leaf), text(leaf)) for leaf in _limits(named)]
    return tables.table(("Setting", "Default", ""), rows)


def _limits(named: dict[str, Leaf]) -> list[Leaf]:
    return [named[name] for name in (*LimitSettings.model_fields, *ELSEWHERE)]


def text(leaf: Leaf) -> str:
    """The words of a setting without what they say of its default."""
    return re.sub(r" \(default: .*\)", "", leaf.info.description or "")


def _default(leaf: Leaf) -> str:
    """The default of a setting, or what its words say of it."""
    found = re.search(r" \(default: (.*)\)", leaf.info.description or "")
    return found[1] if found else shown(leaf.info.default)


def shown(value: object) -> str:
    """A value as an operator would write it."""
    match value:
        case ByteSize():
            return _size(value)
        case _:
            return f"{value:,g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _size(value: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value % unit == 0:
            return f"{value // unit} {name}"
    return f"{value:,} bytes"


def fixed() -> str:
    """The table of the bounds that are no settings."""
    rows = [
        ("entries in all lists and maps of a request", shown(entries.MAX_ENTRIES)),
        ("adapters of a stack; its weights", f"{bounds.MAX_STACK}; {bounds.WEIGHT.low:g} to {bounds.WEIGHT.high:g}"),
        ("`stop`", f"{bounds.MAX_STOPS} texts of {bounds.MAX_STOP_CHARS} characters"),
        ("`stop_token_ids`", shown(bounds.MAX_STOP_TOKENS)),
        ("texts of `choice`", shown(response_format.MAX_CHOICES)),
        (
            "values in `tools`, or in `tool_calls`; their depth",
            f"{json_values.MAX_VALUES:,}; {json_values.MAX_DEPTH}",
        ),
        (
            "`chat_template_kwargs`",
            f"{conversation.MAX_KWARGS} entries, {_size(conversation.MAX_KWARGS_BYTES)}",
        ),
        (
            "what a chat template makes; its time",
            f"{_size(chat_template.MAX_CHARS)} of text; {chat_template.MAX_SECONDS:g} s",
        ),
        ("grammars in memory at once; the others wait", shown(grammar_host.MAX_PROCESSES)),
        (
            "a grammar's processor time for a token; for an answer",
            f"{grammar_process.STEP_SECONDS:g} s; "
            f"{grammar_process.ANSWER_SECONDS:g} s and {grammar_process.TOKEN_SECONDS:g} s for each token",
        ),
        (
            "a grammar's states; its items in a step",
            f"{grammar_process.MAX_STATES:,}; {grammar_process.MAX_ITEMS:,}",
        ),
        ("files of an adapter", "adapter_config.json, adapter_model.safetensors, README.md"),
        (
            "`adapter_config.json`; the header of the weights; their tensors",
            f"{_size(MAX_CONFIG_BYTES)}; {_size(MAX_HEADER_BYTES)}; 4 for each module of the base",
        ),
        ("names of adapters", "64 characters"),
        ("`metadata`", f"{bounds.MAX_METADATA} entries of {bounds.MAX_METADATA_BYTES:,} bytes"),
        ("`idempotency_key`; `request_id`", f"{MAX_KEY_BYTES} bytes; 128 characters"),
        ("`page_size`; rows to show", f"{MAX_PAGE:,}; {MAX_SHOWN}"),
        ("stacks of `on_top_of`; `replay_rows`", f"{MAX_STACKS}; {MAX_REPLAY_ROWS:,}"),
    ]
    return tables.table(("What", "At most"), rows)


TABLES = {"limits": settings, "bounds": fixed}


def with_tables(page: str) -> str:
    """``page`` with both tables anew. Raises ValueError for a page that lacks a place for one."""
    return tables.placed(page, {name: make() for name, make in TABLES.items()})


def main() -> int:
    """Write the page anew; 0."""
    PAGE.write_text(with_tables(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
