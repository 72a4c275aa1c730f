"""Errors as Connect has them: ``{"code", "message", "details"}``."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from ...api.status import to_status
from ...core.errors import Code, Error
from ..exchanges.errors import Convention
from .messages import as_json

CODES = {Code.CANCELLED: "canceled"}
"""Connect's words; any other is the code's own."""


def connect_error(error: Error, request_id: str) -> dict[str, Any]:
    """The error as a body. ``details`` are those of gRPC, each also readable under ``debug``."""
    status = to_status(error, request_id)
    details = []
    for packed in status.details:
        name = packed.TypeName()
        detail = GetMessageClass(Default().FindMessageTypeByName(name))()
        packed.Unpack(detail)
        value = base64.b64encode(packed.value).decode().rstrip("=")
        details.append({"type": name, "value": value, "debug": as_json(detail)})
    return {"code": CODES.get(error.code, error.code.value), "message": status.message, "details": details}


def error_event(error: Error, request_id: str) -> dict[str, Any]:
    """The error as the last event of a stream."""
    return {"error": connect_error(error, request_id)}


CONNECT = Convention(connect_error)
