"""``loramux profile``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .common import Json, connect, print_result, size


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(profile)


def profile(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="How long to record.")] = 10.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            dir_okay=False,
            help="Where to write it.",
            show_default="loramux-profile-TIME.json.gz",
        ),
    ] = None,
    no_kernels: Annotated[
        bool, typer.Option("--no-kernels", help="Leave out operators and kernels: it costs next to nothing then.")
    ] = False,
    json: Json = False,
) -> None:
    """Record what the engine does, as a trace for Perfetto.

    It shows steps, waits, adapter loads, training and kernels, and needs the scope admin. Requests and jobs go on
    meanwhile.
    """
    path = output or Path(time.strftime("loramux-profile-%Y%m%d-%H%M%S.json.gz"))
    with connect(context) as client:
        done = client.profile(path, seconds, kernels=not no_kernels)
    left_out = f", {done.events_dropped} more left out" if done.events_dropped else ""
    where = "open it at https://ui.perfetto.dev"
    print_result(done, f"wrote {done.path} ({size(done.size)}, {done.events} events{left_out}); {where}", json)
