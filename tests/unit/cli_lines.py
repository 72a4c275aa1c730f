"""Checks that a ``loramux`` command line would be understood, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from loramux.cli.app import command_tree, hoist
from loramux_server.config import flags


def parse(words: Sequence[str]) -> None:
    """Parse what follows ``loramux``. Raises a usage error or ``core.errors.Error``."""
    command: Any = command_tree()
    try:
        context = command.make_context("loramux", hoist(list(words)))
        while hasattr(command, "resolve_command"):
            name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            context = command.make_context(name, rest, parent=context)
    except typer.Exit:  # --help, --version
        return
    if context.command_path in {"loramux serve", "loramux config show"}:
        # The server's own parser takes over here. Whether a file named by --config exists is not the question.
        words = [word for word in context.args if word not in {"--json", "--help"}]
        namespace = flags.build_parser(context.command_path, "").parse_args(words)
        namespace.config = None
        flags.load_namespace(namespace)
