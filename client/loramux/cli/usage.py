"""``loramux usage``."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..types.usage import DIMENSIONS, UsageRow
from .common import Json, connect, jsonable, print_json
from .completion import complete_adapter
from .tables import print_table

AMOUNTS = tuple(field.name for field in dataclasses.fields(UsageRow) if field.name not in DIMENSIONS)
HEADINGS = ("REQUESTS>", "INPUT>", "CACHED>", "OUTPUT>", "TRAINED>", "ADAPTER HOURS>")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(usage)


def usage(
    context: typer.Context,
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="First day, such as 2026-11-01, of UTC.", show_default="1st of this month"),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="First day that is left out.", show_default="tomorrow")
    ] = None,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Only this tenant.")] = "",
    adapter: Annotated[
        str,
        typer.Option(metavar="NAME", help="Only this adapter, and stacks with it.", autocompletion=complete_adapter),
    ] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIMENSION",
            help="Group by day, tenant, adapter or method; may be repeated.",
            show_default="day, tenant, adapter",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    json: Json = False,
) -> None:
    """Show what tenants used, for a bill.

    Requests, tokens, and hours of stored adapter versions. A key with the scope admin sees all tenants, any other
    its own.

    \b
    Examples:
      loramux usage --since 2026-11-01 --until 2026-12-01 --csv > november.csv
      loramux usage --tenant acme --by day --by method
    """  # noqa: D301
    if as_csv and json:
        raise typer.BadParameter("is given together with --json; give one of the two", param_hint="--csv")
    with connect(context) as client:
        found = client.usage(since, until, group_by=by, tenant=tenant, adapter=adapter)
    shown = [name for name in DIMENSIONS if name in (by or DIMENSIONS[:3])]
    if json:
        rows = [jsonable(row) for row in found]
        print_json([{name: row[name] for name in (*shown, *AMOUNTS)} for row in rows])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow((*shown, *AMOUNTS))
        writer.writerows([getattr(row, name) for name in (*shown, *AMOUNTS)] for row in found)
    elif not found:
        print("no usage in this time")
    else:
        total = UsageRow(**{name: sum(getattr(row, name) for row in found) for name in AMOUNTS})
        rows = [[*(getattr(row, name) for name in shown), *_amounts(row)] for row in found]
        ends = ["total", *([""] * len(shown[1:]))]
        print_table([*(name.upper() for name in shown), *HEADINGS], [*rows, [*ends, *_amounts(total)]])


def _amounts(row: UsageRow) -> Sequence[str]:
    """The amounts in a table's cells."""
    return [*(f"{getattr(row, name):,}" for name in AMOUNTS[:-1]), f"{row.adapter_hours:,.2f}"]
