"""What every gRPC call gets, whatever its method: an id, its errors turned into statuses, its time counted, an end.

grpc.aio would answer any exception with UNKNOWN and its text; here only ``Error`` speaks to the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc import aio

from ..api.entries import check_entries
from ..api.status import to_status
from ..core.call import sending
from ..core.errors import Code, Error
from ..core.observing.tracing import Arrival, TraceContext
from ..services.access.access import Incoming
from ..services.access.credentials import Credentials
from ..services.common.calls import Calls, rename, request_id
from ..services.common.shielding import to_the_end
from .tls import certificate_names

STATUS: dict[Code, grpc.StatusCode] = {code: grpc.StatusCode[code.name] for code in Code}
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
AUTHORIZATION_KEY = "authorization"
STATUS_KEY = "rpc.response.status_code"
NO_DEADLINE = 10 * 365 * 86400.0
"""Seconds; gRPC tells a missing deadline as one that is further away than this."""

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Deserialize: TypeAlias = Callable[[bytes], Any] | None


class CallInterceptor(aio.ServerInterceptor):
    """Wraps every method of ``loramux.*``; health and reflection pass untouched.

    Requests are read here, and not by gRPC, so that nobody makes the server parse one who may not ask.
    ``stall_timeout``: seconds that a caller may neither take the next message of an answer nor send the next one
    of an upload.
    """

    def __init__(self, calls: Calls, stall_timeout: float, reflects: Callable[[], bool]) -> None:
        self._calls, self._reflects = calls, reflects
        self._stall_timeout = stall_timeout

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        path = str(handler_call_details.method)
        if path.startswith("/grpc.reflection.") and not self._reflects():
            return None  # UNIMPLEMENTED, as from a server that has none
        if handler is None or not path.startswith("/loramux."):
            return handler

        async def answer(data: Any, context: Context) -> Any:
            metadata = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
            incoming = Incoming(
                method=path[1:],
                request_id=request_id(*_values(metadata, REQUEST_ID_KEY)),
                credentials=Credentials(
                    _values(metadata, AUTHORIZATION_KEY), certificate_names(context), context.peer()
                ),
                deadline=_deadline(context, time.monotonic()),
                door="grpc",
                arrival=Arrival(
                    path[1:],
                    {"rpc.system.name": "grpc", "rpc.method": path[1:]},
                    lambda code, error: {STATUS_KEY: code},
                ),
                trace=TraceContext.parse(_values(metadata, "traceparent"), _values(metadata, "tracestate")),
            )
            named = [incoming.request_id]
            try:
                return await self._calls.answer(
                    incoming, lambda: self._answer(handler, data, context, named), gone=context.done
                )
            except Error as error:
                await _abort(context, named[-1], error)

        options = {"request_deserializer": None, "response_serializer": handler.response_serializer}
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else None
            return (make or grpc.unary_stream_rpc_method_handler)(answer, **options)
        make_unary = grpc.stream_unary_rpc_method_handler if handler.request_streaming else None
        return (make_unary or grpc.unary_unary_rpc_method_handler)(answer, **options)

    async def _answer(self, handler: Handler, data: Any, context: Context, named: list[str]) -> Any:
        """Read the request and run its method. An id that the request names is appended to ``named``."""
        if handler.request_streaming:
            request: Any = self._messages(data, handler.request_deserializer)
        else:
            request = _read(data, handler.request_deserializer)
            if own := getattr(request, "request_id", ""):
                named.append(rename(own).request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, named[-1]),))
        if not handler.response_streaming:
            behaviour: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
            return await behaviour(request, context)
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        # Written from here instead of yielded to grpc, so that a cancel closes the stream behind it at once.
        async with aclosing(behaviour(request, context)) as responses:
            begun = False
            async for response in responses:
                if not begun:
                    # grpc.aio would send it with the first message, and once more with the status of a call that is
                    # cancelled while it does: the core refuses that, and the caller never learns how the call ended.
                    await to_the_end(context.send_initial_metadata(()))
                    begun = True
                try:
                    with sending():
                        async with asyncio.timeout(self._stall_timeout):
                            await context.write(response)
                except TimeoutError:
                    raise Error(
                        Code.ABORTED, f"nothing was read for {self._stall_timeout:g} s", reason="SLOW_READER"
                    ) from None
        return None

    async def _messages(self, pieces: AsyncIterator[bytes], deserialize: Deserialize) -> AsyncIterator[Any]:
        while True:
            try:
                async with asyncio.timeout(self._stall_timeout):
                    data = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Error(
                    Code.DEADLINE_EXCEEDED,
                    f"nothing was sent for {self._stall_timeout:g} s; send the upload again",
                    reason="UPLOAD_STALLED",
                ) from None
            yield _read(data, deserialize)


def _values(metadata: Sequence[tuple[str, str]], wanted: str) -> tuple[str, ...]:
    return tuple(value for key, value in metadata if key == wanted)


async def _abort(context: Context, request_id: str, error: Error) -> NoReturn:
    status = to_status(error, request_id)
    trailing = ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id))
    try:
        await context.abort(STATUS[error.code], status.message, trailing)
    except aio.InternalError:  # the call has ended meanwhile, by its deadline or by its client: nobody to tell
        raise asyncio.CancelledError from None
    raise AssertionError("abort returns")


def _deadline(context: Context, now: float) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None or remaining > NO_DEADLINE else now + remaining


def _read(data: bytes, deserialize: Deserialize) -> Any:
    """The request in ``data``. Raises INVALID_ARGUMENT for what no method takes."""
    assert deserialize is not None
    try:
        request = deserialize(data)
    except Exception:  # protobuf's implementations raise different types
        raise _not_a_message() from None
    if isinstance(request, Message):
        check_entries(request)
    return request


def _not_a_message() -> Error:
    return Error(Code.INVALID_ARGUMENT, "the request is not a message of the expected type", reason="MALFORMED")
