"""What every call gets, whatever its method: an id, its errors turned into statuses, its time counted, an end.

grpc.aio would answer any exception with UNKNOWN and its text; here only ``Error`` speaks to the caller, and a
defect is INTERNAL with an id that the log has beside the traceback.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, NoReturn, Protocol

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio

from ..core import call as calls
from ..core.errors import Code, Error, invalid_field
from ..core.principal import LOCAL
from ..telemetry.logs import get_logger
from .entries import check_entries
from .status import DETAILS_KEY, STATUS, to_status

logger = get_logger(__name__)

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
GENERATES = frozenset(("Generate", "GenerateOnce", "Score"))
"""Methods that wait for the engine."""
NO_DEADLINE = 10 * 365 * 86400.0
"""Seconds; gRPC tells a missing deadline as one that is further away than this."""


class CallSink(Protocol):
    """Where calls are counted."""

    def call_finished(self, method: str, code: str, seconds: float) -> None: ...


class _Malformed:
    """Bytes that were no message of the expected type."""


class CallInterceptor(aio.ServerInterceptor):
    """Wraps every method of ``loramux.*``; health and reflection pass untouched.

    ``stall_timeout``: seconds that a caller may neither take the next message of an answer nor send the next one
    of an upload. ``max_generations``: calls that wait for the engine at once; more are refused unread.
    """

    def __init__(self, sink: CallSink, *, stall_timeout: float = 60.0, max_generations: int = 1088) -> None:
        self._sink = sink
        self._max_generations = max_generations
        self._generations = 0
        self._stall_timeout = stall_timeout
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self._failing: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Calls that are being answered."""
        return len(self._tasks)

    async def wait_idle(self) -> None:
        """Return when no call is being answered."""
        await self._idle.wait()

    def fail_running(self, methods: Iterable[str] | None = None) -> None:
        """End calls (all, or those of ``methods``) with UNAVAILABLE because the server stops."""
        chosen = None if methods is None else frozenset(methods)
        for task, method in list(self._tasks.items()):
            if chosen is None or method in chosen:
                self._failing.add(task)
                task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        full_name = str(handler_call_details.method)
        if handler is None or not full_name.startswith("/loramux."):
            return handler
        method = full_name.rpartition("/")[2]
        given_id = next((str(v) for k, v in handler_call_details.invocation_metadata or () if k == REQUEST_ID_KEY), "")
        full = self._full(method)
        options = {
            "request_deserializer": None if full else _lenient(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }

        async def answer(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            return await self._run(method, given_id, request, context, handler, full)

        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else None
            return (make or grpc.unary_stream_rpc_method_handler)(answer, **options)
        make_unary = grpc.stream_unary_rpc_method_handler if handler.request_streaming else None
        return (make_unary or grpc.unary_unary_rpc_method_handler)(answer, **options)

    def _full(self, method: str) -> bool:
        return method in GENERATES and self._generations >= self._max_generations

    async def _run(
        self,
        method: str,
        given_id: str,
        request: Any,
        context: aio.ServicerContext[Any, Any],
        handler: grpc.RpcMethodHandler[Any, Any],
        full: bool,
    ) -> Any:
        request_id = getattr(request, "request_id", "") or given_id
        call = calls.Call(
            method=method,
            request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
            principal=LOCAL,
            deadline=_deadline(context, time.monotonic()),
        )
        calls.enter(call)
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        task = asyncio.current_task()
        assert task is not None
        full = full or self._full(method)  # others came while the message did
        self._tasks[task] = method
        admitted = method in GENERATES and not full
        self._generations += admitted
        self._idle.clear()
        try:
            return await self._counted(call, request, context, handler, full)
        except Error as error:
            await _abort(context, call, error)
        finally:
            del self._tasks[task]
            self._generations -= admitted
            self._failing.discard(task)
            if not self._tasks:
                self._idle.set()

    async def _counted(
        self,
        call: calls.Call,
        request: Any,
        context: aio.ServicerContext[Any, Any],
        handler: grpc.RpcMethodHandler[Any, Any],
        full: bool,
    ) -> Any:
        """The answer, counted before the caller can know how the call ended. Raises Error for what it is told."""
        started = time.monotonic()
        code = "OK"
        try:
            if full:
                raise _queue_full(self._max_generations)
            _check(request)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            return await self._answer(handler, request, context)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task in self._failing:
                code = Code.UNAVAILABLE.name
                task.uncancel()
                raise _stopping() from None
            code = self._cancel_code(call)
            # Never swallowed: grpc.aio leaks a little for every handler that does.
            raise
        except Error as error:
            code = error.code.name
            raise
        except Exception:
            if context.done():
                code = self._cancel_code(call)
                raise
            code = Code.INTERNAL.name
            error_id = uuid.uuid4().hex[:12]
            logger.exception("call failed", method=call.method, error_id=error_id)
            raise Error(Code.INTERNAL, f"internal error; the server's log has it as {error_id}") from None
        finally:
            seconds = time.monotonic() - started
            self._sink.call_finished(call.method, code, seconds)
            logger.debug("call", method=call.method, code=code, seconds=round(seconds, 4))

    async def _answer(
        self, handler: grpc.RpcMethodHandler[Any, Any], request: Any, context: aio.ServicerContext[Any, Any]
    ) -> Any:
        if handler.request_streaming:
            request = self._messages(request)
        if not handler.response_streaming:
            behaviour: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
            return await behaviour(request, context)
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        # Written from here instead of yielded to grpc, so that a cancel closes the stream behind it at once.
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                try:
                    async with asyncio.timeout(self._stall_timeout):
                        await context.write(response)
                except TimeoutError:
                    raise Error(
                        Code.ABORTED, f"nothing was read for {self._stall_timeout:g} s", reason="SLOW_READER"
                    ) from None
        return None

    async def _messages(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        while True:
            try:
                async with asyncio.timeout(self._stall_timeout):
                    message = await anext(requests)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Error(
                    Code.DEADLINE_EXCEEDED, f"nothing was sent for {self._stall_timeout:g} s", reason="UPLOAD_STALLED"
                ) from None
            if isinstance(message, _Malformed):
                raise _not_a_message()
            check_entries(message)
            yield message

    @staticmethod
    def _cancel_code(call: calls.Call) -> str:
        late = call.deadline is not None and time.monotonic() >= call.deadline
        return (Code.DEADLINE_EXCEEDED if late else Code.CANCELLED).name


async def _abort(context: aio.ServicerContext[Any, Any], call: calls.Call, error: Error) -> NoReturn:
    status = to_status(error, call.request_id)
    trailing = ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, call.request_id))
    await context.abort(STATUS[error.code], status.message, trailing)
    raise AssertionError("abort returns")


def _deadline(context: aio.ServicerContext[Any, Any], now: float) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None or remaining > NO_DEADLINE else now + remaining


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer whose failure reaches the handler instead of becoming UNKNOWN."""
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:  # protobuf's implementations raise different types
            return _Malformed()

    return read


def _check(request: Any) -> None:
    """Raise INVALID_ARGUMENT for what no method takes."""
    if isinstance(request, _Malformed):
        raise _not_a_message()
    named: str = getattr(request, "request_id", "")
    if named and _REQUEST_ID.fullmatch(named) is None:
        raise invalid_field("request_id", "must be at most 128 printable ASCII characters without spaces")
    if isinstance(request, Message):
        check_entries(request)


def _not_a_message() -> Error:
    return Error(Code.INVALID_ARGUMENT, "the request is not a message of the expected type", reason="MALFORMED")


def _queue_full(most: int) -> Error:
    words = f"the server has {most} generations to do and takes no more now (--max-running, --max-queue); try again"
    return Error(Code.RESOURCE_EXHAUSTED, words, reason="QUEUE_FULL", retry_after=1.0)


def _stopping() -> Error:
    return Error(Code.UNAVAILABLE, "the server is shutting down", reason="SHUTTING_DOWN", retry_after=1.0)
