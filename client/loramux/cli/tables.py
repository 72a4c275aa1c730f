"""Tables on terminals of every width: what identifies a row is never broken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..comparison import Comparison
from ..types import JobInfo
from .common import plain

GAP = 2
MIN_WRAPPED = 24
"""Least width that a column is wrapped to; below it, a row becomes a paragraph."""
PIPE_WIDTH = 1000


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; columns whose name ends in ``>`` are right-aligned.

    Where it is too wide, the widest column is wrapped between words, else each row becomes a paragraph that begins
    with its first cell. Piped output is neither cut nor wrapped.
    """
    from rich.console import Console

    console = Console(highlight=False)
    width = console.width if console.is_terminal else PIPE_WIDTH
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    for line, style in layout([*columns], cells, width):
        console.print(line, style=style, markup=False, soft_wrap=True)


def print_comparison(found: Comparison | None) -> None:
    """A comparison with prompt and documents as a table on stdout, and what follows; nothing if there was none."""
    if found is not None:
        print()
        print_table(["ON THE SAME HELD-OUT ROWS", *(f"{side.upper()}>" for side in found.sides)], found.rows())
        print(found.verdict)


def print_evaluation(job: JobInfo) -> None:
    """The comparison of a job, how answers on held-out rows were judged, and some of them side by side."""
    print_comparison(job.comparison)
    if job.judged:
        print(f"\nanswers on held-out rows, judged {job.judged}")
    for row in job.answers:
        print(f"- asked: {_line(row.question)}")
        print(f"  expected: {_line(' / '.join(row.expected))}")
        for passage in row.passages:
            print(f"  passage: {_line(passage)}")
        for side, answer in row.answers.items():
            print(f"  {side}: {_line(answer.text)} ({'right' if answer.right else 'wrong'})")


def _line(text: str) -> str:
    return plain(" ".join(text.split()))


def layout(columns: list[str], rows: list[list[str]], width: int) -> list[tuple[str, str]]:
    """The lines of a table in ``width`` cells, each with its style."""
    from rich.cells import cell_len

    names = [name.removesuffix(">") for name in columns]
    widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
    spare = width - sum(widths) - GAP * (len(columns) - 1)
    widest = widths.index(max(widths))
    if spare < 0 and widths[widest] + spare < _least(row[widest] for row in rows):
        return _paragraphs(names, rows, width)
    widths[widest] += min(spare, 0)
    right = [name.endswith(">") for name in columns]
    found = [(line, "bold") for line in _lines(names, widths, right)]
    return found + [(line, "") for row in rows for line in _lines(row, widths, right)]


def _least(texts: Iterable[str]) -> int:
    """Width that a column of texts needs so that no word of it is broken."""
    from rich.cells import cell_len

    return max([MIN_WRAPPED, *(cell_len(word) for text in texts for word in text.split())])


def _lines(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    from rich.cells import cell_len

    wrapped = [_wrap(text, width) for text, width in zip(cells, widths, strict=True)]
    lines = []
    for i in range(max(map(len, wrapped))):
        parts = []
        for column, width, at_right in zip(wrapped, widths, right, strict=True):
            text = column[i] if i < len(column) else ""
            pad = " " * (width - cell_len(text))
            parts.append(pad + text if at_right else text + pad)
        lines.append((" " * GAP).join(parts).rstrip())
    return lines


def _wrap(text: str, width: int) -> list[str]:
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text.splitlines() or [""]
    return _words(text, width) or [""]


def _words(text: str, width: int) -> list[str]:
    """Lines of whole words, by the cells that they take (textwrap counts characters, and CJK ones take two)."""
    from rich.cells import cell_len

    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _paragraphs(names: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for first, *rest in rows:
        found.append((first, "bold"))
        text = ", ".join(f"{name.lower()} {cell}" for name, cell in zip(names[1:], rest, strict=True) if cell)
        found += [(f"  {line}", "") for line in _words(text, max(width - 2, 20))]
    return found
