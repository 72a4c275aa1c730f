"""What deploy/monitoring has: the queries of the dashboard as Prometheus gets them, and the rules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml

from tests.unit.docs.markdown import ROOT
from tools.dashboard.layout import FILE

MONITORING = ROOT / "deploy" / "monitoring"


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


def rules(*files: str) -> list[dict[str, Any]]:
    """The rules of files in deploy/monitoring."""
    read = [yaml.safe_load((MONITORING / file).read_text()) for file in files]
    return [rule for each in read for group in each["groups"] for rule in group["rules"]]
