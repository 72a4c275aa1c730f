"""Usage by day, tenant, adapter and method, and when versions were deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; the tokens that were trained on, of which the adapters are not known, become rows of usage."""
    op.create_table(
        "usage",
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("adapter", sa.String(640), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("trained_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("day", "tenant", "adapter", "method", name="pk_usage"),
    )
    op.create_table(
        "usage_flushes",
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("run", name="pk_usage_flushes"),
    )
    op.execute(
        "INSERT INTO usage (day, tenant, adapter, method, requests, input_tokens, cached_tokens, output_tokens,"
        " trained_tokens)"
        " SELECT day, tenant, '_other', 'train', 0, 0, 0, 0, tokens FROM training_use"
    )
    op.drop_table("training_use")
    op.add_column("adapter_versions", sa.Column("deleted", sa.Float))


def downgrade() -> None:
    """Going back is restoring a backup: without the tables, what a bill is written from would be lost."""
    raise NotImplementedError("restore the backup that was made before the upgrade; see docs/upgrading.md")
