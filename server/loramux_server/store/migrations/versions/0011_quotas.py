"""Quotas of tenants and keys, and what has been trained on each day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "quotas",
        sa.Column("subject", sa.String(80), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_quotas"),
        sa.UniqueConstraint("revision", name="uq_quotas_revision"),
    )
    op.create_table(
        "training_use",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "day", name="pk_training_use"),
    )


def downgrade() -> None:
    """Going back is restoring a backup: without the tables, limits would be forgotten."""
    raise NotImplementedError("restore the backup that was made before the upgrade; see docs/upgrading.md")
