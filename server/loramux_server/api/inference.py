"""Generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from loramux.v1 import inference_pb2 as pb

from ..core import call as calls
from ..services.availability import Availability
from ..services.common.workers import prepare
from .convert.inference import (
    chunk_to_proto,
    completion_to_proto,
    embed_from_proto,
    embeddings_to_proto,
    generate_from_proto,
    score_from_proto,
    score_to_proto,
    tokenize_from_proto,
    tokens_to_proto,
)


class InferenceMethods:
    """``loramux.v1.InferenceService``."""

    def __init__(self, availability: Availability) -> None:
        self._open = availability.open

    async def Generate(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse]:
        service, call = self._open().generation, calls.current()
        wanted = generate_from_proto(request, call, service.defaults)
        request_id = call.request_id
        async with aclosing(service.generate(wanted)) as chunks:
            async for chunk in chunks:
                response = chunk_to_proto(chunk, service.token_text)
                response.request_id, request_id = request_id, ""
                yield response

    async def GenerateOnce(self, request: pb.GenerateRequest) -> pb.GenerateResult:
        service = self._open().generation
        wanted = generate_from_proto(request, calls.current(), service.defaults)
        return completion_to_proto(await service.generate_once(wanted), service.token_text)

    async def Score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        service = self._open().generation
        return score_to_proto(await service.score(score_from_proto(request, calls.current())))

    async def Embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        service = self._open().generation
        found = await service.embed(embed_from_proto(request, calls.current()))
        return await prepare(lambda: embeddings_to_proto(found))  # many numbers: off the event loop

    async def Tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        service = self._open().generation
        return tokens_to_proto(await service.tokenize(tokenize_from_proto(request, calls.current())))
