"""How the demo looks: numbered steps, small tables, and claims that are checked in front of the reader."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

WIDTH = 80


class Show:
    """Prints to a terminal in colour, elsewhere as plain text; keeps the claims that did not hold."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        if console.width > WIDTH or not console.is_terminal:
            console.width = WIDTH
        self.console = console
        self.failed: list[str] = []
        self._steps = 0

    def step(self, title: str) -> None:
        """A new part of the demo."""
        self._steps += 1
        self.console.print()
        self.console.print(f"[bold cyan]{self._steps}. {escape(title)}[/]")

    def note(self, text: str) -> None:
        """A line in the background."""
        self._indented(f"[dim]{escape(text)}[/]")

    def text(self, text: str) -> None:
        """A line for the reader."""
        self._indented(escape(text))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; cells wrap."""
        table = Table(box=box.SIMPLE_HEAD if self.console.is_terminal else box.ASCII2, padding=(0, 1), pad_edge=False)
        for title in head:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    def claim(self, holds: bool, text: str) -> None:
        """Say whether something that the demo is about is true; a false one fails the demo."""
        mark = "[bold green]yes[/]" if holds else "[bold red]NO [/]"
        self._indented(f"{mark} {escape(text)}", hang=4)
        if not holds:
            self.failed.append(text)

    def _indented(self, markup: str, hang: int = 0) -> None:
        """Print under the step's title; lines after the first begin ``hang`` columns further right."""
        lines = self.console.render_str(markup, highlight=False).wrap(self.console, self.console.width - 3 - hang)
        for i, line in enumerate(lines):
            line.rstrip()
            self.console.print(Padding(line, (0, 0, 0, 3 + (hang if i else 0))))
