"""The one error family of the server: codes with their statuses, and the reasons that programs tell apart.

Every failure that a caller may see is an :class:`Error`. Anything else that escapes is a defect and is answered as
INTERNAL with an opaque id. To add a reason, add it to :data:`Reason`; the type checker knows no others.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, cast


class Code(StrEnum):
    """What went wrong. The names are those of gRPC's statuses."""

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

    @property
    def http(self) -> int:
        """The status of HTTP for it."""
        return _HTTP[self]


_HTTP = {
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 400,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.ABORTED: 409,
    Code.CANCELLED: 499,
    Code.DEADLINE_EXCEEDED: 504,
    Code.UNAVAILABLE: 503,
    Code.UNIMPLEMENTED: 501,
    Code.DATA_LOSS: 500,
    Code.INTERNAL: 500,
}

# fmt: off
Reason = Literal[
    # The name of the code, where nothing more is known.
    "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED",
    "PERMISSION_DENIED", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "UNIMPLEMENTED", "DATA_LOSS",
    "INTERNAL",
    # Calls.
    "HEADERS_TOO_LARGE", "MALFORMED", "METHOD_NOT_ALLOWED", "NOT_READY", "QUEUE_FULL", "QUOTA_EXCEEDED",
    "SHUTTING_DOWN", "SLOW_READER", "TOO_MANY_CONNECTIONS", "UPLOAD_STALLED", "UPLOAD_TOO_LARGE",
    # Who calls.
    "CERTIFICATE_WITHOUT_TENANT", "HOST_REFUSED", "IDENTITY_UNAVAILABLE", "KEY_EXISTS", "KEY_INVALID", "KEY_MISSING",
    "KEY_NOT_FOUND", "ORIGIN_REFUSED", "SCOPE_MISSING",
    # Generations and scores.
    "CHAT_TEMPLATE_BROKEN", "CHAT_TEMPLATE_LIMIT", "CHAT_TEMPLATE_REFUSED", "GRAMMAR_FAILED_PRECONDITION",
    "GRAMMAR_INTERNAL", "GRAMMAR_INVALID_ARGUMENT", "GRAMMAR_RESOURCE_EXHAUSTED", "GRAMMAR_UNAVAILABLE",
    "INVALID_TEXT", "KV_CACHE_TOO_SMALL", "LOGITS_NOT_FINITE", "NO_CHAT_TEMPLATE", "NO_TOOL_FORMAT", "PROMPT_TOO_LONG",
    "STACK_TOO_LARGE", "TEXT_TOO_LONG",
    # Adapters.
    "ADAPTER_CHANGED", "ADAPTER_FOR_OTHER_BASE", "ADAPTER_IS_CURRENT", "ADAPTER_IS_SHARED", "ADAPTER_NOT_ALLOWED",
    "ADAPTER_NOT_FOUND", "ADAPTER_NOT_PROMOTED", "ADAPTER_NOT_READY", "ADAPTER_WITHOUT_EFFECT", "BAD_ADAPTER_CONFIG",
    "BAD_ADAPTER_FILE", "BAD_FILE_NAME", "BAD_FOLDER", "BAD_JSON", "COMPOSE_DIED", "FILE_MISSING", "FILE_TOO_LARGE",
    "LORA_PATH_NOT_FOUND", "NOT_A_REGULAR_FILE", "NOT_FINITE", "NO_LORA_ROOT", "RANKS_DIFFER", "RANK_TOO_LARGE",
    "TOO_MANY_PINNED",
    # Datasets and jobs.
    "COMPARE_NOT_INSTALLED", "DATASET_CHECK_DIED", "DATASET_INVALID", "DATASET_IN_USE", "DATASET_NOT_FOUND",
    "ENGINE_LOST", "GRADIENTS_VANISH", "IDEMPOTENCY_KEY_REUSED", "JOB_NOT_FOUND", "LEASE_LOST", "LOSS_NOT_FINITE",
    "NO_REPLAY_ROWS", "OUT_OF_MEMORY", "ROWS_DAMAGED", "TOO_MANY_PARTS", "TOO_MANY_UPLOADS", "UPLOAD_NOT_FOUND",
    # What is stored.
    "AUDIT_LOG_UNUSABLE",
    "BACKUP_DAMAGED", "BLOBS_OF_ANOTHER_STORE", "BLOBS_UNUSABLE", "BLOB_CUT", "BLOB_DAMAGED", "BLOB_MISSING",
    "DATABASE_BUSY", "DATABASE_DAMAGED", "DATABASE_MISSING", "DATABASE_UNAVAILABLE", "FOREIGN_DATABASE",
    "NEWER_SCHEMA", "NOT_EMPTY", "NO_BACKUP", "NO_STORE", "OTHER_SCHEMA", "STATE_DIR_LOCKED", "STATE_DIR_UNUSABLE",
    "STORAGE_FULL", "STORAGE_READ_ONLY", "STORAGE_UNAVAILABLE",
    # The start of the server, and its engine.
    "BAD_COMMAND_LINE", "BASE_BROKEN", "BASE_DAMAGED", "BASE_TOO_LARGE", "CERTIFICATE_UNUSABLE", "DISK_FULL",
    "ENGINE_FAILED", "ENGINE_RESTARTING", "HUB_UNREACHABLE", "LISTENS_OPENLY", "METRICS_PORT_UNAVAILABLE",
    "METRICS_TOKEN_UNUSABLE", "MODEL_NOT_FOUND", "MODEL_NOT_SUPPORTED", "NO_CUDA",
    "PORT_UNAVAILABLE", "PROFILE_RUNNING", "STOPPING", "TOKENIZER_UNREADABLE",
    # Replicas.
    "ONLY_REPLICA", "RAY_MISSING", "RAY_UNAVAILABLE", "REPLICA_LOST", "REPLICA_NOT_FOUND",
]
# fmt: on
"""Every reason of an :class:`Error`: a stable word for programs, more exact than the code. Words are never reused."""

