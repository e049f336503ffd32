"""What somebody who may do everything in the database could do to the log, and put its guards back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import sql

from eventstore import merkle
from tests import tables

_GUARDS = {"events": ("events_immutable", "events_erasure"), "checkpoints": ("checkpoints_immutable",)}
COLUMNS = "position, stream, version, type, data::text, metadata::text, recorded_at, salt, data_hash"


class Tampering:
    """Changes of a log whose guards are down."""

    def __init__(self, connection: tables.Connection) -> None:
        self.connection = connection

    def run(self, statement: str, **values: object) -> None:
        """Runs a statement with `%(name)s` for its values."""
        self.connection.execute(statement.encode(), values or None)

    def change(self, position: int, **columns: object) -> None:
        """Gives columns of an event other values."""
        for column, value in columns.items():
            statement = sql.SQL("UPDATE events SET {} = %s WHERE position = %s").format(sql.Identifier(column))
            self.connection.execute(statement, [value, position])

    def delete(self, after: int, through: int) -> None:
        """Deletes the events behind a position up to another."""
        self.run("DELETE FROM events WHERE position > %(a)s AND position <= %(b)s", a=after, b=through)

    def move_head(self, position: int) -> None:
        """Makes the head say that the log ends there."""
        self.run(
            "UPDATE log_head SET position = %(p)s, recorded_at = "
            "coalesce((SELECT recorded_at FROM events WHERE position = %(p)s), recorded_at)",
            p=position,
        )

    def swap(self, one: int, other: int) -> None:
        """Exchanges the places of two events."""
        for old, new in ((one, 1_000_000), (other, one), (1_000_000, other)):
            self.run("UPDATE events SET position = %(new)s WHERE position = %(old)s", old=old, new=new)

    def insert(self, position: int) -> None:
        """Puts a copy of an event before it, and moves all behind it one on."""
        self.run("UPDATE events SET position = position + 1000000 WHERE position >= %(p)s", p=position)
        self.run("UPDATE events SET position = position - 999999 WHERE position > 1000000")
        self.run(
            "INSERT INTO events SELECT %(p)s, stream || '-forged', 1, type, data, metadata, recorded_at, salt, "
            "leaf_hash, data_hash FROM events WHERE position = %(p)s + 1",
            p=position,
        )
        self.run("UPDATE log_head SET position = position + 1")

    def hash_anew(self, position: int) -> None:
        """Gives an event the leaf hash that it should have as it stands now."""
        [row] = tables.rows(self.connection, f"SELECT {COLUMNS} FROM events WHERE position = %(p)s", p=position)
        self.change(position, leaf_hash=leaf_hash_of(*row))

    def forget_checkpoints(self) -> None:
        """Deletes what was kept of the tree."""
        self.run("DELETE FROM checkpoints")
        self.run("DELETE FROM tree_hashes")


@contextmanager
def tampering(database: str) -> Iterator[Tampering]:
    """Takes the guards of a log down, and puts them back up."""
    with tables.connect(database) as connection:
        for table, triggers in _GUARDS.items():
            for trigger in triggers:
                tables.run(connection, "ALTER TABLE {} DISABLE TRIGGER {}", table, trigger)
        yield Tampering(connection)
        for table, triggers in _GUARDS.items():
            for trigger in triggers:
                tables.run(connection, "ALTER TABLE {} ENABLE ALWAYS TRIGGER {}", table, trigger)


def leaf_hash_of(
    position: int, stream: str, version: int, kind: str, data: str | None, metadata: str, at: Any, salt: Any, kept: Any
) -> bytes:
    """The leaf hash that an event should have, from a row of `COLUMNS`."""
    return merkle.leaf_hash(
        merkle.entry(
            position=position,
            stream=stream,
            version=version,
            event_type=kind,
            metadata=metadata.encode(),
            recorded_at=at,
            data_hash=kept if data is None else merkle.data_hash(salt, data.encode()),
        )
    )
