"""API keys: who may call, by the SHA-256 of each key's secret."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("adapters", sa.JSON),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("creator", sa.String(100), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float),
        sa.Column("revoked", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("revision", name="uq_api_keys_revision"),
    )


def downgrade() -> None:
    """Going back is restoring a backup: without the table, revoked keys would be forgotten."""
    raise NotImplementedError("restore the backup that was made before the upgrade; see docs/upgrading.md")
