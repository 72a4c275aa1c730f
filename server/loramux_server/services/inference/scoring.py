"""Log-probabilities of a text that the caller already has."""

from __future__ import annotations

import time
import uuid

from ...core.backend import ScoreCommand
from ...core.bounds import text_violations
from ...core.call import computes_with, known
from ...core.errors import FieldViolation, invalid, invalid_field
from ...core.observing.observer import Observer, RequestStarted
from ..common.checks import stack_violations
from ..common.context import Context
from ..common.deadlines import Preparation, until
from ..common.stacks import StackResolver, active
from ..common.workers import prepare
from .checks import prompt_violations
from .observed import observed
from .prompts import check_context, encode_prompt
from .types import Score, ScoreRequest


class Scorer:
    """The score use case; ``GenerationService`` holds one."""

    def __init__(self, context: Context, stacks: StackResolver, observer: Observer, preparation: Preparation) -> None:
        self._backend, self._text = context.backend, context.text
        self._info, self._limits = context.info, context.limits
        self._stacks = stacks
        self._meter = context.meter
        self._observer = observer
        self._preparation = preparation

    async def score(self, request: ScoreRequest) -> Score:
        """Log-probabilities of ``request.continuation``, one per token."""
        started = time.monotonic()
        violations = [
            *prompt_violations(request, self._limits),
            *text_violations("continuation", request.continuation, self._limits.max_prompt_bytes),
            *stack_violations(request.adapters),
        ]
        if violations:
            raise invalid(violations)
        async with self._preparation.turn(request.deadline) as deadline:
            prompt_ids, ids = await prepare(lambda: self._encode(request))
            stack = await self._stacks.resolve(request.adapters, request.principal)
        computes_with(stack)
        command = ScoreCommand(
            id=uuid.uuid4().hex,
            prompt_ids=tuple(prompt_ids),
            continuation_ids=tuple(ids),
            stack=active(stack),
            tenant=request.principal.tenant,
        )
        tokens = len(prompt_ids) + len(ids)
        with self._meter.reserve(request.principal, tokens) as reservation:
            reservation.spent = tokens
            async with self._stacks.held(stack):
                begun = RequestStarted(
                    request.request_id or command.id, "score", command.tenant, stack, len(prompt_ids), known()
                )
                with observed(self._observer, begun, started, deadline, completion_tokens=len(ids)) as seen:
                    async with until(deadline):
                        result = await self._backend.score(command)
                    seen.times, seen.cached_tokens = result.times, result.cached_tokens
        return Score(
            token_ids=command.continuation_ids,
            tokens=tuple(self._text.token_text(id) for id in ids),
            token_bytes=tuple(self._text.token_bytes(id) for id in ids),
            logprobs=result.logprobs,
            greedy=result.greedy,
            prompt_tokens=len(prompt_ids),
            adapters=stack.entries,
            cached_tokens=result.cached_tokens,
        )

    def _encode(self, request: ScoreRequest) -> tuple[list[int], list[int]]:
        prompt_ids, _ = encode_prompt(self._text, request)
        check_context(request.prompt, len(prompt_ids), self._info.max_context)
        ids = self._text.encode_continuation(request.continuation, field="continuation")
        left = self._info.max_context - len(prompt_ids)
        if not ids:
            raise invalid_field("continuation", "has no tokens; give some text")
        if len(ids) > left:
            description = (
                f"has {len(ids)} tokens, but the prompt's {len(prompt_ids)} leave {left}"
                f" of the model's context of {self._info.max_context}"
            )
            raise invalid([FieldViolation("continuation", description)], reason="PROMPT_TOO_LONG")
        return prompt_ids, ids
