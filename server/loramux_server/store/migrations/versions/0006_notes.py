"""Notes on the data of jobs, and how the adapters that they train are asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what was made before has neither."""
    op.add_column("jobs", sa.Column("notes", sa.JSON, nullable=True))
    op.add_column("adapter_versions", sa.Column("asked_with", sa.String(16), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("adapter_versions", "asked_with")
    op.drop_column("jobs", "notes")
