"""The dashboard as a whole, in the form that Grafana imports and provisions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .panel import SOURCE, Json
from .queries import VARIABLES
from .rows import ROWS

FILE = Path(__file__).parents[2] / "deploy" / "monitoring" / "grafana" / "dashboards" / "loramux.json"
COLUMNS = 24


def dashboard() -> Json:
    """All of it."""
    return {
        "uid": "loramux",
        "title": "loramux",
        "description": "Servers of loramux: requests, tenants, adapters, training and memory.",
        "tags": ["loramux"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                *(_variable(name, query) for name, query in VARIABLES.items()),
            ]
        },
        "panels": list(_panels()),
    }


def _panels() -> Iterator[Json]:
    """All rows from top to bottom; a panel that does not fit beside the others begins a line."""
    ids, y = iter(range(1, 1000)), 0
    for title, panels in ROWS.items():
        grid = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {"id": next(ids), "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        x, y, line = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            yield panel.json(next(ids), x, y)
            x, line = x + panel.width, max(line, panel.height)
        y += line


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """The dashboard as the file holds it."""
    return json.dumps(dashboard(), indent=2) + "\n"
