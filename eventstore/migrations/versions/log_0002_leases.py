"""The leases of the nodes that work on the log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "log_0002"
down_revision = "log_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "node_leases",
        sa.Column("node_id", sa.Text(collation="C"), nullable=False),
        sa.Column("renewed_at", TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name="node_leases_pkey"),
    )
