"""How a merged version was made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; versions that are there were not merged."""
    op.add_column("adapter_versions", sa.Column("composed", sa.JSON, nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("adapter_versions", "composed")
