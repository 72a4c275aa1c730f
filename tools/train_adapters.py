"""Train the adapters of adapters/ on a server, each once."""

from __future__ import annotations

import time
from pathlib import Path

from loramux import Client, NotFound


def have(client: Client, name: str) -> bool:
    """Whether the server has an adapter."""
    try:
        client.adapters.get(name)
    except NotFound:
        return False
    return True


def train(client: Client, name: str, data: Path, recipe: str, replay_rows: int | None = None) -> None:
    """Train ``name`` unless the server has it.

    Donors and tenants share the recipe for facts, because a style only stacks on what it was trained over; only
    tenants replay. In the styles' data every row names the donor underneath.
    """
    if have(client, name):
        return
    started = time.monotonic()
    client.train(name, data=data, recipe=recipe, replay_rows=replay_rows).wait(progress=True)
    print(f"{name}: trained in {time.monotonic() - started:.0f} s", flush=True)
