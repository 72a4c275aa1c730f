"""A panel, and what Grafana wants to know of it. Units are Grafana's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
TOKENS = "suffix: tok/s"

Thresholds = tuple[tuple[str, float | None], ...]
"""Colours, each from a value on; the first has none."""
PLAIN: Thresholds = (("green", None),)


def above(value: float) -> Thresholds:
    """A dashed line, beyond which things are bad."""
    return (("transparent", None), ("red", value))


@dataclass(frozen=True)
class Panel:
    """What is drawn: queries by their legend."""

    title: str
    about: str
    unit: str
    queries: dict[str, str]
    thresholds: Thresholds = PLAIN
    width: int = 8
    height: int = 8
    kind: str = "timeseries"
    most: float | None = None
    """The end of the axis, where it is fixed."""
    stacked: bool = False
    values: dict[str, str] = field(default_factory=dict)
    """Words for values."""
    hidden: tuple[str, ...] = ()
    """Columns of a table that are left out."""

    def json(self, number: int, x: int, y: int) -> Json:
        defaults: Json = {"unit": self.unit, "thresholds": _steps(self.thresholds)}
        if self.most is not None:
            defaults["max"] = self.most
        if self.values:
            defaults["mappings"] = [
                {"type": "value", "options": {value: {"text": text} for value, text in self.values.items()}}
            ]
        if self.kind == "timeseries":
            defaults |= {"min": 0, "custom": self._lines()}
        panel: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.about,
            "datasource": SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": OPTIONS[self.kind],
            "targets": [
                {"refId": chr(ord("A") + i), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
                for i, (legend, expr) in enumerate(self.queries.items())
            ],
        }
        if self.kind == "table":
            for target in panel["targets"]:
                target |= {"format": "table", "instant": True, "range": False}
            hidden = dict.fromkeys(("Time", *self.hidden), True)
            panel["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
        return panel

    def _lines(self) -> Json:
        custom: Json = {
            "lineWidth": 1,
            "fillOpacity": 30 if self.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if self.stacked else "none"},
        }
        if self.thresholds is not PLAIN:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        return custom


OPTIONS: dict[str, Json] = {
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "timeseries": {
        "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "table": {"showHeader": True},
}


def number(title: str, about: str, unit: str, query: str, thresholds: Thresholds = PLAIN) -> Panel:
    """One value of now, with its course behind it."""
    return Panel(title, about, unit, {"": query}, thresholds, width=3, height=4, kind="stat")


def _steps(thresholds: Thresholds) -> Json:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in thresholds]}
