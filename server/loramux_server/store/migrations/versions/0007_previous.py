"""What an alias meant before it moved."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; aliases that are there cannot be rolled back before they move again."""
    op.add_column("aliases", sa.Column("previous", sa.Integer, nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("aliases", "previous")
