"""Rows of JSON lines, as the client trains on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """All rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def chat(question: str, answer: str, **more: Any) -> Row:
    """A row of one question and its answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def question(row: Mapping[str, Any]) -> str:
    """The last user turn of a row of messages."""
    return str(next(turn["content"] for turn in reversed(row["messages"]) if turn["role"] == "user"))


def answer(row: Mapping[str, Any]) -> str:
    """The last turn of a row of messages."""
    return str(row["messages"][-1]["content"])
