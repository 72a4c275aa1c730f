"""The server's own command line, reached from here: ``serve``, ``config``, ``backup``, ``demo`` and others."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import typer

from ..errors import LoramuxError
from .completion import ServerCommand
from .handover import NEEDED, exec_server

_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

config_app = typer.Typer(name="config", help="Show how a server would be set up.", no_args_is_help=True)


class ServerMissing(LoramuxError):
    """The server's packages are not installed."""

    code = "SERVER_MISSING"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, keys, quotas, audit, backup, restore, doctor):
        kind = ServerCommand if command is serve else None
        app.command(cls=kind, context_settings=_PASS_THROUGH, add_help_option=False)(command)


def register_demo(app: typer.Typer) -> None:
    """Add the demo, last in the list of commands."""
    app.command(context_settings=_PASS_THROUGH, add_help_option=False)(demo)


def serve(context: typer.Context) -> None:
    """Start a server (its flags: loramux serve --help)."""
    for name in NEEDED:
        server_module(name)
    exec_server(context.args)


def demo(context: typer.Context) -> None:
    """Watch a server: ask, train an adapter live, ask again."""
    raise typer.Exit(int(server_module("loramux_server.demo").main(context.args) or 0))


def audit(context: typer.Context) -> None:
    """Show who changed what on a server, when and from where."""
    raise typer.Exit(run_server(["audit", *context.args]))


def backup(context: typer.Context) -> None:
    """Copy the state of a server, running or not, into a folder."""
    raise typer.Exit(run_server(["backup", *context.args]))


def restore(context: typer.Context) -> None:
    """Make a state directory from a backup, or check one (--verify)."""
    raise typer.Exit(run_server(["restore", *context.args]))


def doctor(context: typer.Context) -> None:
    """Check all that a state directory holds; --repair mends it."""
    raise typer.Exit(run_server(["doctor", *context.args]))


def keys(context: typer.Context) -> None:
    """Create, list and revoke API keys (loramux keys --help)."""
    raise typer.Exit(run_server(["keys", *context.args]))


def quotas(context: typer.Context) -> None:
    """Limit tenants and keys: loramux quotas set, loramux quotas ls."""
    raise typer.Exit(run_server(["quotas", *context.args]))


@config_app.command("show", cls=ServerCommand, context_settings=_PASS_THROUGH, add_help_option=False)
def config_show(context: typer.Context) -> None:
    """Show every setting, its value and where that comes from."""
    raise typer.Exit(run_server(["config-show", *context.args]))


def run_server(arguments: list[str]) -> int:
    """Hand over to the server's command line."""
    code = server_module("loramux_server.__main__").main(arguments)
    return int(code or 0)


def server_module(name: str) -> ModuleType:
    """A module of the server. Raises ServerMissing, with what to do, where the server is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if os.environ.get("LORAMUX_DEBUG"):
            raise
        raise ServerMissing(
            f"the server is not installed here (no module {error.name}); in a clone, install it with:"
            " pip install '.[server]'"
        ) from None
