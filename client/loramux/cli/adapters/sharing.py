"""``loramux adapters share`` and ``unshare``: adapters for all tenants."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import Json, connect, print_result
from ..completion import complete_adapter


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (share, unshare):
        app.command()(command)


def share(
    context: typer.Context,
    ref: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]",
            help="Adapter of your own; the current version unless given.",
            autocompletion=complete_adapter,
        ),
    ],
    json: Json = False,
) -> None:
    """Publish an adapter to all tenants, under the same name. Needs a key with the scope admin.

    Tenants that have an adapter of that name go on with their own. The shared one stays when yours is deleted; sharing
    another version moves it on.

    \b
    Examples:
      loramux adapters share json
      loramux adapters share json@3
    """  # noqa: D301
    with connect(context) as client:
        adapter = client.adapters.share(ref)
    means = adapter.current.ref if adapter.current else adapter.name
    print_result(
        adapter, f"{ref} is shared as {means}, with all tenants that have no {adapter.name} of their own", json
    )


def unshare(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Shared adapter.", autocompletion=complete_adapter)],
    json: Json = False,
) -> None:
    """Take a shared adapter back from all tenants. Needs a key with the scope admin.

    Requests that use it finish. Your own adapter of that name stays.
    """
    with connect(context) as client:
        count = client.adapters.unshare(name)
    gone = f"{count} version{'' if count == 1 else 's'}"
    print_result({"versions_unshared": count}, f"{name} is no longer shared ({gone})", json)
