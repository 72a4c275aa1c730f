"""The one error family of the server.

Every failure that a caller may see is an :class:`Error` with a :class:`Code`; the doors hold one table
from code to status. Anything else that escapes is a defect and is answered as INTERNAL with an opaque id.
To add a reason: raise ``Error`` with the right code and an upper-case ``reason`` of your own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

LOGITS_NOT_FINITE = "LOGITS_NOT_FINITE"
"""Reason of a request whose logits are not finite."""


class Code(StrEnum):
    """What went wrong, in the words of gRPC."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    FAILED_PRECONDITION = "failed_precondition"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    ABORTED = "aborted"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    UNAVAILABLE = "unavailable"
    UNIMPLEMENTED = "unimplemented"
    DATA_LOSS = "data_loss"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field: its path as the caller wrote it (``adapters[1].weight``) and what is wrong with it."""

    field: str
    description: str


class Error(Exception):
    """A failure with a code, a sentence for the caller and, for bad input, the fields at fault.

    ``reason`` is a stable upper-case word for programs (``ADAPTER_NOT_FOUND``); ``retry_after`` is seconds.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: str = "",
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or code.name
        self.violations = tuple(violations)
        self.retry_after = retry_after


def invalid(violations: Iterable[FieldViolation], *, reason: str = "INVALID_ARGUMENT") -> Error:
    """An INVALID_ARGUMENT error that carries all ``violations`` and says them in its message."""
    found = tuple(violations)
    message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in found)
    return Error(Code.INVALID_ARGUMENT, message, reason=reason, violations=found)


def invalid_field(field: str, description: str, *, reason: str = "INVALID_ARGUMENT") -> Error:
    """An INVALID_ARGUMENT error about one field."""
    return invalid([FieldViolation(field, description)], reason=reason)


MISSING, DAMAGED = "BLOB_MISSING", "BLOB_DAMAGED"
"""Reasons of DATA_LOSS for stored files that are gone, and for those that are not what was stored."""


def is_damage(error: Error) -> bool:
    """Whether an error says that stored files are gone or damaged."""
    return error.code is Code.DATA_LOSS and error.reason in (MISSING, DAMAGED)


def shutting_down() -> Error:
    """UNAVAILABLE for a call that a server which stops does not answer."""
    return Error(Code.UNAVAILABLE, "the server is shutting down", reason="SHUTTING_DOWN", retry_after=1.0)


def adapter_not_found(ref: str) -> Error:
    """NOT_FOUND for an adapter reference, the same words whether it is absent or someone else's."""
    return Error(
        Code.NOT_FOUND,
        f"adapter {ref!r} not found (list the adapters you may use with: loramux adapters ls)",
        reason="ADAPTER_NOT_FOUND",
    )
