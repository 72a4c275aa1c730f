"""One request on its way through the engine: n choices in, one stream of chunks out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from ...core.backend import Backend, GenerateCommand, SequenceTimes, TokenEvent
from ...core.call import Call
from ...core.errors import Code, Error
from ...core.observing.observer import Observer, RequestFinished, RequestStarted
from ...core.types import Chunk, FinishReason, Stack, Usage
from ..access.quotas import Reservation
from ..common.deadlines import code_of_cancelled, until
from .choice import ChoiceDecoder
from .stream_mux import read_together

_OWN_FAILURES = frozenset({Code.INTERNAL, Code.DATA_LOSS})
"""Codes of failures that concern one choice (not-a-number logits); any other ends the whole request."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that passed all checks. ``commands`` and ``decoders`` are by choice."""

    request_id: str
    tenant: str
    stack: Stack
    prompt_tokens: int
    commands: tuple[GenerateCommand, ...]
    decoders: tuple[ChoiceDecoder, ...]
    deadline: float
    started: float
    """When the request came, on the monotonic clock."""
    chat: bool = False
    """It was asked for with messages."""
    call: Call | None = None
    """The call that asks; None: the server itself does."""

    @property
    def most_tokens(self) -> int:
        """Tokens that are computed at most: the prompt once, and every choice as long as it may be."""
        return self.prompt_tokens + sum(command.sampling.max_tokens for command in self.commands)


class Answer:
    """Runs a prepared request once; tells the observer what came of it, whichever way it ends."""

    def __init__(self, backend: Backend, prepared: Prepared, observer: Observer, reservation: Reservation) -> None:
        self._backend = backend
        self._prepared = prepared
        self._observer = observer
        self._reservation = reservation
        self._begun = prepared.started
        self._first_token: float | None = None
        self._tokens = [_TokenTimes() for _ in prepared.commands]
        self._latest = self._tokens[0]
        self._code, self._reason = Code.CANCELLED.name, ""

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """Chunks of all choices. Closing this early aborts what the engine still does for it."""
        p = self._prepared
        self._begun = time.monotonic()
        self._observer.request_started(
            RequestStarted(p.request_id, "generate", p.tenant, p.stack, p.prompt_tokens, p.call)
        )
        merge = read_together([self._backend.generate(command) for command in p.commands])
        begun = False
        unfinished = len(p.commands)
        failure: Error | None = None
        try:
            while unfinished:
                async with until(p.deadline):
                    index, event = await merge.next()
                if event is None:
                    raise Error(Code.UNAVAILABLE, "the engine stopped before the answer was complete; try again")
                self._note(index, event)
                if event.finish_reason is FinishReason.ERROR:
                    failure = _failure(event)
                    if failure.code not in _OWN_FAILURES:
                        raise failure
                chunk = p.decoders[index].push(event)
                if chunk.finish_reason is not None:
                    unfinished -= 1
                    await merge.stop(index)
                if not begun:
                    chunk = replace(chunk, usage_so_far=self._usage(), adapters=p.stack.entries)
                if not unfinished:
                    if failure is not None and self._all_failed():
                        raise failure
                    # A caller with the last chunk has the whole answer, and may stop reading.
                    self._code = "OK"
                    yield replace(chunk, usage=self._usage(), adapters=p.stack.entries)
                elif chunk.text or chunk.token_ids or chunk.finish_reason is not None:
                    yield chunk
                    begun = True
        except Error as error:
            self._code, self._reason = error.code.name, error.reason
            raise
        except Exception:
            self._code = Code.INTERNAL.name
            raise
        except BaseException:  # the caller has left, with the whole answer or without
            if self._code != "OK":
                self._code = code_of_cancelled(p.deadline).name
            raise
        finally:
            try:
                await merge.aclose()
            finally:
                # The prompt counts even where nothing came of it: who cancels at once has had it computed.
                usage = self._usage()
                self._reservation.spent = usage.prompt_tokens + usage.completion_tokens
                self._observer.request_finished(self._finished())

    def _note(self, index: int, event: TokenEvent) -> None:
        choice = self._latest = self._tokens[index]
        choice.engine = event.times or choice.engine
        if not event.token_ids:
            return
        now = time.monotonic()
        before = choice.add(now)
        if self._first_token is None:
            self._first_token = now
            self._reservation.answered()
            self._observer.answered(self._prepared.tenant, self._prepared.stack, now - self._prepared.started)
        interval = None if before is None else now - before
        self._observer.tokens(self._prepared.tenant, self._prepared.stack, len(event.token_ids), interval)

    def _all_failed(self) -> bool:
        return all(decoder.finish_reason is FinishReason.ERROR for decoder in self._prepared.decoders)

    def _usage(self) -> Usage:
        decoders = self._prepared.decoders
        return Usage(
            prompt_tokens=self._prepared.prompt_tokens,
            completion_tokens=sum(decoder.tokens for decoder in decoders),
            # What one choice leaves in the cache for the next is no saving of the request.
            cached_tokens=min(decoder.cached_tokens for decoder in decoders),
        )

    def _finished(self) -> RequestFinished:
        p, usage = self._prepared, self._usage()
        return RequestFinished(
            request_id=p.request_id,
            method="generate",
            tenant=p.tenant,
            stack=p.stack,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            duration=time.monotonic() - p.started,
            finish_reasons=tuple(d.finish_reason for d in p.decoders if d.finish_reason is not None),
            code=self._code,
            reason=self._reason,
            preparation=self._begun - p.started,
            time_to_first_token=None if self._first_token is None else self._first_token - p.started,
            times=self._latest.times(),
            chat=p.chat,
            sampling=p.commands[0].sampling,
            choices=len(p.commands),
            call=p.call,
        )


@dataclass(slots=True)
class _TokenTimes:
    """When the tokens of one choice came here, on the monotonic clock, and what the engine says about it."""

    first: float | None = None
    last: float | None = None
    engine: SequenceTimes | None = None

    def add(self, now: float) -> float | None:
        """Tokens came; gives when the ones before them did."""
        before, self.last = self.last, now
        self.first = now if self.first is None else self.first
        return before

    def times(self) -> SequenceTimes | None:
        """Where its time went. The engine's word on ``decode`` is missing where the front ended the choice."""
        if self.engine is None or self.engine.decode or self.first is None or self.last is None:
            return self.engine
        return replace(self.engine, decode=self.last - self.first)


def _failure(event: TokenEvent) -> Error:
    code = Code(event.error_code) if event.error_code in set(Code) else Code.INTERNAL
    return Error(code, event.error or "the engine could not complete the answer")
