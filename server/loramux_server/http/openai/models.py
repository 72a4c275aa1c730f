"""``GET /v1/models`` and what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core import call as calls
from ...core.errors import adapter_not_found, invalid_field
from ...core.types import BASE_NAME
from ...services.adapters.types import AdapterInfo
from ...services.availability import Availability
from ...services.common.context import Context
from ..anthropic.models import ANTHROPIC_VERSION, asks_as_anthropic, model_info, model_page
from ..anthropic.shapes import ModelInfo, ModelPage
from ..bodies.names import adapter_named
from ..description.describe import describe
from ..exchanges.exchange import Exchange
from .shapes import DeletedModel, LoraAdapters, Model, ModelList

PAGE = 1000


class Models:
    """Lists what a caller may name as a model: the base, its adapters and their aliases."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(answer=ModelList | ModelPage, headers=(ANTHROPIC_VERSION,))
    async def list(self, exchange: Exchange) -> None:
        """All of them."""
        found = [self._base(), *(model for info in await self._adapters() for model in _models(info))]
        if asks_as_anthropic(exchange):
            await exchange.send_json(model_page(found, self._context))
        else:
            await exchange.send_json({"object": "list", "data": found})

    @describe(answer=LoraAdapters)
    async def scales(self, exchange: Exchange) -> None:
        """The adapters as llama.cpp lists them: what ``lora`` of a request may name. None acts unless it is named."""
        infos = [info for info in await self._adapters() if info.current is not None]
        shown = [{"id": i.name, "path": i.current.ref if i.current else "", "scale": 0.0} for i in infos]
        await exchange.send_json(shown)

    @describe(answer=Model | ModelInfo, headers=(ANTHROPIC_VERSION,))
    async def retrieve(self, exchange: Exchange) -> None:
        """One: the base, an adapter, ``name@version`` or ``name@alias``."""
        name = exchange.path_params["model"]
        if name == BASE_NAME:
            await self._send(exchange, self._base())
            return
        name = adapter_named(name)
        info = await self._availability.open().adapters.get(name, calls.principal())
        wanted = info.current if "@" not in name else next(iter(info.versions), None)
        if wanted is None:
            raise adapter_not_found(name)
        await self._send(exchange, _model(name, wanted.created, wanted.ref))

    @describe(answer=DeletedModel)
    async def delete(self, exchange: Exchange) -> None:
        """Delete an adapter with all its versions, or one version."""
        name = exchange.path_params["model"]
        if name == BASE_NAME:
            raise invalid_field("model", "is the base, which cannot be deleted")
        await self._availability.open().adapters.delete(adapter_named(name), calls.principal())
        await exchange.send_json({"id": name, "object": "model", "deleted": True})

    async def _send(self, exchange: Exchange, model: dict[str, Any]) -> None:
        await exchange.send_json(model_info(model, self._context) if asks_as_anthropic(exchange) else model)

    async def _adapters(self) -> Sequence[AdapterInfo]:
        """Those that the caller may use."""
        service, principal = self._availability.open().adapters, calls.principal()
        found: tuple[AdapterInfo, ...] = ()
        token = ""
        while True:
            page = await service.list(principal, page_size=PAGE, page_token=token)
            found += tuple(page.items)
            token = page.next_page_token
            if not token:
                return found

    def _base(self) -> dict[str, Any]:
        return {**_model(BASE_NAME, 0.0, self._context.info.base_name), "parent": None}

    @property
    def _context(self) -> Context:
        return self._availability.open_context()


def _models(info: AdapterInfo) -> list[dict[str, Any]]:
    """An adapter's name and its aliases, each as what it means now."""
    found: list[dict[str, Any]] = []
    if info.current is not None:
        found.append(_model(info.name, info.created_at, info.current.ref))
    for alias, version in sorted(info.aliases.items()):
        found.append(_model(f"{info.name}@{alias}", info.created_at, f"{info.name}@{version}"))
    return found


def _model(id: str, created: float, root: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": "model",
        "created": int(created),
        "owned_by": "loramux",
        "root": root,
        "parent": BASE_NAME,
    }
