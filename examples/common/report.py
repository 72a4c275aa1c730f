"""What a run of an example found: written as JSON, as tables in Markdown, and into the page of docs/examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tools.tables import placed, table

from .figures import Figure
from .paths import page


class Table(msgspec.Struct, frozen=True):
    """One table: a text first in every row, then its figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Figure | str]]

    def markdown(self) -> str:
        """The title in bold above the table."""
        made = table(tuple(self.head), [tuple(_escaped(str(cell)) for cell in row) for row in self.rows])
        return f"**{self.title}**\n\n{made}"


class Answers(msgspec.Struct, frozen=True):
    """One question, and what each way to answer said."""

    question: str
    expected: str
    said: Mapping[str, str]

    def markdown(self) -> str:
        """A list below the question."""
        lines = [f"**{_line(self.question)}** (expected: {_line(self.expected)})\n"]
        return "\n".join([*lines, *(f"- {way}: {_line(text)}" for way, text in self.said.items())]) + "\n"


class Report(msgspec.Struct, frozen=True):
    """All that a run found. ``tables`` and ``answers`` are shown on the example's page."""

    example: str
    command: str
    base: str
    """Name, device and precision of the base that answered."""
    tables: Sequence[Table]
    answers: Sequence[Answers] = ()
    settings: Mapping[str, Any] = {}
    """How the adapters were trained."""
    details: Mapping[str, Any] = {}
    """More figures, for readers of the JSON."""

    def markdown(self) -> str:
        """The tables, with the command that made them."""
        return "\n".join([*(each.markdown() for each in self.tables), f"`{self.command}`, {self.base}.\n"])

    def side_by_side(self) -> str:
        """The answers."""
        return "\n".join(each.markdown() for each in self.answers)

    def write(self, folder: Path) -> None:
        """Write ``results.json`` and ``table.md`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        encoded = msgspec.json.format(msgspec.json.encode(self), indent=1)
        (folder / "results.json").write_bytes(encoded + b"\n")
        (folder / "table.md").write_text(self.markdown(), encoding="utf-8")


def read(folder: Path) -> Report:
    """The report of a results folder."""
    return msgspec.json.decode((folder / "results.json").read_bytes(), type=Report)


def on_page(text: str, report: Report) -> str:
    """A page with the report's tables and answers between their markers."""
    return placed(text, {"results": report.markdown(), "answers": report.side_by_side()})


def update_page(report: Report) -> None:
    """Write the report into its example's page."""
    path = page(report.example)
    path.write_text(on_page(path.read_text(encoding="utf-8"), report), encoding="utf-8")


def _line(text: str, limit: int = 240) -> str:
    """One line of code in Markdown."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line if len(line) <= limit else line[: limit - 3] + '...'}`"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
