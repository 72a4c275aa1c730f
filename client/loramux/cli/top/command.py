"""The command ``loramux top``."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from ..common import Json, connect, json_text, print_json
from .frame import View, lines
from .marks import marks


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(top)


def top(
    context: typer.Context,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Seconds between two questions.")
    ] = 1.0,
    window: Annotated[
        int, typer.Option(min=1, max=60, metavar="SECONDS", help="Seconds that rates and latencies are of.")
    ] = 10,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end, as without a terminal.")] = False,
    json: Json = False,
) -> None:
    """Watch requests, memory, adapters, tenants and jobs as they go.

    Of all tenants with the scope admin, else of the key's own. With --json each answer is a line of JSON; with --once
    there is one.
    """
    with connect(context) as client:
        if json:
            while not once:
                print(json_text(client.stats(window, timeout=30)), flush=True)
                time.sleep(interval)
            print_json(client.stats(window, timeout=30))
            return
        from rich.console import Console

        console = Console(highlight=False)
        if not once and sys.platform != "win32" and console.is_terminal and not console.is_dumb_terminal:
            from .screen import follow

            follow(client, console, marks(), interval, window)
            return
        info, stats = client.info(timeout=30), client.stats(window, timeout=30)
        for line in lines(View(client.address, marks(), info=info, stats=stats), console.width):
            console.print(line, soft_wrap=True)
