"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, as vLLM has them."""

from __future__ import annotations

from pydantic import StrictBool, StrictInt, StrictStr

from ...core import call as calls
from ...services.availability import Availability
from ..bodies.fields import Strict, read
from ..description.describe import describe
from ..exchanges.exchange import Exchange


class LoadRequest(Strict):
    """A folder of the server's machine, and the adapter's name."""

    lora_name: StrictStr
    lora_path: StrictStr
    lora_int_id: StrictInt | None = None
    """Ignored: adapters have names and versions here."""
    base_model_name: StrictStr | None = None
    """Ignored: there is one base, and the folder is checked against it."""
    load_inplace: StrictBool = False


class UnloadRequest(Strict):
    """The adapter's name."""

    lora_name: StrictStr
    lora_int_id: StrictInt | None = None
    """Ignored."""


class LoadedFolders:
    """Publishes folders of the server's machine, and deletes what was published so."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=LoadRequest, answer=str, media="text/plain")
    async def load(self, exchange: Exchange) -> None:
        """Publish a folder below ``--lora-root`` as a version of an adapter."""
        asked = read(LoadRequest, await exchange.json())
        folders = self._availability.open().folders
        version = await folders.load(asked.lora_name, asked.lora_path, calls.principal(), replace=asked.load_inplace)
        await _send(exchange, f"Success: LoRA adapter '{version.name}' added successfully.")

    @describe(body=UnloadRequest, answer=str, media="text/plain")
    async def unload(self, exchange: Exchange) -> None:
        """Delete an adapter whose versions all came from folders."""
        asked = read(UnloadRequest, await exchange.json())
        await self._availability.open().folders.unload(asked.lora_name, calls.principal())
        await _send(exchange, f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


async def _send(exchange: Exchange, text: str) -> None:
    await exchange.send_bytes(text.encode(), "text/plain; charset=utf-8")
