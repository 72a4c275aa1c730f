"""The curve of a job, from its events: as CSV, as a picture where matplotlib is there, and as a line of text."""

from __future__ import annotations

import csv
import io

from ....core.jobs import TrainEventType
from ....store.store import Store

CURVE_FILE = "training_curve.csv"
PICTURE_FILE = "training_curve.png"
COLUMNS = ("loss", "learning_rate", "grad_norm", "epoch", "trained_tokens", "eval_loss", "eval_token_accuracy")

Curve = dict[int, dict[str, float]]
"""Step -> the metrics known of it, in order of steps."""


def read_curve(store: Store, job_id: str) -> Curve:
    """The curve of a job so far; blocking. Of a step that was done again after an interruption the last counts."""
    found: Curve = {}
    after = 0
    while events := store.jobs.events(job_id, after):
        after = events[-1].sequence
        for record in events:
            event = record.event
            if event.type in (TrainEventType.STEP, TrainEventType.EVALUATION) and event.step:
                known = {name: value for name, value in event.metrics.items() if name in COLUMNS}
                if event.type is TrainEventType.STEP:
                    found[event.step] = known
                else:
                    found.setdefault(event.step, {}).update(known)
    return dict(sorted(found.items()))


def to_csv(curve: Curve) -> str:
    """One line a step; empty cells for what was not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *COLUMNS])
    for step, row in curve.items():
        writer.writerow([step, *(f"{row[name]:.8g}" if name in row else "" for name in COLUMNS)])
    return text.getvalue()


def to_png(curve: Curve, title: str) -> bytes | None:
    """The losses as a picture; None without matplotlib (the extra ``curves``) or without two steps."""
    if len(curve) < 2:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except (ImportError, OSError):  # OSError: it finds no folder for its cache
        return None
    figure = Figure(figsize=(7, 4), dpi=120)
    axes = figure.add_subplot()
    for name, label, mark in (("loss", "training", ""), ("eval_loss", "held-out", "o")):
        points = [(step, row[name]) for step, row in curve.items() if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=mark)
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
