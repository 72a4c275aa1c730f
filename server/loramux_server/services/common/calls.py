"""The calls that a door answers, whatever its protocol: each has an id, is counted, and ends with a reason."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog

from ...core.call import Call, current, enter, known
from ...core.callers.principal import Principal
from ...core.errors import Code, Error, internal_error, invalid_field, shutting_down
from ...core.observing.observer import CallFinished, CallSink, CallSpan, CallTracer, RequestRefused
from ...telemetry.logs import get_logger
from ..access.access import Access, Incoming
from ..access.audit import CallAudit
from ..access.methods import Method
from ..access.quotas import Rate
from ..access.refusals import invalid
from .deadlines import code_of_cancelled
from .shielding import to_the_end

logger = get_logger(__name__)

R = TypeVar("R")

LAST_WORDS = 3.0
"""Seconds at most for calls that are ended to say why; callers that read nothing hold the stop up for so long."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")


@dataclass(slots=True)
class GenerationLimit:
    """How many calls may wait for the engine at once, over all doors; more are refused unread.

    A tenant that floods refuses nobody but itself: where ``most`` is reached, those that have less than their even
    share of it are still taken.
    """

    most: int
    _of: Counter[str] = field(default_factory=Counter)

    @property
    def running(self) -> int:
        """Calls of all tenants."""
        return self._of.total()

    @contextmanager
    def held(self, tenant: str) -> Iterator[None]:
        """Count a call. Raises RESOURCE_EXHAUSTED for a tenant that has its share when the limit is reached."""
        tenants = len(self._of.keys() | {tenant})
        if self.running >= self.most and self._of[tenant] * tenants >= self.most:
            raise _queue_full(self.most)
        self._of[tenant] += 1
        try:
            yield
        finally:
            self._of[tenant] -= 1
            self._of += Counter()  # drops who has none


@dataclass(slots=True)
class _Running:
    """A call that is being answered."""

    asks_for: Method
    key_id: str = ""
    ended: Error | None = None
    """Why the server ends it, once it does."""


