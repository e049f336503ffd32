"""The read models of presence, verification and moderation; tokens that can be revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "models_0002"
down_revision = "models_0001"
branch_labels = None
depends_on = None

NAME = sa.Text(collation="C")


def _id(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, autoincrement=False, nullable=False)


def upgrade() -> None:
    op.alter_column("tokens", "token_digest", existing_type=NAME, nullable=True)
    op.create_table(
        "connections",
        sa.Column("connection_id", NAME, nullable=False),
        _id("account_id"),
        sa.Column("node_id", NAME, nullable=False),
        _id("opened"),
        _id("version"),
        sa.PrimaryKeyConstraint("connection_id", name="connections_pkey"),
    )
    for column in ("account_id", "node_id"):
        op.create_index(f"connections_{column}_idx", "connections", [column])
    op.create_table(
        "verifications",
        _id("account_id"),
        sa.Column("is_multiaccount", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("account_id", name="verifications_pkey"),
    )
    op.create_table(
        "devices",
        sa.Column("device_digest", NAME, nullable=False),
        _id("account_id"),
        sa.PrimaryKeyConstraint("device_digest", name="devices_pkey"),
    )
    op.create_table(
        "restrictions",
        _id("account_id"),
        sa.Column("is_banned", sa.Boolean),
        sa.Column("silenced_until", TIMESTAMP(timezone=True)),
        sa.PrimaryKeyConstraint("account_id", name="restrictions_pkey"),
    )
