"""Tables of a fixed width and height: names give way to figures, and columns of less use to others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common import plain

if TYPE_CHECKING:
    from rich.text import Text

GAP = 2
LEAST_NAME = 20
"""Cells that the first column keeps while others can be left out."""
MOST = 24
"""Cells of any other column."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: the first of a table holds names and is cut where it is too wide."""

    title: str
    rank: int = 0
    """Columns of the highest rank are left out first; those of rank 0 never are."""
    right: bool = False
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under their columns. ``total``: how many rows there are where these are not all."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    total: int

    def lines(self, width: int, rows: int, cut: str) -> Iterator[Text]:
        """The title and at most so many rows, in ``width`` cells."""
        from rich.cells import cell_len
        from rich.text import Text

        more = f" ({rows} of {self.total})" if rows < self.total else ""
        cells = [[f"{self.columns[0].title}{more}", *(c.title for c in self.columns[1:])]]
        cells += [[text(cell) for cell in row] for row in self.rows[:rows]]
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        widths[1:] = [min(each, MOST) for each in widths[1:]]
        shown = list(range(len(self.columns)))
        while len(shown) > 1 and width - sum(widths[i] + GAP for i in shown[1:]) < min(widths[0], LEAST_NAME):
            last = max(shown, key=lambda i: (self.columns[i].rank, i))
            if not self.columns[last].rank:
                break
            shown.remove(last)
        widths[0] = max(min(widths[0], width - sum(widths[i] + GAP for i in shown[1:])), 1)
        for number, row in enumerate(cells):
            line = Text(no_wrap=True, overflow="crop", end="")
            for i in shown:
                column = self.columns[i]
                cell = Text(row[i], style="bold" if number == 0 else column.style)
                fit(cell, widths[i], cut, right=column.right)
                line.append_text(cell)
                line.append(" " * GAP if i != shown[-1] else "")
            yield line


def fit(cell: Text, width: int, cut: str, *, right: bool = False) -> None:
    """Cut or fill a text so that it takes exactly ``width`` cells."""
    from rich.cells import set_cell_size

    if cell.cell_len > width:
        cell.plain = set_cell_size(cell.plain, max(width - len(cut), 0)) + cut[:width]
    (cell.pad_left if right else cell.pad_right)(width - cell.cell_len)


def text(value: str) -> str:
    """A text from outside in one line that cannot drive the terminal."""
    return plain(" ".join(value.split()))


def share_rows(wanted: Sequence[int], lines: int) -> list[int]:
    """How many rows each of several tables gets of ``lines``, of which each table that has rows takes one more.

    They get rows in turn; a table for whose title and first row there is no room gets none.
    """
    given = [0] * len(wanted)
    for i, want in enumerate(wanted):
        if want and lines >= 2:
            given[i], lines = 1, lines - 2
    while lines > 0 and (open_ := [i for i in range(len(wanted)) if given[i] and given[i] < wanted[i]]):
        for i in open_[:lines]:
            given[i], lines = given[i] + 1, lines - 1
    return given
