"""Pictures of reports, drawn with matplotlib (the extra ``curves``) as SVG that is the same for the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Picture

from .figures import Figure


def bars(
    title: str, groups: Sequence[str], series: Mapping[str, Sequence[Figure]], unit: str = "share of answers"
) -> Picture:
    """Bars with their standard errors: a group for each of ``groups``, in it one bar of each of the ``series``."""
    picture = Picture(figsize=(8, 4), layout="constrained")
    axes = picture.add_subplot()
    width = 0.8 / len(series)
    for i, (name, figures) in enumerate(series.items()):
        at = [group - 0.4 + (i + 0.5) * width for group in range(len(groups))]
        values = [figure.value for figure in figures]
        errors = [figure.error or 0.0 for figure in figures]
        axes.bar(at, values, width, yerr=errors, label=name, capsize=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(title=title, ylabel=unit)
    axes.legend(ncols=min(3, len(series)), loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    return picture


def save(picture: Picture, path: Path) -> None:
    """Write the picture as SVG, without a date and with fixed ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "loramux", "svg.fonttype": "none"}):
        FigureCanvasSVG(picture).print_svg(path, metadata={"Date": None})
