"""Adapters that change nothing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of versions that are there it is not known."""
    op.add_column("adapter_versions", sa.Column("without_effect", sa.Boolean, nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("adapter_versions", "without_effect")
