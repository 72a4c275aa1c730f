"""Who runs a job and until when, and what became of its gate."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; jobs that are there are run by nobody."""
    op.add_column("jobs", sa.Column("runner", sa.String(64), nullable=True))
    op.add_column("jobs", sa.Column("lease_until", sa.Float, nullable=True))
    op.add_column("jobs", sa.Column("fence", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("gate_result", sa.Text, nullable=True))


def downgrade() -> None:
    """Drop them."""
    for name in ("runner", "lease_until", "fence", "gate_result"):
        op.drop_column("jobs", name)
