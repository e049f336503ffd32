"""The read models of the bridge to Discord; messages that were edited."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "models_0004"
down_revision = "models_0003"
branch_labels = None
depends_on = None

NAME = sa.Text(collation="C")
MOMENT = TIMESTAMP(timezone=True)


def _id(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, autoincrement=False, nullable=False)


def upgrade() -> None:
    op.add_column("messages", sa.Column("edited", sa.BigInteger))
    _deliveries()
    _copies()
    _bridges()
    _people()


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        _id("delivery_id"),
        sa.Column("stream", NAME, nullable=False),
        _id("sender_id"),
        sa.Column("message_id", sa.BigInteger),
        sa.Column("discord_channel_id", sa.BigInteger),
        sa.Column("discord_user_id", sa.BigInteger),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("requested_at", MOMENT, nullable=False),
        sa.Column("discord_message_ids", ARRAY(sa.BigInteger)),
        sa.Column("failed", sa.Text),
        sa.Column("settled", sa.BigInteger),
        sa.Column("settled_at", MOMENT),
        sa.Column("withdrawn", sa.Boolean, nullable=False),
        sa.Column("recipient_id", sa.BigInteger),
        sa.PrimaryKeyConstraint("delivery_id", name="deliveries_pkey"),
    )
    op.create_index("deliveries_sender_id_delivery_id_idx", "deliveries", ["sender_id", "delivery_id"])
    op.create_index(
        "deliveries_waiting_idx",
        "deliveries",
        ["discord_channel_id", "discord_user_id", "delivery_id"],
        postgresql_where=sa.text("discord_message_ids IS NULL AND failed IS NULL AND NOT withdrawn"),
    )
    op.create_index(
        "deliveries_settled_idx",
        "deliveries",
        ["sender_id", "settled"],
        postgresql_where=sa.text("settled IS NOT NULL"),
    )


def _copies() -> None:
    op.create_table(
        "discord_copies",
        _id("discord_message_id"),
        _id("discord_channel_id"),
        _id("origin_id"),
        sa.Column("message_id", sa.BigInteger),
        sa.Column("received", sa.Boolean, nullable=False),
        sa.Column("doomed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("discord_message_id", name="discord_copies_pkey"),
    )
    for column in ("origin_id", "message_id"):
        op.create_index(f"discord_copies_{column}_idx", "discord_copies", [column])
    op.create_index(
        "discord_copies_doomed_idx", "discord_copies", ["discord_message_id"], postgresql_where=sa.text("doomed")
    )
    op.create_index(
        "discord_copies_received_idx",
        "discord_copies",
        ["discord_channel_id", "discord_message_id"],
        postgresql_where=sa.text("received"),
    )


def _bridges() -> None:
    op.create_table(
        "bridges",
        _id("channel_id"),
        _id("discord_channel_id"),
        _id("since"),
        sa.PrimaryKeyConstraint("channel_id", name="bridges_pkey"),
    )
    op.create_table(
        "discord_watermarks",
        _id("discord_channel_id"),
        _id("read_through"),
        sa.PrimaryKeyConstraint("discord_channel_id", name="discord_watermarks_pkey"),
    )


def _people() -> None:
    op.create_table(
        "discord_users",
        sa.Column("user_key", NAME, nullable=False),
        sa.Column("discord_user_id", sa.BigInteger),
        sa.Column("username", sa.Text),
        _id("seen"),
        sa.PrimaryKeyConstraint("user_key", name="discord_users_pkey"),
    )
    op.create_index("discord_users_discord_user_id_idx", "discord_users", ["discord_user_id"])
    op.create_index("discord_users_username_idx", "discord_users", [sa.text("lower(username)")])
    op.create_table(
        "discord_links",
        sa.Column("user_key", NAME, nullable=False),
        sa.Column("discord_user_id", sa.BigInteger),
        sa.Column("account_id", sa.BigInteger),
        _id("since"),
        sa.PrimaryKeyConstraint("user_key", name="discord_links_pkey"),
    )
    op.create_index("discord_links_discord_user_id_idx", "discord_links", ["discord_user_id"])
    op.create_index("discord_links_account_id_since_idx", "discord_links", ["account_id", "since"])
