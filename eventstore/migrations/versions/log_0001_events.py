"""The log: events that only ever grow, the head row that orders them, and the command ids."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import BYTEA, JSON, TIMESTAMP

revision = "log_0001"
down_revision = None
branch_labels = ("log",)
depends_on = None


def upgrade() -> None:
    name = sa.Text(collation="C")
    moment = TIMESTAMP(timezone=True)
    op.create_table(
        "events",
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("stream", name, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("type", name, nullable=False),
        sa.Column("data", JSON),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("recorded_at", moment, nullable=False),
        sa.Column("salt", BYTEA),
        sa.Column("leaf_hash", BYTEA, nullable=False),
        sa.PrimaryKeyConstraint("position", name="events_pkey"),
        sa.UniqueConstraint("stream", "version", name="events_stream_version_key"),
        sa.CheckConstraint("position > 0", name="events_position_check"),
        sa.CheckConstraint("version > 0", name="events_version_check"),
        sa.CheckConstraint("(data IS NULL) = (salt IS NULL)", name="events_erasure_check"),
    )
    op.create_table(
        "log_head",
        sa.Column("only", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("only", name="log_head_pkey"),
        sa.CheckConstraint('"only"', name="log_head_only_check"),
    )
    op.create_table(
        "commands",
        sa.Column("command_id", name, nullable=False),
        sa.Column("first_position", sa.BigInteger, nullable=False),
        sa.Column("last_position", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("command_id", name="commands_pkey"),
    )
    # The head row is updated by every append: room on its page keeps the updates off the index.
    op.execute("ALTER TABLE log_head SET (fillfactor = 10)")
    op.execute("INSERT INTO log_head (position, recorded_at) VALUES (0, to_timestamp(0))")
    _refuse_changes()


def _refuse_changes() -> None:
    op.execute(
        """
        CREATE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the log is immutable: % on events is refused', TG_OP
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER events_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON events
        FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change()
        """
    )
    # ALWAYS: also where a session plays the role of a replica, which skips ordinary triggers.
    op.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_immutable")
