"""Tables of the documentation that are made from the code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown. A bar in a cell must be escaped."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines).replace("| --- ", "|---").replace("---|", "---|")


def placed(page: str, tables: Mapping[str, str]) -> str:
    """``page`` with each table between its markers. Raises ValueError for a page that lacks those of one."""
    for name, made in tables.items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- table: end -->)", re.DOTALL)
        if not place.search(page):
            raise ValueError(f"the page has no markers for the table of {name}")
        page = place.sub(lambda found, made=made: f"{found[1]}\n{made}\n{found[2]}", page)  # type: ignore[misc]
    return page
