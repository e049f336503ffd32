"""Rebuilds read models from the log: into fresh tables beside the live ones, then a swap in one short transaction.

The same statements run as in an append, over large ranges of positions. While they run, writers and readers go on with
the live tables; the last few events and the swap happen under a lock of the head's table, which holds appends up for
as long as that takes. The fresh tables stand in a schema of their own that comes first in the search path, so the
statements need no other names; an interrupted rebuild leaves nothing but that schema, and the next one drops it.

A projection reads nothing but the log and its own tables, so two of them are filled at a time, and two indexes made.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import psycopg
from psycopg import sql
from sqlalchemy.schema import CreateIndex, CreateTable

from eventstore.errors import LogError, LogUnavailable
from eventstore.projection import Projection, log_range, types_in_range
from eventstore.statements import Statement, ddl

SCHEMA = "minutebook_rebuild"
RANGE = 50_000
CONNECTIONS = 2
# So few events that they can be read while appends wait.
_LAST_STRETCH = 1_000
_LOCK = 0x6D696E75_7466

Progress = Callable[[int, int], None]
T = TypeVar("T")
_Connection = psycopg.Connection[tuple[object, ...]]


def rebuild(
    conninfo: str,
    projections: Sequence[Projection],
    *,
    range_size: int = RANGE,
    progress: Progress | None = None,
) -> int:
    """Rebuilds the projections' tables from position 1, and returns the position up to which they then stand.

    `progress(position, head)` is called as the ranges are done, now from one thread and now from another. Raises
    `LogError` if another rebuild is under way, and `LogUnavailable` when the database cannot be reached.
    """
    try:
        with _connect(conninfo) as connection:
            if not _one(connection, f"SELECT pg_try_advisory_lock({_LOCK})"):
                raise LogError("another rebuild is under way")
            try:
                return _Rebuild(conninfo, connection, projections, range_size, progress).run()
            finally:
                # The database would let go of it too, but only some time after we have gone.
                with contextlib.suppress(psycopg.OperationalError):
                    _one(connection, f"SELECT pg_advisory_unlock({_LOCK})")
    except psycopg.OperationalError as error:
        raise LogUnavailable(f"the rebuild lost the database: {error}") from error


class _Fill:
    """The changes of one projection, ready to be run over ranges of the log."""

    def __init__(self, projection: Projection) -> None:
        self._changes = [(change.types, Statement(change.build(log_range()))) for change in projection.changes]

    def run(self, connection: _Connection, after: int, through: int) -> None:
        """Runs them over the events behind `after` up to `through`, but for those that would find none of theirs."""
        values = {"after": after, "through": through}
        rows = connection.execute(_TYPES.text, [values[name] for name in _TYPES.names])
        present = {str(name) for (name,) in rows}
        for types, change in self._changes:
            if types & present:
                connection.execute(change.text, [values[name] for name in change.names])


_TYPES = Statement(types_in_range())


class _Rebuild:
    def __init__(
        self,
        conninfo: str,
        connection: _Connection,
        projections: Sequence[Projection],
        range_size: int,
        progress: Progress | None,
    ) -> None:
        self._conninfo = conninfo
        self._connection = connection
        self._live = str(_one(connection, "SELECT current_schema()"))
        self._tables = [table for projection in projections for table in projection.tables]
        self._fills = [_Fill(projection) for projection in projections]
        self._range_size = range_size
        self._progress = progress
        self._done = 0
        self._telling = threading.Lock()
        self._stopped = threading.Event()

    def run(self) -> int:
        _run(self._connection, f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE", f"CREATE SCHEMA {SCHEMA}")
        self._prepare(self._connection)
        _run(self._connection, *(ddl(CreateTable(table)) for table in self._tables))
        position = self._head()
        self._together(lambda connection, fill: self._run_ranges(connection, fill, position), self._fills)
        indexes = [index for table in self._tables for index in sorted(table.indexes, key=lambda each: str(each.name))]
        self._together(lambda connection, index: _run(connection, ddl(CreateIndex(index))), indexes)
        # Making the indexes took a while; what came meanwhile is read before anybody has to wait.
        while self._head() - position > _LAST_STRETCH:
            position = self._catch_up(position)
        with self._connection.transaction():
            # What went before was not waited for; this commit is, and brings all of it to disk.
            _run(self._connection, "SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '10s'")
            # The table, not its row: an append locks this table first and the read models' next, so it waits here
            # while it holds none of those.
            _run(self._connection, "LOCK TABLE log_head IN EXCLUSIVE MODE")
            position = self._catch_up(position)
            self._swap()
        return position

    def _together(self, work: Callable[[_Connection, T], None], items: Iterable[T]) -> None:
        """Does the work on each item, on `CONNECTIONS` connections at a time; when one fails the others stop."""

        def do(item: T) -> None:
            if not self._stopped.is_set():
                with _connect(self._conninfo) as connection:
                    self._prepare(connection)
                    work(connection, item)

        with ThreadPoolExecutor(CONNECTIONS) as threads:
            tasks = [threads.submit(do, item) for item in items]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BaseException:
                self._stopped.set()
                raise

    def _prepare(self, connection: _Connection) -> None:
        """Sets a connection up: fresh tables first, and nothing that only matters to those who wait for a commit."""
        path = sql.SQL("SET search_path = {}, {}").format(sql.Identifier(SCHEMA), sql.Identifier(self._live))
        _run(connection, path.as_string(connection), "SET jit = off", "SET synchronous_commit = off")
        _run(connection, "SET maintenance_work_mem = '256MB'", "SET work_mem = '64MB'")
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            # It costs more than the disk that it spares; on a Postgres of somebody else's we may not say so.
            _run(connection, "SET wal_compression = off")

    def _run_ranges(self, connection: _Connection, fill: _Fill, through: int) -> None:
        for after in range(0, through, self._range_size):
            if self._stopped.is_set():
                return
            until = min(after + self._range_size, through)
            with connection.transaction():
                fill.run(connection, after, until)
            self._tell(until - after, through)

    def _tell(self, events: int, head: int) -> None:
        with self._telling:
            self._done += events
            if self._progress is not None:
                self._progress(self._done // len(self._fills), head)

    def _catch_up(self, after: int) -> int:
        """Brings all projections from `after` to the head of now, and returns that."""
        head = self._head()
        with self._connection.transaction():
            for fill in self._fills:
                fill.run(self._connection, after, head)
        return head

    def _swap(self) -> None:
        live, beside = sql.Identifier(self._live), sql.Identifier(SCHEMA)
        # Last ones first, as queries do, which join messages to accounts: else each could wait for the other.
        for table in reversed(self._tables):
            name = sql.Identifier(table.name)
            drop = sql.SQL("DROP TABLE {}.{}").format(live, name)
            move = sql.SQL("ALTER TABLE {}.{} SET SCHEMA {}").format(beside, name, live)
            _run(self._connection, drop.as_string(self._connection), move.as_string(self._connection))
        _run(self._connection, f"DROP SCHEMA {SCHEMA}")

    def _head(self) -> int:
        return int(str(_one(self._connection, "SELECT position FROM log_head")))


def _connect(conninfo: str) -> _Connection:
    return psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)


def _one(connection: _Connection, statement: str) -> object:
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None


def _run(connection: _Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(statement.encode())
