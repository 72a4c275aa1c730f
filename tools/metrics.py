"""Write the tables of docs/metrics.md from the declarations of the metrics: ``python -m tools.metrics``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from loramux_server.telemetry.metrics import catalog, vllm
from loramux_server.telemetry.metrics.declarations import Declared

from . import tables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


def table(metrics: Iterable[Declared]) -> str:
    """The table of some metrics, in their order."""
    rows = [
        (
            f"`{metric.name}`",
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.unit,
            metric.meaning,
            metric.since,
        )
        for metric in metrics
    ]
    return tables.table(("Name", "Type", "Labels", "Unit", "Meaning", "Since"), rows)


def with_tables(page: str) -> str:
    """``page`` with both tables anew. Raises ValueError for a page that lacks a place for one."""
    return tables.placed(page, {"metrics": table(catalog.CATALOG), "vllm": table(vllm.CATALOG)})


def main() -> int:
    """Write the page anew; 0."""
    PAGE.write_text(with_tables(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
