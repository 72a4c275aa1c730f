"""``/metrics`` at this door, for whoever shows the token of the metrics; keys of tenants do not open it."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ..services.access import refusals
from ..telemetry.endpoint import ScrapeToken
from .exchange import Exchange


class MetricsPage:
    """Answers scrapes one after the other: each waits for the engine's figures, and none for the loop."""

    def __init__(self, registry: CollectorRegistry, token: ScrapeToken) -> None:
        self._registry, self._token = registry, token
        self._scraping = asyncio.Lock()

    async def send(self, exchange: Exchange) -> None:
        """The metrics in the form that is asked for. Raises UNAUTHENTICATED."""
        shown = exchange.request_headers.get("authorization", "")
        if not await asyncio.to_thread(self._token.is_shown, shown):
            raise refusals.invalid() if shown else refusals.missing()
        encode, content_type = choose_encoder(exchange.request_headers.get("accept", ""))
        async with self._scraping:
            content = await asyncio.to_thread(encode, self._registry)
        await exchange.send_bytes(content, content_type)
