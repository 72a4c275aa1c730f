"""Showing how a training job goes: a bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from .comparison import without_comparison
from .types import JobEvent

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 24
CHART_WIDTH, CHART_HEIGHT = 60, 8
LINE_EVERY = 2.0
"""Seconds between two lines about steps where there is no terminal."""


class Display(AbstractContextManager["Display"], Protocol):
    """Shows the events of one job."""

    def show(self, event: JobEvent) -> None: ...


def progress_display(
    name: str, *, enabled: bool = True, console: Console | None = None, chart: bool = False
) -> Display:
    """The display that fits: none, a bar (terminal) or lines. ``console`` defaults to stderr.

    With ``chart`` the loss curve is drawn, on a terminal while it grows, elsewhere at the end.
    """
    if not enabled:
        return Silent()
    # rich is slow to import and most programs show no bar.
    from rich.console import Console

    console = console or Console(stderr=True)
    return Bar(name, console, chart=chart) if console.is_terminal else Lines(name, console, chart=chart)


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def show(self, event: JobEvent) -> None:
        return None


class Lines(Silent):
    """One line per change of state, evaluation and message, and one every few seconds of steps."""

    def __init__(self, name: str, console: Console, *, chart: bool = False) -> None:
        self._name = name
        self._console = console
        self._chart = chart
        self._shown_at = 0.0
        self._losses: list[float] = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for line in self._drawn():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, event: JobEvent) -> None:
        self._note(event)
        if event.type == "step":
            now = time.monotonic()
            if now - self._shown_at < LINE_EVERY and event.step != event.total_steps:
                return
            self._shown_at = now
        self._print(describe(event))

    def _note(self, event: JobEvent) -> None:
        if event.type == "step" and "loss" in event.metrics:
            # Steps that are done again after an interruption take the place of what they were before.
            self._losses[event.step - 1 :] = [event.metrics["loss"]]

    def _drawn(self) -> list[str]:
        """The curve, if one is wanted and there is one."""
        return chart_lines(self._losses) if self._chart and len(self._losses) > 1 else []

    def _print(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)


class Bar(Lines):
    """A bar with step, loss and time left; other events are printed above it."""

    def __init__(self, name: str, console: Console, *, chart: bool = False) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.text import Text

        super().__init__(name, console, chart=chart)
        drawn = self._drawn

        class WithChart(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                yield from (Text(line) for line in drawn())
                yield from super().get_renderables()

        self._progress = WithChart(
            TextColumn("[bold]{task.fields[label]}", markup=True),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.fields[steps]}", markup=False),
            TextColumn("{task.fields[headline]}", markup=False),
            TextColumn("{task.fields[curve]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=False,
        )
        self._task: TaskID | None = None
        self._headline = ""

    def __enter__(self) -> Bar:
        self._progress.start()
        self._task = self._progress.add_task("", total=None, label=self._name, steps="?", headline="", curve="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, event: JobEvent) -> None:
        self._note(event)
        if self._task is not None and event.total_steps:
            self._headline = headline(event.metrics) or self._headline
            self._progress.update(
                self._task,
                completed=event.step,
                total=event.total_steps,
                steps=event.total_steps,
                headline=self._headline,
                curve=sparkline(self._losses, CURVE_WIDTH) if len(self._losses) > 1 and not self._chart else "",
            )
        if event.type not in ("step", "checkpoint"):
            self._print(describe(event))


def describe(event: JobEvent) -> str:
    """An event as one line."""
    if event.type == "step":
        return "  ".join(
            part for part in (f"step {event.step}/{event.total_steps or '?'}", headline(event.metrics)) if part
        )
    if event.type == "state":
        return f"{event.state}: {event.message}" if event.message else str(event.state)
    if event.type == "evaluation":
        return "  ".join(part for part in ("evaluation", event.message, headline(event.metrics)) if part)
    return event.message


def headline(metrics: dict[str, float]) -> str:
    """The metrics worth a glance: losses and accuracies, then the time left."""
    shown = [
        f"{key.replace('_', ' ')} {value:.4g}"
        for key, value in without_comparison(metrics).items()
        if any(word in key for word in ("loss", "accuracy", "agreement"))
    ]
    if "eta_seconds" in metrics:
        shown.append(f"eta {clock(metrics['eta_seconds'])}")
    return "  ".join(shown)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as bars of text, at most ``width`` of them, each the mean of its stretch."""
    means = _means(values, width)
    if not means:
        return ""
    low = min(means)
    span = max(means) - low
    if not 0 < span < float("inf"):
        return BARS[0] * len(means)
    return "".join(BARS[min(int((mean - low) / span * len(BARS)), len(BARS) - 1)] for mean in means)


def chart_lines(values: Sequence[float], width: int = CHART_WIDTH, height: int = CHART_HEIGHT) -> list[str]:
    """Values as columns of text under their greatest and least mean, at most ``width`` of them, ``height`` lines."""
    means = [mean for mean in _means(values, width) if math.isfinite(mean)]
    if not means:
        return []
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    # The least value is still seen: a line of an eighth.
    levels = [1 + round((mean - low) / span * (height * len(BARS) - 1)) for mean in means]
    lines = []
    for row in reversed(range(height)):
        label = f"{high:.4g}" if row == height - 1 else f"{low:.4g}" if row == 0 else ""
        cells = (min(max(level - row * len(BARS), 0), len(BARS)) for level in levels)
        lines.append(f"{label:>9} │" + "".join((" " + BARS)[cell] for cell in cells))
    return lines


def _means(values: Sequence[float], width: int) -> list[float]:
    """The mean of each of at most ``width`` stretches of the values."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
