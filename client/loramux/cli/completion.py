"""What the shell offers after TAB: adapters and jobs of the server, recipes, flags of ``serve``.

A completion never fails and never waits long: without a server it offers nothing.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import CompletionItem, TyperCommand  # type: ignore[attr-defined]

from ..client import Client
from .connection import Connection

PATIENCE = 1.0
"""Seconds to wait for the server."""
MOST = 200
RECIPES = {"facts": "a tenant's facts, to answer closed book", "style": "a format that stacks on tenants"}


def complete_adapter(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of adapters, as an argument or before ``:WEIGHT``."""

    def names(client: Client) -> Iterable[tuple[str, str]]:
        for adapter in client.adapters.list(prefix=incomplete, limit=MOST):
            yield adapter.name, adapter.current.ref if adapter.current else "no usable version"

    return _asked(context, names)


def complete_job(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Identifiers of jobs, newest first."""

    def ids(client: Client) -> Iterable[tuple[str, str]]:
        for info in client.jobs.list(limit=MOST):
            if info.id.startswith(incomplete):
                yield info.id, f"{info.name}, {info.state}"

    return _asked(context, ids)


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """The recipes."""
    return [(name, text) for name, text in RECIPES.items() if name.startswith(incomplete)]


class ServerCommand(TyperCommand):
    """A command whose flags are the server's settings: offers them, and the values of those that have few."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[CompletionItem]:
        """Flags that begin like this, or values of the flag before."""
        try:
            known = importlib.import_module("loramux_server.config.flags").flags()
        except ImportError:  # a client without the server
            return []
        before = ctx.args[-1] if ctx.args else ""
        if before in known and not incomplete.startswith("-"):
            return [CompletionItem(value) for value in known[before].values if value.startswith(incomplete)]
        return [CompletionItem(name, help=flag.help) for name, flag in known.items() if name.startswith(incomplete)]


def _asked(context: typer.Context, ask: Callable[[Client], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    logging.disable()  # nothing may come between the shell and what it reads
    try:
        with Connection.of(context).client(timeout=PATIENCE) as client:
            return list(ask(client))
    except Exception:  # the shell has no place for errors
        return []
