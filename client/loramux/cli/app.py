"""Putting the commands together, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer

from loramux import __version__

from .._streams import open_standard_streams, tolerate_encodings
from ..errors import LoramuxError
from . import chat, embed, generate, profile, replicas, serve, server, top, usage
from .adapters import commands as adapters
from .common import error_lines
from .connection import OPTIONS
from .training import datasets, jobs, train

# These parse their own arguments, so nothing is taken out of them.
_OWN_FLAGS = {"serve", "demo", "config", "audit", "backup", "restore", "doctor", "keys", "quotas"}

app = typer.Typer(
    name="loramux",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (serve, generate, embed, chat, train, server, top, usage, profile):
    module.register(app)
serve.register_demo(app)
app.add_typer(adapters.app)
app.add_typer(jobs.app)
app.add_typer(datasets.app)
app.add_typer(replicas.app)
app.add_typer(serve.config_app)


def _version(asked: bool) -> None:
    if asked:
        print(f"loramux {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    address: Annotated[
        str | None,
        typer.Option(
            envvar="LORAMUX_ADDRESS",
            help="Server to talk to: host:port, or https://host:port for TLS.",
            show_default="localhost:50051",
        ),
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LORAMUX_API_KEY", help="API key, if the server asks.")] = None,
    ca_file: Annotated[
        str | None,
        typer.Option(envvar="LORAMUX_CA_FILE", metavar="FILE", help="CAs, in PEM, of the server's certificate."),
    ] = None,
    cert_file: Annotated[
        str | None,
        typer.Option(envvar="LORAMUX_CERT_FILE", metavar="FILE", help="Certificate to show, if the server asks."),
    ] = None,
    key_file: Annotated[
        str | None, typer.Option(envvar="LORAMUX_KEY_FILE", metavar="FILE", help="Private key of that certificate.")
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            envvar="LORAMUX_SERVER_NAME",
            metavar="NAME",
            help="Name in the server's certificate, if it is not the address's.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Serve one base model with many LoRA adapters, and train new ones beside it.

    Start a server with loramux serve, then try in another terminal:

    \b
      loramux generate --message "What is the capital of France?"
      loramux train acme --data acme.jsonl
      loramux generate --message "When does Acme open?" --adapter acme
      loramux chat --adapter acme:1.0 --adapter formal:0.5
    """  # noqa: D301


@cache
def command_tree() -> Any:
    """All commands as Click has them; made once, since Typer takes a while to read what they declare."""
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0 done, 1 failed, 2 not understood, 130 interrupted."""
    open_standard_streams()
    tolerate_encodings()
    arguments = hoist(list(sys.argv[1:] if argv is None else argv))
    try:
        command_tree()(arguments, prog_name="loramux")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except LoramuxError as error:
        return _fail(error_lines(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has gone; without this Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail([f"{where}{error.strerror or error}"])
    except Exception as error:  # a defect of ours: say so in a line; the rest is for those who ask
        if os.environ.get("LORAMUX_DEBUG"):
            traceback.print_exc()
        return _fail([f"unexpected {type(error).__name__}: {error} (set LORAMUX_DEBUG=1 for the traceback)"])
    return 0


def hoist(arguments: list[str]) -> list[str]:
    """Move ``--address``, ``--api-key`` and their kin to the front, so that they may stand behind a command too."""
    command = next((a for a in arguments if not a.startswith("-")), "")
    if command in _OWN_FLAGS:
        return arguments
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in OPTIONS:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(tuple(f"{name}=" for name in OPTIONS)):
            front.append(word)
        else:
            rest.append(word)
    return front + rest


def _fail(lines: Sequence[str]) -> int:
    for i, line in enumerate(lines):
        print(f"error: {line}" if i == 0 else f"  {line}", file=sys.stderr)
    return 1
