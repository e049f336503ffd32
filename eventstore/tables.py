"""The log's tables. Alembic makes them (`eventstore/migrations`); a test holds the two equal."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSON, TIMESTAMP

# The names that Postgres itself would give.
NAMING = {
    "pk": "%(table_name)s_pkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}

metadata = sa.MetaData(naming_convention=NAMING)

# Names are compared byte by byte: the same order on every machine, and faster than a language's collation.
NAME = sa.Text(collation="C")

events = sa.Table(
    "events",
    metadata,
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stream", NAME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("type", NAME, nullable=False),
    # `json`, not `jsonb`: it keeps the canonical text as it was hashed, byte for byte. Empty once erased.
    sa.Column("data", JSON),
    sa.Column("metadata", JSON, nullable=False),
    sa.Column("recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("salt", BYTEA),
    sa.Column("leaf_hash", BYTEA, nullable=False),
    # `SHA-256(salt || data)`, once they are erased: without it nobody could compute the leaf hash again.
    sa.Column("data_hash", BYTEA),
    sa.UniqueConstraint("stream", "version"),
    sa.CheckConstraint("position > 0", name="position"),
    sa.CheckConstraint("version > 0", name="version"),
    sa.CheckConstraint("(data IS NULL) = (salt IS NULL) AND (data IS NULL) = (data_hash IS NOT NULL)", name="erasure"),
    # The few events that say what was erased, for those who ask whether an empty one is named by any.
    sa.Index("events_erased_idx", "position", postgresql_where=sa.text("type = 'Erased'")),
)

# One row: the last position of the log. An append updates it first, and its lock lasts to the commit, which is
# what makes positions gapless and puts them in commit order.
log_head = sa.Table(
    "log_head",
    metadata,
    sa.Column("only", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.CheckConstraint('"only"', name="only"),
)

# What each command id brought about, for ever: the events of an append stand side by side.
commands = sa.Table(
    "commands",
    metadata,
    sa.Column("command_id", NAME, primary_key=True),
    sa.Column("first_position", sa.BigInteger, nullable=False),
    sa.Column("last_position", sa.BigInteger, nullable=False),
)

# When each node was last heard of, by the database's clock (`eventstore.leases`).
node_leases = sa.Table(
    "node_leases",
    metadata,
    sa.Column("node_id", NAME, primary_key=True),
    sa.Column("renewed_at", TIMESTAMP(timezone=True), nullable=False),
)

# The Merkle tree above its leaves, as far as it will never change: at level 1 the hashes of 256 leaves each, at level 2
# of 256 of those, and so on (the levels of C2SP's tlog-tiles; level 0 are the events' leaf hashes).
tree_hashes = sa.Table(
    "tree_hashes",
    metadata,
    sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", BYTEA, nullable=False),
)

# Every checkpoint that was ever signed, as a signed note (C2SP tlog-checkpoint), by the size of the tree.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("signed_at", TIMESTAMP(timezone=True), nullable=False),
    sa.CheckConstraint("size > 0", name="size"),
)

# One row: by which key this log's checkpoints are signed, as a verifier key (C2SP signed-note).
log_key = sa.Table(
    "log_key",
    metadata,
    sa.Column("only", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("verifier_key", sa.Text, nullable=False),
    sa.CheckConstraint('"only"', name="only"),
)
