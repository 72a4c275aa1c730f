"""``/metrics`` and ``/metrics/vllm`` at this door: for who shows the token of the metrics, not for keys of tenants."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ..services.access import refusals
from ..telemetry.endpoint import ScrapeToken
from .exchanges.exchange import Exchange


class MetricsPage:
    """Answers scrapes one after the other: each waits for the engine's figures, and none for the loop."""

    def __init__(self, registry: CollectorRegistry, for_routers: CollectorRegistry, token: ScrapeToken) -> None:
        self._registry, self._for_routers, self._token = registry, for_routers, token
        self._scraping = asyncio.Lock()

    async def send(self, exchange: Exchange) -> None:
        """The metrics in the form that is asked for. Raises UNAUTHENTICATED."""
        await self._send(exchange, self._registry)

    async def send_for_routers(self, exchange: Exchange) -> None:
        """The gauges that routers read, likewise."""
        await self._send(exchange, self._for_routers)

    async def _send(self, exchange: Exchange, registry: CollectorRegistry) -> None:
        shown = exchange.request_headers.get("authorization", "")
        if not await asyncio.to_thread(self._token.is_shown, shown):
            raise refusals.invalid() if shown else refusals.missing()
        encode, content_type = choose_encoder(exchange.request_headers.get("accept", ""))
        async with self._scraping:
            content = await asyncio.to_thread(encode, registry)
        await exchange.send_bytes(content, content_type)
