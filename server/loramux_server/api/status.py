"""Errors as ``google.rpc.Status``, with details for programs: the same over every door."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from ..core.errors import Code, Error

DOMAIN = "loramux"

# A client of gRPC drops trailers of more than 8 KiB, and message and details travel in them, encoded.
MAX_MESSAGE = 1000
MAX_DETAILS = 3500
MAX_VIOLATIONS = 20


def to_status(error: Error, request_id: str = "") -> status_pb2.Status:
    """The status of an error. Long ones lose their last violations first; the message is cut at a limit."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id})
    ]
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(retry)
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=_cut(error.message, MAX_MESSAGE))
    for detail in details:
        _pack(status, detail)
    if error.violations:
        _add_violations(status, error)
    return status


def _add_violations(status: status_pb2.Status, error: Error) -> None:
    quota = error.code is Code.RESOURCE_EXHAUSTED
    budget = MAX_DETAILS - status.ByteSize()
    found: list[tuple[str, str]] = []
    for violation in error.violations[:MAX_VIOLATIONS]:
        field, description = _cut(violation.field, 200), _cut(violation.description, 500)
        budget -= len(field.encode()) + len(description.encode()) + 12
        if budget < 0:
            break
        found.append((field, description))
    if quota:
        limit = {}
        if error.exceeded is not None:
            limit = {"quota_id": error.exceeded.limit, "quota_value": error.exceeded.value}
        failures = [error_details_pb2.QuotaFailure.Violation(subject=f, description=d, **limit) for f, d in found]
        _pack(status, error_details_pb2.QuotaFailure(violations=failures))
    else:
        fields = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in found]
        _pack(status, error_details_pb2.BadRequest(field_violations=fields))


def _pack(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _cut(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8, whole characters, lone surrogates replaced."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "..."