LOGITS_NOT_FINITE: Final = "LOGITS_NOT_FINITE"
MISSING: Final = "BLOB_MISSING"
"""Reason of DATA_LOSS for stored files that are gone."""
DAMAGED: Final = "BLOB_DAMAGED"
"""Reason of DATA_LOSS for stored files that are not what was stored."""
ROWS_DAMAGED: Final = "ROWS_DAMAGED"
"""Reason of DATA_LOSS for a job's rows file that is gone or not what was written: it can be made again."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field: its path as the caller wrote it (``adapters[1].weight``) and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The limit of a quota that a call would go over, by its name and its value."""

    limit: str
    value: int


class Error(Exception):
    """A failure with a code, a sentence for the caller and, for bad input, the fields at fault.

    ``reason`` is the name of the code unless a more exact one is given; ``retry_after`` is seconds; ``exceeded`` is
    given where a quota is the reason.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: Reason | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
        exceeded: Exceeded | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason: Reason = reason or cast("Reason", code.name)
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.exceeded = exceeded


def invalid(violations: Iterable[FieldViolation], *, reason: Reason = "INVALID_ARGUMENT") -> Error:
    """An INVALID_ARGUMENT error that carries all ``violations`` and says them in its message."""
    found = tuple(violations)
    message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in found)
    return Error(Code.INVALID_ARGUMENT, message, reason=reason, violations=found)


def invalid_field(field: str, description: str, *, reason: Reason = "INVALID_ARGUMENT") -> Error:
    """An INVALID_ARGUMENT error about one field."""
    return invalid([FieldViolation(field, description)], reason=reason)


def internal_error() -> tuple[str, Error]:
    """An opaque id for the log, and the error of what failed by a defect: it tells the id and nothing else."""
    id = uuid.uuid4().hex[:12]
    return id, Error(Code.INTERNAL, f"internal error; the server's log has it as {id}")


def is_damage(error: Error) -> bool:
    """Whether an error says that stored files are gone or damaged."""
    return error.code is Code.DATA_LOSS and error.reason in (MISSING, DAMAGED)


def shutting_down() -> Error:
    """UNAVAILABLE for a call that a server which stops does not answer."""
    return Error(Code.UNAVAILABLE, "the server is shutting down", reason="SHUTTING_DOWN", retry_after=1.0)


def stopping() -> Error:
    """UNAVAILABLE for a command that reaches no engine any more, because the server stops."""
    return Error(Code.UNAVAILABLE, "the server is stopping", reason="STOPPING")


def adapter_not_found(ref: str) -> Error:
    """NOT_FOUND for an adapter reference, the same words whether it is absent or someone else's."""
    return Error(
        Code.NOT_FOUND,
        f"adapter {ref!r} not found (list the adapters you may use with: loramux adapters ls)",
        reason="ADAPTER_NOT_FOUND",
    )


def replica_not_found(replica_id: str) -> Error:
    """NOT_FOUND for a replica that is not there, or not any more."""
    return Error(
        Code.NOT_FOUND,
        f"replica {replica_id[:80]!r} not found (list them with: loramux replicas ls)",
        reason="REPLICA_NOT_FOUND",
    )
