"""What calls use of quotas, told by servers to each other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables. What is in them is worth nothing a minute later, so PostgreSQL keeps no log of it."""
    prefixes = ["UNLOGGED"] if op.get_bind().dialect.name == "postgresql" else []
    op.create_table(
        "quota_levels",
        sa.Column("subject", sa.String(80), nullable=False),
        sa.Column("rate", sa.String(32), nullable=False),
        sa.Column("used", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("subject", "rate", name="pk_quota_levels"),
        prefixes=prefixes,
    )
    op.create_table(
        "quota_servers",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_quota_servers"),
        prefixes=prefixes,
    )


def downgrade() -> None:
    """Nothing in them must last."""
    op.drop_table("quota_servers")
    op.drop_table("quota_levels")
