"""What every gRPC call gets, whatever its method: an id, its errors turned into statuses, its time counted, an end.

grpc.aio would answer any exception with UNKNOWN and its text; here only ``Error`` speaks to the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc import aio

from ..core.call import Call
from ..core.errors import Code, Error, invalid_field
from ..core.principal import LOCAL
from ..services.common.calls import Calls, is_request_id, request_id
from .entries import check_entries
from .status import DETAILS_KEY, STATUS, to_status

REQUEST_ID_KEY = "x-request-id"
GENERATES = frozenset(("Generate", "GenerateOnce", "Score"))
"""Methods that wait for the engine."""
NO_DEADLINE = 10 * 365 * 86400.0
"""Seconds; gRPC tells a missing deadline as one that is further away than this."""

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class _Malformed:
    """Bytes that were no message of the expected type."""


class CallInterceptor(aio.ServerInterceptor):
    """Wraps every method of ``loramux.*``; health and reflection pass untouched.

    ``stall_timeout``: seconds that a caller may neither take the next message of an answer nor send the next one
    of an upload.
    """

    def __init__(self, calls: Calls, stall_timeout: float) -> None:
        self._calls = calls
        self._stall_timeout = stall_timeout

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        full_name = str(handler_call_details.method)
        if handler is None or not full_name.startswith("/loramux."):
            return handler
        method = full_name.rpartition("/")[2]
        given_id = next((str(v) for k, v in handler_call_details.invocation_metadata or () if k == REQUEST_ID_KEY), "")
        # Asked before the message is read: one that is refused costs nothing.
        refused = method in GENERATES and self._calls.limit.reached
        options = {
            "request_deserializer": None if refused else _lenient(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }

        async def answer(request: Any, context: Context) -> Any:
            call = Call(
                method=method,
                request_id=request_id(getattr(request, "request_id", ""), given_id),
                principal=LOCAL,
                deadline=_deadline(context, time.monotonic()),
            )
            try:
                return await self._calls.answer(
                    call,
                    lambda: self._answer(handler, call, request, context),
                    generates=method in GENERATES,
                    refused=refused,
                    gone=context.done,
                )
            except Error as error:
                await _abort(context, call, error)

        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else None
            return (make or grpc.unary_stream_rpc_method_handler)(answer, **options)
        make_unary = grpc.stream_unary_rpc_method_handler if handler.request_streaming else None
        return (make_unary or grpc.unary_unary_rpc_method_handler)(answer, **options)

    async def _answer(self, handler: Handler, call: Call, request: Any, context: Context) -> Any:
        _check(request)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
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
                    Code.DEADLINE_EXCEEDED,
                    f"nothing was sent for {self._stall_timeout:g} s; send the upload again",
                    reason="UPLOAD_STALLED",
                ) from None
            if isinstance(message, _Malformed):
                raise _not_a_message()
            check_entries(message)
            yield message


async def _abort(context: Context, call: Call, error: Error) -> NoReturn:
    status = to_status(error, call.request_id)
    trailing = ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, call.request_id))
    await context.abort(STATUS[error.code], status.message, trailing)
    raise AssertionError("abort returns")


def _deadline(context: Context, now: float) -> float | None:
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
    if named and not is_request_id(named):
        raise invalid_field("request_id", "must be at most 128 printable ASCII characters without spaces")
    if isinstance(request, Message):
        check_entries(request)


def _not_a_message() -> Error:
    return Error(Code.INVALID_ARGUMENT, "the request is not a message of the expected type", reason="MALFORMED")
