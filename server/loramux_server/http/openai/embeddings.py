"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
import json
from typing import Any

from ...core import call as calls
from ...core.call import Call
from ...core.errors import invalid_field
from ...core.types import Pooling, model_name
from ...services.availability import Availability
from ...services.common.workers import prepare
from ...services.inference.types import Embeddings, EmbedRequest
from ..bodies.fields import read
from ..bodies.names import parse_model
from ..description.describe import describe
from ..exchanges.exchange import JSON_TYPE, Exchange
from .schema import EmbeddingRequest
from .shapes import EmbeddingList


class EmbeddingsOf:
    """Embeds texts."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=EmbeddingRequest, answer=EmbeddingList)
    async def create(self, exchange: Exchange) -> None:
        """Embed one text or several."""
        asked = read(EmbeddingRequest, await exchange.json())
        service = self._availability.open().generation
        async with exchange.ended_by_disconnect():
            found = await service.embed(embed_request(asked, calls.current()))
            body = await prepare(lambda: _body(found, asked.encoding_format == "base64"))
            await exchange.send_bytes(body, JSON_TYPE)


def embed_request(asked: EmbeddingRequest, call: Call) -> EmbedRequest:
    """Texts to embed as every door asks for them. Raises INVALID_ARGUMENT for texts and tokens in one list."""
    return EmbedRequest(
        input=_input(asked.input),
        adapters=parse_model(asked.model, asked.adapters),
        pooling=Pooling(asked.pooling),
        normalize=asked.normalize,
        dimensions=asked.dimensions,
        principal=call.principal,
        request_id=call.request_id,
        deadline=call.deadline,
    )


def _input(given: str | list[str] | list[int] | list[list[int]]) -> tuple[str | tuple[int, ...], ...]:
    """A list of numbers is the tokens of one text."""
    if isinstance(given, str):
        return (given,)
    if given and all(isinstance(item, int) for item in given):
        return (tuple(item for item in given if isinstance(item, int)),)
    if any(isinstance(item, int) for item in given):
        raise invalid_field("input", "has texts and tokens in one list; send one kind")
    return tuple(item if isinstance(item, str) else tuple(item) for item in given if not isinstance(item, int))


def _body(found: Embeddings, as_base64: bool) -> bytes:
    """OpenAI's list. Many numbers: to be made off the event loop, one embedding after the other."""
    data: list[str] = []
    for i, vector in enumerate(found.vectors):
        values: Any = base64.b64encode(vector).decode() if as_base64 else found.values(i)
        data.append(json.dumps({"object": "embedding", "index": i, "embedding": values}))
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    rest = json.dumps({"object": "list", "model": model_name(found.adapters), "usage": usage}, ensure_ascii=False)
    return f'{rest[:-1]}, "data": [{", ".join(data)}]}}'.encode()
