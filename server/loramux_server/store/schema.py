"""The tables. Migrations make them; this is what the code reads and writes.

Times are seconds since the epoch. Structured values are JSON text columns that only ever hold what this package wrote.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from ..core.callers.usage import AMOUNTS
from .portable_json import MetricsJSON

REVISION = "0014"
"""The newest migration: what a database must be at for this code."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

identity = Table(
    "identity",
    metadata,
    Column("id", String(32), primary_key=True),  # one row: names this store for good
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("owner", String(64), nullable=False),  # tenant; empty: everyone's
    Column("name", String(64), nullable=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("name", "owner", name="uq_adapters_name"),
)

adapter_versions = Table(
    "adapter_versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False),
    Column("version", Integer, nullable=False),  # from 1, never used twice
    Column("digest", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("meta", MetricsJSON, nullable=False, server_default="{}"),  # an AdapterMeta
    Column("reason", Text, nullable=False),  # why it is quarantined
    Column("created", Float, nullable=False),
    Column("last_used", Float),
    Column("deleted", Float),  # also NULL where that was not noted yet
    UniqueConstraint("adapter_id", "version", name="uq_adapter_versions_version"),
)
# The same content is one version of a name, however many publish it at once.
Index(
    "uq_adapter_versions_content",
    adapter_versions.c.adapter_id,
    adapter_versions.c.digest,
    unique=True,
    sqlite_where=text("state <> 'deleted'"),
    postgresql_where=text("state <> 'deleted'"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("previous", Integer),  # what it meant before, to roll back to
)

datasets = Table(
    "datasets",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("id", String(32), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("format", String(32), nullable=False),
    Column("rows", Integer),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("id", "owner", name="uq_datasets_id"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", String(255), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),  # as announced
    Column("state", String(16), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("dataset_id", String(32), nullable=False),  # what it became; empty: nothing yet
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload_id", ForeignKey("uploads.id"), primary_key=True),
    Column("id", String(40), primary_key=True),  # by its bytes
    Column("digest", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("request", JSON, nullable=False, server_default="{}"),  # a JobRequest
    Column("donors", JSON),  # version -> digest, of those that it trains on top of or starts from
    Column("idempotency_key", String(255)),
    Column("notes", JSON),  # what may not be meant about its data
    Column("attempts", Integer, nullable=False),
    Column("runner", String(64)),  # server that runs it, if one does
    Column("lease_until", Float),  # when another server may take it from there
    Column("fence", Integer, nullable=False, server_default="0"),  # rises with every change of hands
    Column("step", Integer, nullable=False),
    Column("total_steps", Integer, nullable=False),
    Column("metrics", MetricsJSON, nullable=False),
    Column("adapter", String(160), nullable=False),
    Column("error_code", String(32), nullable=False),
    Column("error", Text, nullable=False),
    Column("gate_result", Text),  # why its version was not promoted, if it was not
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("updated", Float, nullable=False),
    UniqueConstraint("owner", "idempotency_key", name="uq_jobs_idempotency_key"),
    Index("ix_jobs_owner", "owner", "name"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_seq", ForeignKey("jobs.seq"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("type", String(16), nullable=False),
    Column("body", MetricsJSON, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("revision", Integer, nullable=False),  # of the last change of any key; rises
    Column("tenant", String(64), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("adapters", JSON(none_as_null=True)),  # names; NULL: all of the tenant's
    Column("name", String(200), nullable=False),
    Column("creator", String(100), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    UniqueConstraint("revision", name="uq_api_keys_revision"),
)

quotas = Table(
    "quotas",
    metadata,
    Column("subject", String(80), primary_key=True),  # "*", "tenant:NAME" or "key:ID"
    Column("revision", Integer, nullable=False, unique=True),  # rises with every change of any row
    Column("limits", JSON, nullable=False),  # a Quota
)

quota_levels = Table(
    "quota_levels",
    metadata,
    Column("subject", String(80), primary_key=True),  # "tenant:NAME" or "key:ID"
    Column("rate", String(32), primary_key=True),  # a limit of a minute
    Column("used", Float, nullable=False),  # and not flowed back at the time
    Column("at", Float, nullable=False),  # by the database's clock
)

quota_servers = Table(
    "quota_servers",
    metadata,
    Column("id", String(32), primary_key=True),  # one life of a server's process
    Column("at", Float, nullable=False),  # when it was heard of last, by the database's clock
    Column("counts", JSON, nullable=False),  # subject -> calls that run, calls that wait
)

usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),  # YYYY-MM-DD of UTC
    Column("tenant", String(64), primary_key=True),
    Column("adapter", String(640), primary_key=True),  # label of the stack
    Column("method", String(16), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in AMOUNTS),
)

usage_flushes = Table(
    "usage_flushes",
    metadata,
    Column("run", String(32), primary_key=True),  # of a server: one life of its process
    Column("sequence", BigInteger, nullable=False),  # of the last flush that is in ``usage``
    Column("at", Float, nullable=False),
)
