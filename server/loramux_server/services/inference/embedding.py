"""Embeddings of texts: the hidden states of the base under a stack, pooled."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from itertools import islice

from ...core.backend import EmbedCommand
from ...core.bounds import text_violations, too_many
from ...core.call import computes_with, known
from ...core.errors import FieldViolation, invalid
from ...core.observing.observer import Observer, RequestStarted
from ..common.checks import stack_violations
from ..common.context import Context
from ..common.deadlines import Preparation, until
from ..common.stacks import StackResolver, active
from ..common.workers import prepare
from .observed import Observed, observed
from .types import Embeddings, EmbedRequest

AT_ONCE = 16
"""Texts of one request that are in the engine together: others' requests are not to queue behind all of them."""
MAX_ANSWER_BYTES = 48 << 20
"""Bytes of the embeddings of one request, so that an answer fits in a message."""
MAX_VIOLATIONS = 20


class Embedder:
    """The embed use case; ``GenerationService`` holds one."""

    def __init__(self, context: Context, stacks: StackResolver, observer: Observer, preparation: Preparation) -> None:
        self._backend, self._text = context.backend, context.text
        self._info, self._limits = context.info, context.limits
        self._stacks = stacks
        self._meter = context.meter
        self._observer = observer
        self._preparation = preparation

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One embedding for each input, in their order."""
        started = time.monotonic()
        if violations := [*islice(self._violations(request), MAX_VIOLATIONS)]:
            raise invalid(violations)
        async with self._preparation.turn(request.deadline) as deadline:
            prompts = await prepare(lambda: self._encode(request))
            stack = await self._stacks.resolve(request.adapters, request.principal)
        computes_with(stack)
        run = uuid.uuid4().hex
        commands = [
            EmbedCommand(
                id=f"{run}-{i}",
                prompt_ids=ids,
                stack=active(stack),
                pooling=request.pooling,
                normalize=request.normalize,
                tenant=request.principal.tenant,
            )
            for i, ids in enumerate(prompts)
        ]
        tokens = sum(map(len, prompts))
        with self._meter.reserve(request.principal, tokens) as reservation:
            reservation.spent = tokens
            async with self._stacks.held(stack):
                tenant = request.principal.tenant
                begun = RequestStarted(request.request_id or run, "embed", tenant, stack, tokens, known())
                with observed(self._observer, begun, started, deadline) as seen:
                    async with until(deadline):
                        vectors = await self._all(commands, seen)
        return Embeddings(vectors, self._info.hidden_size, tokens, stack.entries)

    def _violations(self, request: EmbedRequest) -> Iterator[FieldViolation]:
        most = min(self._limits.max_embed_inputs, MAX_ANSWER_BYTES // (4 * max(1, self._info.hidden_size)))
        if not request.input:
            yield FieldViolation("input", "is empty; give at least one text")
        yield from too_many("input", len(request.input), most, "texts")
        yield from stack_violations(request.adapters)
        if request.dimensions not in (None, self._info.hidden_size):
            what = f"is {request.dimensions}; embeddings of this base have {self._info.hidden_size} dimensions"
            yield FieldViolation("dimensions", f"{what}, and fewer of them would mean nothing: leave it out")
        vocab_size = self._info.vocab_size
        for i, given in enumerate(request.input[:most]):
            if isinstance(given, str):
                yield from text_violations(f"input[{i}]", given, self._limits.max_prompt_bytes)
            elif not given:
                yield FieldViolation(f"input[{i}]", "is empty; give at least one token")
            elif min(given) < 0 or max(given) >= vocab_size:
                what = f"has token ids from {min(given)} to {max(given)}; those of this model are 0 to {vocab_size - 1}"
                yield FieldViolation(f"input[{i}]", what)

    def _encode(self, request: EmbedRequest) -> list[tuple[int, ...]]:
        """Token ids of each input. Raises INVALID_ARGUMENT for those that are empty or longer than the context."""
        prompts: list[tuple[int, ...]] = []
        found: list[FieldViolation] = []
        longest = self._info.max_context
        for i, given in enumerate(request.input):
            field = f"input[{i}]"
            ids = tuple(self._text.encode(given, field=field)) if isinstance(given, str) else given
            if not ids:
                found.append(FieldViolation(field, "has no tokens; give some text"))
            elif len(ids) > longest:
                what = f"has {len(ids)} tokens; the model's context is {longest} tokens. Shorten or cut it"
                found.append(FieldViolation(field, what))
            prompts.append(ids)
        if found:
            raise invalid(found[:MAX_VIOLATIONS], reason="PROMPT_TOO_LONG" if all(prompts) else "INVALID_ARGUMENT")
        return prompts

    async def _all(self, commands: list[EmbedCommand], seen: Observed) -> tuple[bytes, ...]:
        """What the engine gives for each, a few at a time; the first failure ends them all."""
        few = asyncio.Semaphore(AT_ONCE)

        async def one(command: EmbedCommand) -> bytes:
            async with few:
                result = await self._backend.embed(command)
                seen.times = result.times
                return result.values

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(command)) for command in commands]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return tuple(task.result() for task in tasks)
