"""``loramux embed``."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import AdapterOption, Json, connect, json_text, print_json, read_stdin, stack, write


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(embed)


def embed(
    context: typer.Context,
    texts: Annotated[
        list[str], typer.Argument(help="Texts to embed; '-' alone: each line of stdin is one.", metavar="TEXT...")
    ],
    adapter: AdapterOption = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean or last: of the hidden states.", show_default="mean", metavar="POOLING")
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Scale each embedding to length 1.")] = True,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which to give up.")] = None,
    json: Json = False,
) -> None:
    """Print the embeddings of texts, each a list of numbers on a line.

    \b
    Examples:
      loramux embed "When does the mill open?"
      loramux embed "one" "two" --adapter acme --pooling last
      loramux embed - --json < lines.txt
    """  # noqa: D301
    given = read_stdin().splitlines() if texts == ["-"] else texts
    with connect(context) as client:
        found = client.embed(given, adapters=stack(adapter), pooling=pooling, normalize=normalize, timeout=timeout)
    if json:
        print_json(found)
        return
    for vector in found.vectors:
        write(f"{json_text(list(vector))}\n")
