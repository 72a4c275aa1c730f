"""Settings that belong together: each group is a part of the tree, a prefix of flags and a table of TOML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from ..core.settings import TrainingDtype
from .fields import LocalPath, PathOrOff, PatternOfSan, Size, TrustedUrl, setting


class TrainingSettings(BaseModel):
    """How training shares the device with serving."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = setting(
        0.3,
        "Training",
        "SHARE",
        "part of the time that training gets while requests wait, 0 to 1",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    slice_ms: int = setting(
        100, "Training", "MS", "longest stretch of training between two serve steps, milliseconds", gt=0, le=60_000
    )
    activation_memory: Annotated[ByteSize, Field(ge=0)] | None = setting(
        None,
        "Training",
        "SIZE",
        "memory for the activations of a micro-batch before gradient checkpointing starts, which is slower; 0: always"
        " checkpoint (default: a quarter of the free memory)",
    )
    dtype: TrainingDtype = setting(
        "auto",
        "Training",
        "DTYPE",
        "precision of activations in training: float32, or bfloat16 where --dtype is that too (default: bfloat16 on a"
        " GPU that computes in it, else float32)",
    )
    checkpoint_seconds: float = setting(
        30.0,
        "Training",
        "SECONDS",
        "longest time between two checkpoints of a job: what a crash may cost",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )
    max_dataset_size: Size = setting(ByteSize(256 << 20), "Training", "SIZE", "largest dataset that is taken")
    max_dataset_rows: int = setting(200_000, "Training", "N", "most rows of a dataset", ge=1, le=100_000_000)
    max_row_tokens: int | None = setting(
        None, "Training", "N", "longest row of a dataset in tokens (default: the model's context)", ge=2
    )


class TlsSettings(BaseModel):
    """How connections are encrypted, and what certificates say about clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert: LocalPath | None = setting(
        None,
        "Network",
        "FILE",
        "certificate of the server in PEM, its own first; it and the other TLS files are read again when they change",
    )
    key: LocalPath | None = setting(None, "Network", "FILE", "private key of that certificate in PEM")
    client_ca: LocalPath | None = setting(
        None, "Network", "FILE", "CAs in PEM; clients must then show a certificate that one of them signed"
    )
    tenant_from_san: PatternOfSan | None = setting(
        None,
        "Network",
        "PATTERN",
        "take the tenant from the name in the client's certificate: a URI such as spiffe://example.org/tenant/{tenant},"
        " or a DNS name such as {tenant}.tenants.example.org",
    )


class OidcSettings(BaseModel):
    """The OpenID provider whose tokens are accepted beside API keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: TrustedUrl | None = setting(
        None,
        "Identity",
        "URL",
        "OpenID provider whose tokens are accepted beside API keys, written exactly as it calls itself: https://..., or"
        " http:// on a loopback address",
    )
    audience: str | None = setting(
        None, "Identity", "TEXT", "audience that a token must be for; needed with --oidc-issuer", min_length=1
    )
    tenant_claim: str = setting("tenant", "Identity", "CLAIM", "claim of a token that names the tenant", min_length=1)
    scope_claim: str = setting(
        "scope",
        "Identity",
        "CLAIM",
        "claim of a token with its scopes, of which only those of API keys count; without the claim they are infer and"
        " adapters:read",
        min_length=1,
    )


class LogSettings(BaseModel):
    """What is logged to standard error, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = setting("info", "Logs", "LEVEL", "least level to log")
    format: Literal["console", "json"] = setting("console", "Logs", "FORMAT", "for people or for programs")
    requests: Literal["on", "off"] = setting(
        "on", "Logs", "on|off", "a line for each call when it ends, at the level info; never its content"
    )
    slow_seconds: float = setting(
        30.0,
        "Logs",
        "SECONDS",
        "a call that takes as long is logged as a warning with where its time went, also with --log-requests off; "
        "0 is never",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )
    client_address: Literal["on", "off"] = setting(
        "off", "Logs", "on|off", "whether the lines of calls have the client's address"
    )


class AuditSettings(BaseModel):
    """Where it is written down who changed what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: PathOrOff | None = setting(
        None, "Logs", "FILE|off", "file of the audit log, or off (default: audit/audit.jsonl in the state directory)"
    )
    size: Size = setting(ByteSize(64 << 20), "Logs", "SIZE", "size at which a new file of the audit log begins")
    files: int = setting(10, "Logs", "N", "older files of the audit log that are kept", ge=0, le=10_000)
