"""``loramux datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..._wire.messages.train_requests import TrainOptions
from ...progress import clock
from ...types import DatasetReport, MarkedText
from ..common import (
    Json,
    TemplateArg,
    connect,
    plain,
    print_fields,
    print_json,
    print_notes,
    print_result,
    settings_of,
    size,
    template_args,
    when,
)
from ..tables import print_table
from . import convert
from .convert import AsOption
from .train import BatchSize, ContextArg, Epochs, Layers, MaxLength, MaxSteps, OnPolicy, Rank, Recipe, text_or_file

if TYPE_CHECKING:
    from rich.text import Text

File = Annotated[Path, typer.Argument(help="File of rows: .jsonl, .json, .csv, .tsv or .parquet.")]

app = typer.Typer(name="datasets", help="List, check, show, convert and delete training data.", no_args_is_help=True)
convert.register(app)


@app.callback()
def _group() -> None:
    """List, check, show, convert and delete training data."""


@app.command("ls")
def list_datasets(context: typer.Context, json: Json = False) -> None:
    """List stored datasets, newest first."""
    with connect(context) as client:
        found = client.datasets.list()
    if json:
        print_json(found)
    elif not found:
        print("no datasets; a job stores its own: loramux train NAME --data FILE")
    else:
        rows = ([d.id, d.name, d.rows, size(d.size_bytes), when(d.created_at)] for d in found)
        print_table(["DATASET", "NAME", "ROWS>", "SIZE>", "CREATED"], rows)


@app.command("rm")
@app.command("delete", hidden=True)
def delete(
    context: typer.Context,
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Ids, as ls prints them.")],
    json: Json = False,
) -> None:
    """Delete stored datasets. What a job that may still run has is refused; adapters that were trained stay."""
    with connect(context) as client:
        for dataset in datasets:
            client.datasets.delete(dataset)
    print_result({"deleted": datasets}, f"deleted {', '.join(datasets)}", json)


@app.command()
def validate(
    ctx: typer.Context,
    file: File,
    validation: Annotated[
        Path | None, typer.Option(help="File of held-out rows: how many of them are training rows is told.")
    ] = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    layers: Layers = None,
    rank: Rank = None,
    recipe: Recipe = None,
    context: ContextArg = None,
    on_policy: OnPolicy = False,
    as_: AsOption = None,
    template_arg: TemplateArg = None,
    json: Json = False,
) -> None:
    """Check a file as a training job would, all problems by line.

    The exit code is 1 if it cannot be trained on.
    """
    with connect(ctx) as client:
        settings = settings_of(ctx, TrainOptions) | {
            "chat_template_kwargs": template_args(template_arg),
            "context": text_or_file(context, "--context"),
            "on_policy": on_policy or None,
        }
        report = client.datasets.validate(file, validation=validation, recipe=recipe, as_=as_, **settings)
    if json:
        print_json(report)
        raise typer.Exit(0 if report.valid else 1)
    print_problems(report)
    print_notes(report.warnings)
    seconds, memory = report.estimated_seconds, report.estimated_memory_bytes
    print_fields(
        [
            ("usable", "yes" if report.valid else "no"),
            ("good rows", f"{report.rows} preference pairs" if report.pairs else report.rows),
            ("tokens", f"{report.tokens} ({report.trained_tokens} learned)"),
            ("longest row", f"{report.longest_tokens} tokens"),
            ("too long", report.too_long or ""),
            ("duplicates", report.duplicates or ""),
            ("steps", report.estimated_steps or ""),
            ("time here", f"{clock(seconds)}, by {report.estimated_from}" if seconds is not None else ""),
            ("memory here", f"about {size(memory)} while it trains" if memory is not None else ""),
        ]
    )
    raise typer.Exit(0 if report.valid else 1)


@app.command()
def show(
    context: typer.Context,
    file: File,
    rows: Annotated[int, typer.Option(help="Rows to show, at most 100.")] = 5,
    line: Annotated[int, typer.Option(help="Line to begin at.")] = 0,
    max_length: MaxLength = None,
    as_: AsOption = None,
    template_arg: TemplateArg = None,
    json: Json = False,
) -> None:
    """Print rows as they are trained on, what is learned in colour.

    Where there is no colour, it stands between [[ and ]]. Special tokens are shown as they are written.
    The exit code is 1 if the file cannot be trained on.
    """
    with connect(context) as client:
        report = client.datasets.show(
            file,
            rows=rows,
            line=line,
            max_length=max_length,
            as_=as_,
            chat_template_kwargs=template_args(template_arg),
        )
    if json:
        print_json(report.shown)
        raise typer.Exit(0 if report.valid else 1)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for row in report.shown:
        kind = ", preferred" if row.rejected else ""
        console.print(f"line {row.line}, {row.tokens} tokens{kind}", style="dim")
        console.print(marked(row.text, colour=console.is_terminal and not console.no_color), end="\n\n")
        if row.rejected:
            console.print(f"line {row.line}, preferred less", style="dim")
            console.print(marked(row.rejected, colour=console.is_terminal and not console.no_color), end="\n\n")
    print_problems(report)
    raise typer.Exit(0 if report.valid else 1)


def marked(parts: Sequence[MarkedText], *, colour: bool) -> Text:
    """A row with its learned parts marked."""
    from rich.text import Text

    found = Text()
    for part in parts:
        text = plain(part.text)
        if part.trained:
            found.append(text if colour else f"[[{text}]]", "bold green" if colour else "")
        else:
            found.append(text)
    return found


def print_problems(report: DatasetReport) -> None:
    """What is wrong with a dataset, by line."""
    for problem in report.problems:
        print(plain(str(problem)))
    if report.problems_total > len(report.problems):
        print(f"... and {report.problems_total - len(report.problems)} more")
