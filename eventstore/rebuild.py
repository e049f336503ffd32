"""Rebuilds read models from the log: into fresh tables beside the live ones, then a swap in one short transaction.

The same statements run as in an append, over large ranges of positions. While they run, writers and readers go on with
the live tables; the last few events and the swap happen under the head row's lock, which holds appends up for
as long as that takes. The fresh tables stand in a schema of their own that comes first in the search path, so the
statements need no other names; an interrupted rebuild leaves nothing but that schema, and the next one drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.schema import CreateIndex, CreateTable

from eventstore.errors import LogError, LogUnavailable
from eventstore.projection import Projection, log_range
from eventstore.statements import Statement, ddl

SCHEMA = "minutebook_rebuild"
RANGE = 50_000
# So few events that they can be read while appends wait.
_LAST_STRETCH = 1_000
_LOCK = 0x6D696E75_7466

Progress = Callable[[int, int], None]
_Connection = psycopg.Connection[tuple[object, ...]]


def rebuild(
    conninfo: str,
    projections: Sequence[Projection],
    *,
    range_size: int = RANGE,
    progress: Progress | None = None,
) -> int:
    """Rebuilds the projections' tables from position 1, and returns the position up to which they then stand.

    `progress(position, head)` is called after each range. Raises `LogError` if another rebuild is under way, and
    `LogUnavailable` when the database cannot be reached.
    """
    try:
        with psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
            return _Rebuild(connection, projections, range_size, progress or _silent).run()
    except psycopg.OperationalError as error:
        raise LogUnavailable(f"the rebuild lost the database: {error}") from error


def _silent(position: int, head: int) -> None:
    """No progress is to be shown."""


class _Rebuild:
    def __init__(
        self, connection: _Connection, projections: Sequence[Projection], range_size: int, progress: Progress
    ) -> None:
        self._connection = connection
        self._tables = [table for projection in projections for table in projection.tables]
        self._changes = [
            Statement(change.build(log_range())) for projection in projections for change in projection.changes
        ]
        self._range_size = range_size
        self._progress = progress

    def run(self) -> int:
        if not self._one(f"SELECT pg_try_advisory_lock({_LOCK})"):
            raise LogError("another rebuild is under way")
        live = str(self._one("SELECT current_schema()"))
        self._make_tables(live)
        position = self._fill(0)
        for statement in self._indexes():
            self._run(statement)
        # Making the indexes took a while; what came meanwhile is read before anybody has to wait.
        while self._head() - position > _LAST_STRETCH:
            position = self._fill(position)
        with self._connection.transaction():
            self._run("SET LOCAL lock_timeout = '10s'")
            self._run("SELECT position FROM log_head FOR UPDATE")
            position = self._fill(position)
            self._swap(live)
        return position

    def _make_tables(self, live: str) -> None:
        self._run(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        self._run(f"CREATE SCHEMA {SCHEMA}")
        path = sql.SQL("SET search_path = {}, {}").format(sql.Identifier(SCHEMA), sql.Identifier(live))
        self._run(path.as_string(self._connection))
        self._run("SET jit = off; SET maintenance_work_mem = '256MB'; SET work_mem = '64MB'")
        for table in self._tables:
            self._run(ddl(CreateTable(table)))

    def _indexes(self) -> list[str]:
        return [ddl(CreateIndex(index)) for table in self._tables for index in _in_order(table.indexes)]

    def _fill(self, after: int) -> int:
        """Runs the changes over the log from `after` to its head of now, and returns that."""
        head = self._head()
        while after < head:
            through = min(after + self._range_size, head)
            values = {"after": after, "through": through}
            with self._connection.transaction():
                for change in self._changes:
                    self._connection.execute(change.text, [values[name] for name in change.names])
            after = through
            self._progress(after, head)
        return after

    def _swap(self, live: str) -> None:
        target = sql.Identifier(live)
        for table in self._tables:
            name = sql.Identifier(table.name)
            drop = sql.SQL("DROP TABLE {}.{}").format(target, name)
            move = sql.SQL("ALTER TABLE {}.{} SET SCHEMA {}").format(sql.Identifier(SCHEMA), name, target)
            self._run(drop.as_string(self._connection))
            self._run(move.as_string(self._connection))
        self._run(f"DROP SCHEMA {SCHEMA}")

    def _head(self) -> int:
        return int(str(self._one("SELECT position FROM log_head")))

    def _one(self, statement: str) -> object:
        row = self._connection.execute(statement.encode()).fetchone()
        return row[0] if row else None

    def _run(self, statement: str) -> None:
        self._connection.execute(statement.encode())


def _in_order(indexes: set[sa.Index]) -> list[sa.Index]:
    return sorted(indexes, key=lambda index: str(index.name))
