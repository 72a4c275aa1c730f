"""Write the table of architectures in docs/serving.md from the tests' cases: ``python -m tools.architectures``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.architectures import CASES, Architecture

PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving.md"
_TABLE = re.compile(r"(<!-- table: architectures -->\n).*?(<!-- table: end -->)", re.DOTALL)
_WORDS = {"exact": "served, exact", "refused": "refused at the start"}


def table() -> str:
    """The table in Markdown, with a line feed at its end."""
    lines = ["| Architecture | `model_type` | | |", "|---|---|---|---|"]
    lines += [_line(model_type, case) for model_type, case in CASES.items()]
    return "\n".join(lines) + "\n"


def _line(model_type: str, case: Architecture) -> str:
    return f"| {case.name} | `{model_type}` | {_WORDS[case.outcome]} | {case.note} |"


def with_table(page: str) -> str:
    """``page`` with the table between its markers. Raises ValueError for a page that has none."""
    if not _TABLE.search(page):
        raise ValueError("the page has no markers for the table of architectures")
    return _TABLE.sub(lambda found: f"{found[1]}\n{table()}\n{found[2]}", page)


def main() -> int:
    """Write the page anew; 0."""
    PAGE.write_text(with_table(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
