"""What a job is asked with, and what is said about a version, become one document each: new fields need no column."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

META = {
    "rank": sa.Integer,
    "alpha": sa.Float,
    "base_fingerprint": sa.String(256),
    "target_modules": sa.JSON,
    "layers": sa.JSON,
    "job_id": sa.String(64),
    "dataset_digest": sa.String(64),
    "parent": sa.String(160),
    "trained_on": sa.JSON,
    "asked_with": sa.String(16),
    "without_effect": sa.Boolean,
    "composed": sa.JSON,
    "metrics": sa.JSON,
    "metadata": sa.JSON,
}
REQUEST = {
    "spec": sa.JSON,
    "dataset_id": sa.String(32),
    "validation_dataset_id": sa.String(32),
    "on_top_of": sa.JSON,
    "init_from": sa.String(160),
    "gate": sa.Text,
    "compare_prompt": sa.Text,
    "metadata": sa.JSON,
}
"""Columns that move into the documents."""


def upgrade() -> None:
    """Write the documents, then drop the columns."""
    connection = op.get_bind()
    op.add_column("jobs", sa.Column("request", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("adapter_versions", sa.Column("meta", sa.JSON, nullable=False, server_default="{}"))
    op.create_index("ix_jobs_owner", "jobs", ["owner", "name"])
    names = "seq", "id", "owner", "name", "idempotency_key", "adapter", "gate_result"
    jobs = _table("jobs", *names, **REQUEST, request=sa.JSON)
    results = {}
    for row in connection.execute(sa.select(jobs)).mappings().all():
        document = {name: row[name] for name in REQUEST} | {"name": row["name"], "tenant": row["owner"]}
        document |= {"gate": _gate(row["gate"]), "idempotency_key": row["idempotency_key"] or ""}
        connection.execute(jobs.update().where(jobs.c.seq == row["seq"]).values(request=document))
        results[row["id"]] = row["adapter"], row["gate_result"] or ""
    adapters = sa.table("adapters", sa.column("id"), sa.column("name"))
    versions = _table("adapter_versions", "id", "adapter_id", "version", **META, meta=sa.JSON)
    joined = sa.select(versions, adapters.c.name).join(adapters, adapters.c.id == versions.c.adapter_id)
    for row in connection.execute(joined).mappings().all():
        known = {name: row[name] for name in META if row[name] is not None}
        published, result = results.get(row["job_id"], ("", ""))
        known["gate_result"] = result if published == f"{row['name']}@{row['version']}" else ""
        connection.execute(versions.update().where(versions.c.id == row["id"]).values(meta=known))
    for table, columns in (("jobs", REQUEST), ("adapter_versions", META)):
        for name in columns:
            op.drop_column(table, name)


def downgrade() -> None:
    """Going back is restoring a backup: the documents may hold what the old columns have no place for."""
    raise NotImplementedError("restore the backup that was made before the upgrade; see docs/upgrading.md")


def _table(name: str, *plain: str, **typed: Any) -> sa.TableClause:
    return sa.table(name, *map(sa.column, plain), *(sa.column(column, kind) for column, kind in typed.items()))


def _gate(text: str) -> dict[str, Any]:
    """``improves``, ``min_accuracy:0.9`` or ``min_accuracy:0.9:exact`` as a document."""
    kind, *more = text.split(":")
    if not more:
        return {"kind": kind}
    return {"kind": kind, "min_accuracy": float(more[0]), "match": "exact" if "exact" in more else "contained"}
