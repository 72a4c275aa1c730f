"""Draws Grafana's dashboard from the answers of Prometheus: what docs/images shows where there is no Grafana."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from tests.monitoring import plain
from tests.prometheus import Prometheus
from tools.dashboard.layout import COLUMNS, FILE

CELL = (0.55, 0.32)
"""Inches of a cell of the grid."""
INK, PAPER, PANEL, LINE = "#d8d9da", "#111217", "#181b1f", "#2c3235"
STEP = 2
"""Seconds between two points."""


def draw(prometheus: Prometheus, start: float, end: float, file: Path) -> None:
    """All panels, with what they showed from ``start`` to ``end``, in seconds since the epoch."""
    panels = json.loads(FILE.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(COLUMNS * CELL[0], rows * CELL[1]), facecolor=PAPER)
    for panel in panels:
        grid = panel["gridPos"]
        left, top = grid["x"] / COLUMNS, 1 - grid["y"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.005, top - 0.5 / rows, panel["title"], color=INK, size=11, weight="bold", va="center")
            continue
        # The title, and beside it a margin for the numbers of the axis.
        box = (left + 0.006, top - (grid["h"] - 0.3) / rows, grid["w"] / COLUMNS - 0.012, (grid["h"] - 0.6) / rows)
        axes = figure.add_axes(box, facecolor=PANEL, xticks=[], yticks=[])
        axes.spines[:].set_color(LINE)
        axes.text(0.02, 0.96, panel["title"], color=INK, size=7, weight="bold", va="top", transform=axes.transAxes)
        DRAWN[panel["type"]](axes, prometheus, panel, start, end)
    figure.savefig(file, dpi=100, facecolor=PAPER)


def _curves(axes: Axes, prometheus: Prometheus, panel: dict[str, Any], start: float, end: float) -> None:
    inner = axes.inset_axes((0.13, 0.3, 0.85, 0.52), facecolor=PANEL)
    inner.tick_params(colors=INK, labelsize=5, length=2)
    inner.spines[:].set_color(LINE)
    inner.grid(color=LINE, linewidth=0.5)
    curves = []
    for target in panel["targets"]:
        for series in _range(prometheus, target["expr"], start, end):
            curves.append((_legend(target["legendFormat"], series["metric"]), _points(series["values"], start)))
    defaults = panel["fieldConfig"]["defaults"]
    if defaults["custom"]["stacking"]["mode"] == "normal":
        times = sorted({time for _, points in curves for time in points})
        inner.stackplot(
            times, [[points.get(t, 0) for t in times] for _, points in curves], labels=[n for n, _ in curves], alpha=0.7
        )
    else:
        for name, points in curves:
            inner.plot(points.keys(), points.values(), label=name, linewidth=1)
    inner.set_ylim(bottom=0, top=defaults.get("max"))
    if "thresholdsStyle" in defaults["custom"]:
        limit = next(step["value"] for step in defaults["thresholds"]["steps"] if step["value"] is not None)
        if limit <= 3 * inner.get_ylim()[1]:
            inner.axhline(limit, color="#f2495c", linestyle="--", linewidth=0.8)
            inner.set_ylim(top=max(inner.get_ylim()[1], 1.1 * limit))
    inner.set_xlim(0, end - start)
    inner.xaxis.set_major_locator(MultipleLocator(60))
    inner.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 60:g} min"))
    inner.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value, defaults["unit"])))
    inner.legend(loc="upper left", bbox_to_anchor=(-0.14, -0.2), ncols=4, fontsize=5, frameon=False, labelcolor=INK)


def _value(axes: Axes, prometheus: Prometheus, panel: dict[str, Any], start: float, end: float) -> None:
    (series,) = _range(prometheus, panel["targets"][0]["expr"], start, end)
    value, defaults = float(series["values"][-1][1]), panel["fieldConfig"]["defaults"]
    colour = [step["color"] for step in defaults["thresholds"]["steps"] if value >= (step["value"] or -math.inf)][-1]
    words = {key: text["text"] for each in defaults.get("mappings", ()) for key, text in each["options"].items()}
    shown = words.get(f"{value:g}", _number(value, defaults["unit"]))
    shade = {"green": "#73bf69", "yellow": "#fade2a", "red": "#f2495c"}[colour]
    axes.text(0.5, 0.42, shown, color=shade, size=13, ha="center", va="center", transform=axes.transAxes)


def _table(axes: Axes, prometheus: Prometheus, panel: dict[str, Any], start: float, end: float) -> None:
    found = [series["metric"] for series in _range(prometheus, panel["targets"][0]["expr"], end - 30, end)]
    hidden = panel["transformations"][0]["options"]["excludeByName"]
    columns = [name for name in sorted({name for each in found for name in each}) if name not in hidden]
    cells = [[each.get(name, "")[:24] for name in columns] for each in found[:9]]
    table = axes.table(cells, colLabels=columns, bbox=(0.02, 0.05, 0.96, min(0.8, 0.09 * (len(cells) + 1))))
    table.auto_set_font_size(False)
    table.set_fontsize(5)
    for cell in table.get_celld().values():
        cell.set(facecolor=PANEL, edgecolor=LINE)
        cell.get_text().set_color(INK)


DRAWN = {"timeseries": _curves, "stat": _value, "table": _table}


def _range(prometheus: Prometheus, expr: str, start: float, end: float) -> list[dict[str, Any]]:
    values = {"query": plain(expr, "20s"), "start": f"{start}", "end": f"{end}", "step": f"{STEP}"}
    return list(prometheus.get("query_range", **values)["result"])


def _points(values: list[tuple[float, str]], start: float) -> dict[float, float]:
    return {time - start: float(value) for time, value in values if not math.isnan(float(value))}


def _legend(text: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value[:14])
    return text


def _number(value: float, unit: str) -> str:
    """A value as Grafana would write it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "bytes":
        power = min(4, int(math.log(max(value, 1), 1024)))
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    words = {"reqps": " req/s", "ops": " ops/s", "none": ""}
    return f"{value:.3g}{words.get(unit, ' ' + unit.removeprefix('suffix: '))}"
