"""Servers that differ in their flags take turns under the same load, so that a machine's drift is seen by all alike."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import IO

from loramux import AsyncClient

from .load import own_server


@asynccontextmanager
async def servers(
    ways: Mapping[str, Sequence[str]], log: int | IO[bytes], modules: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[dict[str, AsyncClient]]:
    """A server for each way, started with its flags; what they say goes to ``log``. Gives a client for each.

    ``modules`` names what is run for a way that is not the server as it is.
    """
    async with AsyncExitStack() as stack:
        started = [
            stack.enter_async_context(own_server(flags, output=log, module=modules.get(way, "loramux_server")))
            for way, flags in ways.items()
        ]
        addresses = await asyncio.gather(*started)
        clients = [await stack.enter_async_context(AsyncClient(address)) for address in addresses]
        yield dict(zip(ways, clients, strict=True))


async def in_turn(
    clients: Mapping[str, AsyncClient], rounds: int, measure: Callable[[AsyncClient, str], Awaitable[float]]
) -> dict[str, list[float]]:
    """What ``measure(client, mark)`` gives for each server, round by round; each round begins with another server."""
    found: dict[str, list[float]] = {way: [] for way in clients}
    order = list(clients)
    for number in range(rounds):
        for way in order[number % len(order) :] + order[: number % len(order)]:
            found[way].append(await measure(clients[way], f"{way} {number}"))
    return found


def ratio(found: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Median over the rounds of what ``one`` gave, as a multiple of the other."""
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))
