"""The read models of accounts, tokens, channels, messages and direct messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "models_0001"
down_revision = None
branch_labels = ("models",)
depends_on = None

NAME = sa.Text(collation="C")
MOMENT = TIMESTAMP(timezone=True)


def _id(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, autoincrement=False, nullable=False)


def upgrade() -> None:
    op.create_table(
        "accounts",
        _id("account_id"),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("safe_name", NAME, nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.PrimaryKeyConstraint("account_id", name="accounts_pkey"),
        sa.UniqueConstraint("safe_name", name="accounts_safe_name_key"),
    )
    op.create_table(
        "tokens",
        _id("account_id"),
        _id("generation"),
        sa.Column("token_digest", NAME, nullable=False),
        sa.PrimaryKeyConstraint("account_id", name="tokens_pkey"),
        sa.UniqueConstraint("token_digest", name="tokens_token_digest_key"),
    )
    op.create_table(
        "channels",
        _id("channel_id"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("safe_name", NAME, nullable=False),
        sa.PrimaryKeyConstraint("channel_id", name="channels_pkey"),
        sa.UniqueConstraint("safe_name", name="channels_safe_name_key"),
    )
    op.create_table(
        "members",
        _id("channel_id"),
        _id("account_id"),
        _id("since"),
        sa.PrimaryKeyConstraint("channel_id", "account_id", name="members_pkey"),
    )
    op.create_index("members_account_id_since_idx", "members", ["account_id", "since"])
    _messages("messages", "channel_id", "sender_id")
    _messages("dms", "sender_id", "recipient_id")


def _messages(table: str, first: str, second: str) -> None:
    op.create_table(
        table,
        _id("message_id"),
        _id(first),
        _id(second),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("sent_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("message_id", name=f"{table}_pkey"),
    )
    for column in (first, second):
        op.create_index(f"{table}_{column}_message_id_idx", table, [column, "message_id"])
