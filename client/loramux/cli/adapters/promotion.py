"""``loramux adapters promote``, ``rollback`` and ``alias``: what a name means."""

from __future__ import annotations

from typing import Annotated

import typer

from ...types import Adapter
from ..common import Json, connect, print_json, print_result
from ..completion import complete_adapter

Name = Annotated[str, typer.Argument(help="Adapter.", autocompletion=complete_adapter)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (promote, rollback, alias):
        app.command()(command)


def promote(
    context: typer.Context,
    name: Name,
    version: Annotated[int, typer.Argument(help="Version that the name shall mean.")],
    json: Json = False,
) -> None:
    """Make a name mean one of its versions, from the next request on.

    \b
    Example:
      loramux adapters promote acme 3
    """  # noqa: D301
    with connect(context) as client:
        _moved(client.adapters.promote(name, version), json)


def rollback(context: typer.Context, name: Name, json: Json = False) -> None:
    """Make a name mean the version again that it meant before. A second rollback undoes the first."""
    with connect(context) as client:
        _moved(client.adapters.rollback(name), json)


def alias(
    context: typer.Context,
    name: Name,
    version: Annotated[int, typer.Argument(help="Version to point at; 0 removes the alias.")],
    alias: Annotated[str, typer.Option(help="Alias to move, used as NAME@ALIAS.", show_default="the name")] = "",
    json: Json = False,
) -> None:
    """Make an alias of a name, such as acme@canary, mean a version.

    \b
    Examples:
      loramux adapters alias acme 3 --alias canary   # acme@canary means acme@3
      loramux adapters alias acme 0 --alias canary   # acme@canary is removed
    """  # noqa: D301
    with connect(context) as client:
        adapter = client.adapters.set_alias(name, version, alias=alias)
    if not alias:
        _moved(adapter, json)
    else:
        means = f"{name}@{alias} means {name}@{version}" if version else f"{name}@{alias} is removed"
        print_result(adapter, means, json)


def _moved(adapter: Adapter, json: bool) -> None:
    if json:
        print_json(adapter)
    elif adapter.current is not None:
        print(meaning(adapter.name, adapter.current.version, adapter.previous_version))


def meaning(name: str, version: int, previous: int) -> str:
    """What a name means now, and how to go back where there is a way."""
    if not previous:
        return f"{name} now means @{version}"
    return f"{name} now means @{version} (was @{previous}); back: loramux adapters rollback {name}"
