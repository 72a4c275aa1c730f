"""General questions that the base answers: what an adapter of facts should leave as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loramux import Client
from tools.score import accepted

from .asking import ask
from .figures import Share, share
from .rows import Row, read_rows

QUESTIONS = Path(__file__).parent / "generic.jsonl"
"""Rows of a ``question`` and words of which an answer must have one (``accept``); none is a replay row."""


class Generic:
    """The questions that the base of a server answers right."""

    def __init__(self, client: Client, limit: int | None = None) -> None:
        self._client = client
        rows = read_rows(QUESTIONS)[:limit]
        self._rows = [row for row, right in zip(rows, self._right(rows, {}), strict=True) if right]

    def kept(self, adapters: Mapping[str, float]) -> Share:
        """How many of them are answered right under a stack."""
        return share(self._right(self._rows, adapters))

    def _right(self, rows: list[Row], adapters: Mapping[str, float]) -> list[bool]:
        answers = ask(self._client, [row["question"] for row in rows], adapters, max_tokens=24)
        return [accepted(answer, row["accept"]) for answer, row in zip(answers, rows, strict=True)]
