"""Generation, scoring, embedding and tokenisation."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ...core.backend import GenerateCommand
from ...core.bounds import GREEDY_BELOW
from ...core.call import computes_with, known
from ...core.errors import invalid
from ...core.observing.observer import NullObserver, Observer
from ...core.types import Chunk, FinishReason, Grammar, SamplingParams, Usage
from ...text import StopMatcher
from ...text.answers.forced_calls import ToolMode
from ..common.context import Context
from ..common.deadlines import Preparation
from ..common.stacks import active
from ..common.workers import prepare
from .answer import Answer, Prepared
from .checks import check_generation, prompt_violations
from .choice import ChoiceDecoder
from .embedding import Embedder
from .prompts import check_context, encode_prompt, required_calls
from .scoring import Scorer
from .types import (
    Asked,
    Choice,
    Completion,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    Score,
    ScoreRequest,
    Tokens,
)


class GenerationService:
    """Answers requests from one engine. One instance serves all doors; all methods run on the event loop.

    ``defaults``: the sampling of a request that names none, to which doors add what the caller set.
    """

    def __init__(
        self, context: Context, observer: Observer | None = None, defaults: SamplingParams = SamplingParams()
    ) -> None:
        self.defaults = defaults
        self._backend, self._text = context.backend, context.text
        self._info, self._limits = context.info, context.limits
        self._observer = observer or NullObserver()
        self._meter = context.meter
        self._stacks = context.stacks
        self._preparation = Preparation(context.limits.max_request_seconds)
        self._scorer = Scorer(context, self._stacks, self._observer, self._preparation)
        self._embedder = Embedder(context, self._stacks, self._observer, self._preparation)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk]:
        """Stream an answer.

        Chunks of the ``n`` choices come as they are made, told apart by ``index``. Everything that can be refused
        is refused before the first chunk. Closing the iterator early stops the engine's work. Raises ``Error``:
        INVALID_ARGUMENT (all bad fields at once), NOT_FOUND (adapter), RESOURCE_EXHAUSTED (tokens of the minute),
        DEADLINE_EXCEEDED, what the engine reports.
        ``max_tokens`` is cut to what the prompt leaves of the model's context.
        """
        prepared = await self._prepare(request)
        with self._meter.reserve(request.principal, prepared.most_tokens) as reservation:
            answer = Answer(self._backend, prepared, self._observer, reservation)
            async with self._stacks.held(prepared.stack), aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def generate_once(self, request: GenerateRequest) -> Completion:
        """The whole answer of ``generate`` at once; the same errors."""
        parts: dict[int, list[Chunk]] = {}
        last = Chunk()
        async with aclosing(self.generate(request)) as chunks:
            async for chunk in chunks:
                parts.setdefault(chunk.index, []).append(chunk)
                last = chunk
        return Completion(
            id=request.request_id,
            choices=tuple(_join(index, parts[index]) for index in sorted(parts)),
            usage=last.usage or Usage(),
            adapters=last.adapters,
        )

    async def score(self, request: ScoreRequest) -> Score:
        """Log-probabilities of a given continuation. Raises as ``generate`` does."""
        return await self._scorer.score(request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """An embedding of each text. Raises as ``generate`` does."""
        return await self._embedder.embed(request)

    async def tokenize(self, request: Asked) -> Tokens:
        """Token ids of exactly one of a plain prompt and messages, as ``generate`` would feed them to the model."""
        if violations := [*prompt_violations(request, self._limits, answered=False)]:
            raise invalid(violations)
        async with self._preparation.turn(request.deadline):
            return await prepare(lambda: self._tokens(request))

    async def count(self, request: GenerateRequest) -> int:
        """Tokens of the prompt of a generation, tools included. An adapter that is unknown is NOT_FOUND here too."""
        await self._stacks.resolve(request.adapters, request.principal)
        return len((await self.tokenize(_with_tools_shown(request))).ids)

    def token_text(self, token_id: int) -> str:
        """The text of one token, for log-probabilities (bytes that are no character by themselves become U+FFFD)."""
        return self._text.token_text(token_id)

    async def _prepare(self, request: GenerateRequest) -> Prepared:
        """Check everything that can be checked, and pin what the request will use."""
        started = time.monotonic()
        shape = check_generation(request, self._limits, self._info.vocab_size)
        request = _with_tools_shown(request)
        async with self._preparation.turn(request.deadline) as deadline:
            ids, calls = await prepare(lambda: self._read(request))
            check_context(request.prompt, len(ids), self._info.max_context)
            stack = await self._stacks.resolve(request.adapters, request.principal)
        computes_with(stack)
        grammar = calls or shape
        sampling = self._sampling(request.sampling, left=self._info.max_context - len(ids))
        run = uuid.uuid4().hex
        ends = sampling.end_ids(self._info.eos_token_ids, grammar is not None)
        # In a shape an answer ends where the shape does: a stop string could only cut it off before.
        stop = request.stop if grammar is None else ()
        # What goes on in the middle of a text keeps its first space; so does a shape.
        exact = grammar is not None or request.continue_final_message
        return Prepared(
            request_id=request.request_id or run,
            tenant=request.principal.tenant,
            stack=stack,
            prompt_tokens=len(ids),
            commands=tuple(
                GenerateCommand(
                    id=f"{run}-{i}",
                    prompt_ids=tuple(ids),
                    stack=active(stack),
                    sampling=replace(sampling, seed=_seed(sampling.seed, i)),
                    tenant=request.principal.tenant,
                    seconds_left=deadline - time.monotonic(),
                    grammar=grammar,
                )
                for i in range(request.n)
            ),
            decoders=tuple(
                ChoiceDecoder(
                    i,
                    self._text.detokenizer(exact=exact),
                    StopMatcher(stop),
                    ends,
                    sampling.min_tokens,
                )
                for i in range(request.n)
            ),
            deadline=deadline,
            started=started,
            chat=bool(request.messages),
            call=known(),
        )

    def _read(self, request: GenerateRequest) -> tuple[list[int], Grammar | None]:
        """The prompt's ids, and the grammar of the calls that are required."""
        ids, _ = encode_prompt(self._text, request)
        return ids, required_calls(self._text, request, self._limits.max_grammar_bytes)

    @staticmethod
    def _sampling(sampling: SamplingParams, left: int) -> SamplingParams:
        """What the engine gets: within the context, without a temperature too small to divide by, seeded."""
        max_tokens = min(sampling.max_tokens, left)
        temperature = sampling.temperature if sampling.temperature >= GREEDY_BELOW else 0.0
        return replace(
            sampling,
            max_tokens=max_tokens,
            min_tokens=min(sampling.min_tokens, max_tokens),
            temperature=temperature,
            seed=secrets.randbits(62) if sampling.seed is None and temperature else sampling.seed,
        )

    def _tokens(self, request: Asked) -> Tokens:
        ids, shown = encode_prompt(self._text, request)
        return Tokens(
            ids=tuple(ids),
            pieces=tuple(self._text.token_text(id) for id in ids),
            text=shown,
            token_bytes=tuple(self._text.token_bytes(id) for id in ids),
        )


def _with_tools_shown(request: GenerateRequest) -> GenerateRequest:
    """The request without its tools where none may be called."""
    return replace(request, tools="") if request.tool_choice.mode is ToolMode.NONE else request


def _seed(seed: int | None, index: int) -> int | None:
    """The seed of a choice: consecutive from the request's, staying within 64 bits."""
    return None if seed is None else (seed + index + 2**63) % 2**64 - 2**63


def _join(index: int, chunks: list[Chunk]) -> Choice:
    return Choice(
        index=index,
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
        finish_reason=next((c.finish_reason for c in reversed(chunks) if c.finish_reason), FinishReason.ERROR),
    )
