"""``loramux datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..progress import clock
from .common import Json, connect, print_fields, print_json, size
from .train import BatchSize, Epochs, MaxLength, MaxSteps

app = typer.Typer(name="datasets", help="Check training data.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check training data."""


@app.command()
def validate(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSONL file.")],
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    json: Json = False,
) -> None:
    """Check a file as a training job would: all problems by line, then what it holds.

    The exit code is 1 if it cannot be trained on.
    """
    with connect(context) as client:
        report = client.datasets.validate(
            file, epochs=epochs, max_steps=max_steps, batch_size=batch_size, max_length=max_length
        )
    if json:
        print_json(report)
        raise typer.Exit(0 if report.valid else 1)
    for problem in report.problems:
        print(problem)
    if report.problems_total > len(report.problems):
        print(f"... and {report.problems_total - len(report.problems)} more")
    seconds, memory = report.estimated_seconds, report.estimated_memory_bytes
    print_fields(
        [
            ("usable", "yes" if report.valid else "no"),
            ("rows", report.rows),
            ("tokens", f"{report.tokens} ({report.trained_tokens} learned)"),
            ("longest row", f"{report.longest_tokens} tokens"),
            ("duplicates", report.duplicates or ""),
            ("steps", report.estimated_steps or ""),
            ("time here", clock(seconds) if seconds is not None else ""),
            ("memory here", size(memory) if memory is not None else ""),
        ]
    )
    raise typer.Exit(0 if report.valid else 1)
