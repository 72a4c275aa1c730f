"""Grafana's dashboard: the file is what its source makes, fits the grid, and asks for metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from loramux_server.telemetry.metrics.catalog import CATALOG, FIRST_TOKENS
from loramux_server.telemetry.metrics.declarations import Declared, HistogramMetric, SummaryMetric
from tests.monitoring import MONITORING, plain, queries, rules
from tools.dashboard.layout import FILE, text
from tools.dashboard.limits import BUDGET, FIRST_TOKEN, LEAST_FREE, MOST_KV

from .test_rules import needs_promtool

GRAFANA = MONITORING / "grafana"
RULES = rules("recording.yml", "alerts.yml")


def panels() -> list[dict[str, Any]]:
    return list(json.loads(FILE.read_text())["panels"])


def test_the_file_is_what_its_source_makes() -> None:
    assert FILE.read_text() == text(), "run: make dashboard"


def test_panels_fit_the_grid_and_have_names() -> None:
    shown = panels()
    assert len({panel["id"] for panel in shown}) == len(shown)
    assert len({panel["title"] for panel in shown}) == len(shown)
    cells: list[tuple[set[tuple[int, int]], str]] = []
    for panel in shown:
        grid = panel["gridPos"]
        assert grid["x"] >= 0
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        rows, columns = range(grid["y"], grid["y"] + grid["h"]), range(grid["x"], grid["x"] + grid["w"])
        cells.append(({(x, y) for x in columns for y in rows}, panel["title"]))
    for (one, first), (other, second) in combinations(cells, 2):
        assert not one & other, f"{first} lies on {second}"


def test_every_panel_has_a_unit_thresholds_and_queries_of_the_chosen_source() -> None:
    for panel in panels():
        if panel["type"] == "row":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"])


def test_every_variable_is_used_and_every_one_that_is_used_exists() -> None:
    listed = json.loads(FILE.read_text())["templating"]["list"]
    used = set(re.findall(r"\$\{?([a-z]\w*)", FILE.read_text()))
    assert used == {variable["name"] for variable in listed}


def test_provisioning_names_the_dashboard_and_its_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/loramux.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"  # where compose mounts the folder


def series(metric: Declared) -> set[str]:
    """The names that Prometheus has a metric under."""
    suffixes = {HistogramMetric: ("_bucket", "_count", "_sum"), SummaryMetric: ("_count", "_sum")}
    return {metric.name + suffix for suffix in suffixes.get(type(metric), ("",))}


def test_panels_and_rules_ask_for_metrics_that_exist() -> None:
    known = set().union(*map(series, CATALOG))
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    asked = {query.expr for query in queries()} | {rule["expr"] for rule in RULES}
    for expr in asked:
        found = set(re.findall(r"\b(?:instance:)?loramux_\w+(?::\w+)?", expr))
        assert found <= known | recorded, expr


def test_dashed_lines_are_where_the_rules_have_them() -> None:
    every = " ".join(rule["expr"] for rule in RULES)
    assert set(re.findall(r'le="([^"]+)"', every)) == {str(FIRST_TOKEN)}
    assert set(re.findall(r"> [\d.]+ \* ([\d.]+)", every)) == {str(BUDGET)}
    assert f"instance:loramux_memory_free:ratio < {LEAST_FREE}" in every
    assert f"loramux_kv_cache_usage_ratio > {MOST_KV}" in every
    assert FIRST_TOKEN in FIRST_TOKENS.bounds


@needs_promtool
def test_every_query_is_promql(tmp_path: Path) -> None:
    asked = [{"record": f"query:{i}", "expr": plain(query.expr)} for i, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": asked}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