class Calls:
    """The calls of one door. ``sink`` is told of each; the other parts are shared with the other doors.

    ``tracer`` makes a span of each; None: there are none.
    """

    def __init__(
        self,
        sink: CallSink,
        limit: GenerationLimit,
        access: Access,
        audit: CallAudit | None = None,
        tracer: CallTracer | None = None,
    ) -> None:
        self.limit = limit
        self._tracer = tracer
        self._sink = sink
        self._access = access
        self._audit = audit
        self._tasks: dict[asyncio.Task[Any], _Running] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Calls that are being answered."""
        return len(self._tasks)

    def rates(self) -> list[Rate]:
        """What the caller of the task's call has left of its quotas of a minute; nothing while it is unknown."""
        call = known()
        return [] if call is None else self._access.rates(call.principal)

    def refused(self, event: RequestRefused) -> None:
        """What came to the door was refused before it was a call."""
        self._sink.request_refused(event)

    async def wait_idle(self) -> None:
        """Return when no call is being answered."""
        await self._idle.wait()

    async def drain(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds for the calls, then end the rest with UNAVAILABLE; gives their number.

        Those that follow a job are not waited for. New calls must be refused by then.
        """
        self._end(shutting_down(), lambda running: running.asks_for.follows_a_job)
        await self._idle_within(timeout)
        left = self.running
        if left:
            self.fail_running()
            await self._idle_within(LAST_WORDS)
        return left

    async def _idle_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait_idle()

    def fail_running(self) -> None:
        """End all calls with UNAVAILABLE because the server stops."""
        self._end(shutting_down(), lambda running: True)

    def fail_key(self, key_id: str) -> None:
        """End the calls of a key with UNAUTHENTICATED because it was revoked."""
        self._end(invalid(), lambda running: running.key_id == key_id)

    def _end(self, error: Error, which: Callable[[_Running], bool]) -> None:
        for task, running in list(self._tasks.items()):
            if which(running):
                running.ended = error
                task.cancel()

    async def answer(
        self, incoming: Incoming, work: Callable[[], Awaitable[R]], *, gone: Callable[[], bool] = lambda: False
    ) -> R:
        """What ``work`` gives, counted before the caller can know how the call ended. The task becomes the call's.

        The caller is known, allowed and within its quotas, and a generation within the limit, before ``work`` reads
        the request. ``gone`` tells whether the caller has left. Raises ``Error`` alone, which is for the caller,
        beside CancelledError; a defect is INTERNAL with an id that the log has beside the traceback.
        """
        structlog.contextvars.bind_contextvars(request_id=incoming.request_id)
        span = None if self._tracer is None else self._tracer.begin(incoming.arrival, incoming.trace)
        if span is not None:
            incoming = replace(incoming, trace=span.context)
        if (trace := incoming.trace) is not None:
            structlog.contextvars.bind_contextvars(trace_id=trace.trace_id, span_id=trace.span_id)
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = _Running(incoming.asks_for)
        self._idle.clear()
        try:
            return await self._counted(incoming, span, work, task, gone)
        finally:
            del self._tasks[task]
            if not self._tasks:
                self._idle.set()

    async def _counted(
        self,
        incoming: Incoming,
        span: CallSpan | None,
        work: Callable[[], Awaitable[R]],
        task: asyncio.Task[Any],
        gone: Callable[[], bool],
    ) -> R:
        started = time.monotonic()
        code, failure = "OK", None
        enter(None)
        try:
            result = await self._answered(incoming, work, task, gone)
            if self._audit is not None and self._audit.wants(incoming, code):
                # What was acknowledged is on disk first, and this is part of it.
                await to_the_end(self._audit.done(incoming, current()))
            return result
        except Error as error:
            code, failure = error.code.name, error
            raise
        except BaseException:  # the caller has left
            code = code_of_cancelled(incoming.deadline).name
            raise
        finally:
            reason = "" if failure is None else failure.reason
            if code != "OK" and self._audit is not None and self._audit.wants(incoming, code):
                await to_the_end(self._audit.failed(incoming, known(), code, reason))
            seconds = time.monotonic() - started
            event = _finished(incoming, known(), code, reason, seconds)
            self._sink.call_finished(event)
            if span is not None:
                span.end(event, incoming.arrival.answered(code, failure))

    async def _answered(
        self,
        incoming: Incoming,
        work: Callable[[], Awaitable[R]],
        task: asyncio.Task[Any],
        gone: Callable[[], bool],
    ) -> R:
        """What ``work`` gives to a caller who is known and allowed. Errors are those of ``answer``."""
        try:
            call = await self._access.identify(incoming)
            enter(call)
            self._tasks[task].key_id = call.principal.key_id
            self._access.authorise(incoming, call.principal)
            # Not before it is known who calls: places are not for those who are refused.
            with self._taken(incoming, call.principal):
                return await work()
        except asyncio.CancelledError:
            if (ended := self._tasks[task].ended) is not None:
                task.uncancel()
                raise ended from None
            raise  # never swallowed: grpc.aio leaks a little for every handler that does
        except Error as error:
            if error.exceeded is not None:
                self._sink.quota_refused(current().principal.tenant, error.exceeded.limit)
            raise
        except Exception:
            if gone():
                raise
            error_id, internal = internal_error()
            logger.exception("call failed", method=incoming.method, error_id=error_id)
            raise internal from None

    @contextmanager
    def _taken(self, incoming: Incoming, principal: Principal) -> Iterator[None]:
        """Count a call against the limit of generations and the quotas of its caller while it is answered."""
        limit = self.limit.held(principal.tenant) if incoming.asks_for.generates else nullcontext()
        with limit, self._access.admit(incoming, principal):
            yield


def rename(request_id: str) -> Call:
    """The current call under the id that its request names. Raises INVALID_ARGUMENT for one that cannot be used."""
    if not is_request_id(request_id):
        raise invalid_field("request_id", "must be at most 128 printable ASCII characters without spaces")
    call = replace(current(), request_id=request_id)
    enter(call)
    structlog.contextvars.bind_contextvars(request_id=request_id)
    return call


def request_id(*given: str) -> str:
    """The first id that a caller gave, or a new one where it is none that can be used."""
    found = next(filter(None, given), "")
    return found if is_request_id(found) else uuid.uuid4().hex


def is_request_id(text: str) -> bool:
    """Whether ``text`` can be the id of a request: at most 128 printable ASCII characters without spaces."""
    return _REQUEST_ID.fullmatch(text) is not None


def _finished(incoming: Incoming, call: Call | None, code: str, reason: str, seconds: float) -> CallFinished:
    return CallFinished(
        door=incoming.door,
        method=incoming.short_method,
        request_id=incoming.request_id if call is None else call.request_id,
        call=call,
        peer=incoming.credentials.peer,
        code=code,
        reason=reason,
        seconds=seconds,
        of_the_server=not incoming.asks_for.counted,
        follows_a_job=incoming.asks_for.follows_a_job,
    )


def _queue_full(most: int) -> Error:
    message = f"the server has {most} generations to do and takes no more now (--max-running, --max-queue); try again"
    return Error(Code.RESOURCE_EXHAUSTED, message, reason="QUEUE_FULL", retry_after=1.0)
