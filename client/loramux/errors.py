"""The errors of the client, one class per gRPC status, all of them :class:`LoramuxError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, get_args

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ._wire.connection.connecting import connection_failure


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field: its path (``adapters[1].weight``, ``line 3``) and what is wrong with it."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class LoramuxError(Exception):
    """A call failed.

    ``reason`` is a stable upper-case word for programs (``ADAPTER_NOT_FOUND``), ``violations`` names the fields at
    fault, ``retry_after`` is the number of seconds after which another try makes sense, if the server said so. Where a
    quota is the reason, ``limit`` is its name (``requests_per_minute``) and ``violations`` says whose it is.
    """

    code = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
        limit: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.limit = limit


class InvalidArgument(LoramuxError):
    """The request is wrong; ``violations`` says where."""

    code = "INVALID_ARGUMENT"


class NotFound(LoramuxError):
    """No such adapter, job or dataset, or not one that the caller may see."""

    code = "NOT_FOUND"


class AlreadyExists(LoramuxError):
    """The name is taken."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(LoramuxError):
    """The state of things does not allow this, such as resuming a job that has ended."""

    code = "FAILED_PRECONDITION"


class ResourceExhausted(LoramuxError):
    """A limit or quota is reached; see ``retry_after``, and for a quota ``limit`` and ``violations``."""

    code = "RESOURCE_EXHAUSTED"


class Unauthenticated(LoramuxError):
    """The API key is missing or not valid."""

    code = "UNAUTHENTICATED"


class PermissionDenied(LoramuxError):
    """The API key does not allow this."""

    code = "PERMISSION_DENIED"


class Aborted(LoramuxError):
    """Someone else changed the same thing at the same time; try again."""

    code = "ABORTED"


class Cancelled(LoramuxError):
    """The call was cancelled."""

    code = "CANCELLED"


class DeadlineExceeded(LoramuxError):
    """The timeout passed first."""

    code = "DEADLINE_EXCEEDED"


class Unavailable(LoramuxError):
    """The server cannot be reached or cannot take requests now."""

    code = "UNAVAILABLE"


class Unimplemented(LoramuxError):
    """The server does not offer this (yet)."""

    code = "UNIMPLEMENTED"


class DataLoss(LoramuxError):
    """Stored or sent data are damaged."""

    code = "DATA_LOSS"


class InternalError(LoramuxError):
    """A defect of the server; the message carries an id to look for in its log."""

    code = "INTERNAL"


class JobFailed(LoramuxError):
    """A training job that was waited for ended without an adapter; ``state`` is ``failed`` or ``cancelled``."""

    code = "JOB_FAILED"

    def __init__(self, message: str, *, job_id: str, state: str, reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.job_id = job_id
        self.state = state


_BY_CODE = {kind.code: kind for kind in LoramuxError.__subclasses__()} | {"OUT_OF_RANGE": InvalidArgument}


def invalid(field: str, description: str) -> InvalidArgument:
    """An argument that the client itself refuses."""
    violation = Violation(field, description)
    return InvalidArgument(str(violation), violations=[violation])


def nothing_to_roll_back(name: str) -> FailedPrecondition:
    """A name that cannot go back to an earlier version."""
    return FailedPrecondition(
        f"adapter {name!r} has no version to go back to: its name never meant another one, or that is deleted; promote"
        " one by its number",
        reason="NO_PREVIOUS_VERSION",
    )


def from_rpc_error(error: grpc.RpcError, address: str = "") -> LoramuxError:
    """The client's error for a failed call, with the details of google.rpc.Status where the server sent them.

    ``address`` is ``https://host:port`` where TLS is spoken.
    """
    status = error.code()
    message = error.details() or f"the call failed with {status.name}"
    if status is grpc.StatusCode.UNAVAILABLE and (failure := connection_failure(address, message)):
        return Unavailable(failure[0], reason=failure[1])
    reason, retry_after, violations, limit = "", None, list[Violation](), ""
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason = detail.reason
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
        elif isinstance(detail, error_details_pb2.BadRequest):
            violations += [Violation(v.field, v.description) for v in detail.field_violations]
        else:
            violations += [Violation(v.subject, v.description) for v in detail.violations]
            limit = next((v.quota_id for v in detail.violations), "")
    kind = _BY_CODE.get(status.name, InternalError)
    return kind(message, reason=reason, violations=violations, retry_after=retry_after, limit=limit)


@contextmanager
def translated(address: str = "") -> Iterator[None]:
    """Turn grpc's errors into the client's."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, address) from None


_Detail: TypeAlias = (
    error_details_pb2.ErrorInfo
    | error_details_pb2.RetryInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.QuotaFailure
)


def _details(error: grpc.RpcError) -> Iterator[_Detail]:
    """The details that we know. A status that contradicts the call (a broken proxy) counts as none."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        return
    for packed in status.details if status else ():
        for kind in get_args(_Detail):
            detail: _Detail = kind()
            if packed.Unpack(detail):
                yield detail
