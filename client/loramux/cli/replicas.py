"""``loramux replicas``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..types import Replica
from .common import Json, connect, print_json, print_result
from .tables import print_table

app = typer.Typer(name="replicas", help="List and drain the engines of a server.", no_args_is_help=True)


@app.command("ls")
def list_replicas(context: typer.Context, json: Json = False) -> None:
    """List the engines behind the server: what they hold, and what they do."""
    with connect(context) as client:
        found = client.replicas(timeout=30)
    if json:
        print_json(found)
    else:
        columns = ["REPLICA", "STATE", "NODE", "RUNNING>", "WAITING>", "TOKENS>", "ADAPTERS>", "JOBS"]
        print_table(columns, map(_row, found))


@app.command()
def drain(
    context: typer.Context,
    replica: Annotated[str, typer.Argument(metavar="REPLICA", help="Identifier of the replica.")],
    json: Json = False,
) -> None:
    """Give a replica no new work.

    It finishes its requests, and its jobs go on elsewhere from their checkpoints. Then another replica takes its place.
    """
    with connect(context) as client:
        client.drain_replica(replica, timeout=30)
    print_result({"drained": replica}, f"replica {replica} takes no new work", json)


def _row(replica: Replica) -> list[object]:
    return [
        replica.id,
        replica.state,
        replica.node,
        replica.requests_running,
        replica.requests_waiting,
        replica.queued_tokens,
        replica.adapters,
        ", ".join(replica.training_jobs),
    ]
