"""From the server's errors to OpenAI's error object, its statuses and headers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.errors import Code, Error, Reason

REQUEST_ID = "x-request-id"

TYPES = {
    Code.UNAUTHENTICATED: "authentication_error",
    Code.PERMISSION_DENIED: "permission_error",
    Code.RESOURCE_EXHAUSTED: "rate_limit_error",
    Code.DEADLINE_EXCEEDED: "timeout_error",
    Code.UNAVAILABLE: "server_error",
    Code.INTERNAL: "server_error",
    Code.DATA_LOSS: "server_error",
    Code.UNIMPLEMENTED: "server_error",
}
"""``type`` of the error object; any other is ``invalid_request_error``."""
CODES: dict[Reason, str] = {
    "ADAPTER_NOT_FOUND": "model_not_found",
    "KEY_MISSING": "invalid_api_key",
    "KEY_INVALID": "invalid_api_key",
    "QUEUE_FULL": "rate_limit_exceeded",
    "PROMPT_TOO_LONG": "context_length_exceeded",
}
"""``code`` of the error object where OpenAI has a word for a reason; any other is the reason in lower case."""
STATUSES: dict[Reason, int] = {"UPLOAD_TOO_LARGE": 413, "HEADERS_TOO_LARGE": 431, "METHOD_NOT_ALLOWED": 405}
"""Statuses of HTTP that are more exact than the code's."""


def status_of(error: Error) -> int:
    """The status of HTTP."""
    return STATUSES.get(error.reason, error.code.http)


def error_object(error: Error, request_id: str = "") -> dict[str, Any]:
    """``{"error": {...}}`` as OpenAI's clients read it; ``violations`` has all bad fields, ``param`` the first.

    OpenAI tells the id of the request in a header alone.
    """
    body: dict[str, Any] = {
        "message": error.message,
        "type": TYPES.get(error.code, "invalid_request_error"),
        "param": error.violations[0].field or None if error.violations else None,
        "code": CODES.get(error.reason, error.reason.lower()),
    }
    if error.violations:
        body["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    return {"error": body}


@dataclass(frozen=True, slots=True)
class Convention:
    """How the answers of an API say what went wrong, and with which request."""

    error_object: Callable[[Error, str], Any]
    """Makes the JSON of an error and the id of its request."""
    status_of: Callable[[Error], int] = status_of
    id_headers: tuple[str, ...] = (REQUEST_ID,)
    """Headers that tell the id of the request."""


OPENAI = Convention(error_object)


def error_headers(error: Error) -> dict[str, str]:
    """When to try again, and how to say who one is."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after * 1000))
    elif error.code in (Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.ALREADY_EXISTS, Code.UNIMPLEMENTED):
        headers["x-should-retry"] = "false"  # OpenAI's clients would try 429, 409 and 501 again
    if error.code is Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return headers
