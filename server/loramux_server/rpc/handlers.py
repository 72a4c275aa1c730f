"""The methods of the API as grpc.aio serves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc

from ..api.methods import Method

_KINDS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and responses are streams."""


def handlers_of(methods: Iterable[Method]) -> tuple[grpc.GenericRpcHandler, ...]:
    """One for each service."""
    services: dict[str, dict[str, Any]] = {}
    for method in methods:
        service = method.descriptor.containing_service.full_name
        services.setdefault(service, {})[method.descriptor.name] = _handler(method)
    return tuple(grpc.method_handlers_generic_handler(*service) for service in services.items())


def _handler(method: Method) -> Any:
    make = _KINDS[method.descriptor.client_streaming, method.descriptor.server_streaming]
    return make(
        lambda request, context: method.answer(request),
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )
