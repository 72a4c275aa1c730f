"""Checks that a ``loramux`` command line would be understood, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from loramux.cli.app import app, hoist
from loramux_server import config
from loramux_server.config.tree import leaves


def parse(words: Sequence[str]) -> None:
    """Parse what follows ``loramux``. Raises a usage error, KeyError or ``core.errors.Error``."""
    command: Any = typer.main.get_command(app)
    try:
        context = command.make_context("loramux", hoist(list(words)))
        while hasattr(command, "resolve_command"):
            name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            context = command.make_context(name, rest, parent=context)
    except typer.Exit:  # --help, --version
        return
    if name in {"serve", "show"}:
        _settings(context.args)


def _settings(words: Sequence[str]) -> None:
    """Flags of ``loramux serve``: every one is a setting, and its value is accepted."""
    names = {leaf.flag: leaf.name for leaf in leaves()}
    flags: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        value = value if equals else next(rest, "")
        if flag not in {"--config", "--help"}:
            flags[names[flag]] = value
    config.load(flags)
