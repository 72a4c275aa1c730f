"""The content of the versions that a job was created from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; jobs that are there find their donors by name."""
    op.add_column("jobs", sa.Column("donors", sa.JSON, nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("jobs", "donors")
