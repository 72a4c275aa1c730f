"""The queries of Grafana's dashboard, as Prometheus gets them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tools.dashboard.layout import FILE


@dataclass(frozen=True)
class Query:
    """What one line of a panel's legend asks for."""

    panel: str
    legend: str
    expr: str

    def __str__(self) -> str:
        return f"{self.panel} [{self.legend}]: {self.expr}"


def queries() -> list[Query]:
    """Every query of every panel, with Grafana's variables in it."""
    shown = json.loads(FILE.read_text())["panels"]
    return [
        Query(panel["title"], target["legendFormat"], target["expr"])
        for panel in shown
        for target in panel.get("targets", ())
    ]


def plain(expr: str, window: str = "1m") -> str:
    """A query as Grafana sends it: for all servers, tenants and adapters, rates over ``window``."""
    expr = expr.replace("$__rate_interval", window)
    for variable in ("instance", "tenant", "adapter"):
        expr = expr.replace(f"${variable}", ".*")
    return expr
