"""How events are shown."""

from __future__ import annotations

import io

from rich.console import Console

from loramux import JobEvent
from loramux.progress import Bar, Lines, Silent, chart_lines, clock, describe, progress_display


def test_a_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with progress_display("acme", console=console) as display:
        assert isinstance(display, Bar)
        display.show(JobEvent(1, 0.0, "state", state="running"))
        display.show(
            JobEvent(2, 0.0, "step", step=5, total_steps=72, metrics={"loss": 1.25, "eta_seconds": 95, "grad_norm": 3})
        )
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "acme: running" in shown
    assert "5/72" in shown
    assert "loss 1.25  eta 1:35" in shown
    assert "grad" not in shown


def test_lines_elsewhere_and_silence() -> None:
    assert isinstance(progress_display("acme", console=Console(file=io.StringIO())), Lines)
    assert type(progress_display("acme", enabled=False)) is Silent


def test_steps_in_quick_succession_are_not_all_printed() -> None:
    console = Console(file=io.StringIO())
    lines = Lines("acme", console)
    for i in range(1, 101):
        lines.show(JobEvent(i, 0.0, "step", step=i, total_steps=100))
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert shown[-1] == "acme: step 100/100"
    assert len(shown) < 10


def test_descriptions() -> None:
    assert describe(JobEvent(1, 0.0, "message", message="hello [bold]x")) == "hello [bold]x"
    assert describe(JobEvent(1, 0.0, "state", state="failed", message="why")) == "failed: why"
    metrics = {"validation_loss": 0.5, "token_accuracy": 0.9}
    assert describe(JobEvent(1, 0.0, "evaluation", metrics=metrics)) == (
        "evaluation  validation loss 0.5  token accuracy 0.9"
    )
    assert [clock(s) for s in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]


def test_a_chart_of_the_losses() -> None:
    assert chart_lines([8.0, 4.5, 1.0], height=2) == ["        8 │█▁ ", "        1 │██▁"]
    lines = chart_lines([100.0 - i for i in range(100)], width=10, height=4)
    assert len(lines) == 4
    assert lines[0].split("│")[1].strip() == "█▅▁"
    assert [len(line.split("│")[1]) for line in lines] == [10] * 4
    assert chart_lines([]) == []
    assert len(chart_lines([1.0, 1.0, float("nan")])) == 8


def test_watching_draws_a_chart() -> None:
    """On a terminal above the bar while it grows, elsewhere once at the end."""
    events = [JobEvent(i, 0.0, "step", step=i, total_steps=3, metrics={"loss": 4.0 - i}) for i in (1, 2, 3)]
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
        with progress_display("acme", console=console, chart=True) as display:
            for event in events:
                display.show(event)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        last = shown[shown.rindex("3 │") :].splitlines()
        assert last[0].startswith("3 │█")
        assert last[7].strip().startswith("1 │")
    with progress_display("acme", console=console) as display:
        display.show(events[0])
    assert console.file.getvalue().count("│") == shown.count("│")  # type: ignore[attr-defined]


def test_a_bar_draws_the_curve() -> None:
    """Steps that are done again after an interruption are drawn once."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with Bar("acme", console) as display:
        for step, loss in ((1, 8.0), (2, 1.0), (3, 1.0), (2, 4.0), (3, 1.0)):
            display.show(JobEvent(step, 0.0, "step", step=step, total_steps=3, metrics={"loss": loss}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "█▄▁" in shown
