"""``loramux demo``."""

from __future__ import annotations

import typer

from .serve import _PASS_THROUGH, server_module


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(context_settings=_PASS_THROUGH, add_help_option=False)(demo)


def demo(context: typer.Context) -> None:
    """Watch a server: ask, train an adapter live, ask again."""
    raise typer.Exit(int(server_module("loramux_server.demo").main(context.args) or 0))
