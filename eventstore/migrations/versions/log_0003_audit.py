"""Checkpoints and the tree above the leaves, and the one narrow way in which an event's data may be erased."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP

revision = "log_0003"
down_revision = "log_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("data_hash", BYTEA))
    op.drop_constraint("events_erasure_check", "events")
    op.create_check_constraint(
        "events_erasure_check",
        "events",
        "(data IS NULL) = (salt IS NULL) AND (data IS NULL) = (data_hash IS NOT NULL)",
    )
    op.create_index("events_erased_idx", "events", ["position"], postgresql_where=sa.text("type = 'Erased'"))
    op.create_table(
        "tree_hashes",
        sa.Column("level", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("index", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("hash", BYTEA, nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name="tree_hashes_pkey"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("size", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("signed_at", TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("size", name="checkpoints_pkey"),
        sa.CheckConstraint("size > 0", name="checkpoints_size_check"),
    )
    op.create_table(
        "log_key",
        sa.Column("only", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("verifier_key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("only", name="log_key_pkey"),
        sa.CheckConstraint('"only"', name="log_key_only_check"),
    )
    _refuse_changes()
    _allow_erasure()


def _refuse_changes() -> None:
    op.execute(
        """
        CREATE OR REPLACE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the log is immutable: % on % is refused', TG_OP, TG_TABLE_NAME
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    op.execute("DROP TRIGGER events_immutable ON events")
    for table, changes in (("events", "DELETE OR TRUNCATE"), ("checkpoints", "UPDATE OR DELETE OR TRUNCATE")):
        op.execute(
            f"CREATE TRIGGER {table}_immutable BEFORE {changes} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change()"
        )
        # ALWAYS: also where a session plays the role of a replica, which skips ordinary triggers.
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_immutable")


def _allow_erasure() -> None:
    # An update may do nothing but empty the data and the salt of events that an `Erased` event names; the hash of
    # both stays, so that the leaf can still be computed. What was erased, and why, is not to be erased.
    op.execute(
        """
        CREATE FUNCTION events_check_erasure() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT FROM before FULL JOIN after USING (position)
                WHERE (before.stream, before.version, before.type, before.metadata::text, before.recorded_at,
                       before.leaf_hash,
                       coalesce(before.data_hash, sha256(before.salt || convert_to(before.data::text, 'UTF8'))))
                    IS DISTINCT FROM
                      (after.stream, after.version, after.type, after.metadata::text, after.recorded_at,
                       after.leaf_hash, after.data_hash)
                    OR after.data IS NOT NULL
                    OR after.type = 'Erased'
                    OR position NOT IN (
                        SELECT named::bigint FROM events, json_array_elements_text(data -> 'positions') AS named
                        WHERE type = 'Erased' AND named IS NOT NULL
                    )
            ) THEN
                RAISE EXCEPTION 'the log is immutable: UPDATE on events is refused'
                    USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            RETURN NULL;
        END $$
        """
    )
    # The session's own search path begins with its temporary tables: one called `events` would name any position.
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    for function in ("events_refuse_change", "events_check_erasure"):
        op.execute(f"ALTER FUNCTION {function}() SET search_path = {schema}, pg_temp")
    op.execute(
        """
        CREATE TRIGGER events_erasure AFTER UPDATE ON events
        REFERENCING OLD TABLE AS before NEW TABLE AS after
        FOR EACH STATEMENT EXECUTE FUNCTION events_check_erasure()
        """
    )
    op.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_erasure")
