"""From the server's errors to Anthropic's error object and its statuses."""

from __future__ import annotations

from typing import Any

from ...core.errors import Error
from ..exchanges.errors import REQUEST_ID, Convention
from ..exchanges.errors import status_of as shared_status_of

OVERLOADED = 529
"""The server has as many generations to do as it takes; a quota of the caller's own is 429."""
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
"""``type`` of the error by status; any other is ``invalid_request_error`` below 500 and ``api_error`` above."""


def status_of(error: Error) -> int:
    """The status of HTTP."""
    return OVERLOADED if error.reason == "QUEUE_FULL" else shared_status_of(error)


def error_object(error: Error, request_id: str) -> dict[str, Any]:
    """``{"type": "error", ...}`` as Anthropic's clients read it; the message names all bad fields."""
    status = status_of(error)
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


ANTHROPIC = Convention(error_object, status_of, (REQUEST_ID, "request-id"))
