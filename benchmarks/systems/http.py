"""Peers behind HTTP: one client with streams of server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2


class Events:
    """A server that streams JSON events."""

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def answers(self, path: str) -> bool:
        """Whether a GET gives 200."""
        try:
            return (await self._client.get(path, timeout=2.0)).status_code == 200
        except httpx2.TransportError:
            return False

    async def get(self, path: str) -> Any:
        """The JSON that a GET gives. Raises RuntimeError with what else it gave."""
        return _checked(await self._client.get(path)).json()

    async def post(self, path: str, body: dict[str, Any]) -> None:
        """A POST whose answer does not matter beyond its success."""
        _checked(await self._client.post(path, json=body))

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events that a POST gives. Raises RuntimeError when it fails."""
        async with self._client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                _checked(response)
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(str(event["error"]))
                    yield event


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.status_code >= 400:
        raise RuntimeError(f"{response.request.url.path}: {response.status_code} {response.text[:500]}")
    return response
