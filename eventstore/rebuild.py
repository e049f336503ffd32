"""Rebuilds read models from the log: into fresh tables beside the live ones, then a swap in one short transaction.

The same statements run as in an append, over large ranges of positions (`eventstore.filling`). While they run,
writers and readers go on with the live tables. `check` does the same in temporary tables, and compares.

Invariants:
* Until the swap commits, nothing that anybody else reads is touched. The fresh tables stand in a schema of their own;
  an interrupted rebuild leaves nothing but that schema, if it leaves anything, and `discard_leftovers` drops it.
* One rebuild runs at a time, by an advisory lock that ends with its connection. A check shares that lock, since what
  it compares must not be swapped meanwhile.
* The swap waits for nobody while appends wait for it, but for a moment: who reads for long makes it try again later.
* The last events are read under a lock of the head's table, which appends take first: so no event is left out.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import psycopg
import sqlalchemy as sa
import structlog
from psycopg import sql

from eventstore.comparison import Difference, difference, differences, placed
from eventstore.errors import LogError, database_errors
from eventstore.filling import RANGE, Connection, Filling, Step, Task
from eventstore.grants import require_owner
from eventstore.projection import Projection

SCHEMA = "minutebook_rebuild"
CONNECTIONS = 2
# So few events that they can be read while appends wait.
_LAST_STRETCH = 250
# In all, for the locks of one attempt to swap, while appends wait and so do those who begin to read.
_LOCKED_WITHIN = 0.1  # seconds
# Before that, while nobody waits.
_VACUUMED_WITHIN = 3.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
# How long to try again before giving up.
PATIENCE = 60.0

_LOCK = 0x6D696E75_7466
_CANCELLED_WITHIN = 5  # seconds
_FETCHED_AT_ONCE = 1_000

Progress = Callable[[int, int], None]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did: up to which position the tables stand, and how it got them in place.

    `blocked` is for how many seconds at a time the swap held appends up, at the most, and `attempts` how often.
    """

    position: int
    blocked: float
    attempts: int


def rebuild(
    conninfo: str,
    projections: Sequence[Projection],
    *,
    range_size: int = RANGE,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> Rebuilt:
    """Rebuilds the projections' tables from position 1, and puts them in the place of the live ones.

    `progress(position, head)` is called as work is done, now from one thread and now from another. Interrupted by any
    exception, it stops what runs in the database and drops what it made. Raises `LogError` if another rebuild is under
    way, or somebody has been reading the live tables for so many seconds of `patience` that they could not be
    swapped; and `LogUnavailable` when the database cannot be reached.
    """
    require_owner(conninfo, "replay")
    with database_errors("the rebuild"), _only_one(conninfo) as connection:
        try:
            return _Rebuild(conninfo, connection, projections, progress, patience).run(range_size)
        except BaseException:
            # Without the database it is left to whoever comes next.
            with contextlib.suppress(psycopg.OperationalError):
                _drop_leftovers(connection)
            raise


def check(
    conninfo: str, projections: Sequence[Projection], *, range_size: int = RANGE, progress: Progress | None = None
) -> Iterator[Difference]:
    """Rebuilds the projections' tables as of one moment beside the live ones, and yields what is not the same.

    `before` is the live row, and `after` the rebuilt one. It holds nobody up, leaves nothing behind, and needs no right
    but to read and to make temporary tables. Raises as `rebuild` does.
    """
    with database_errors("the rebuild"), _only_one(conninfo, shared=True) as connection:
        live = str(_one(connection, "SELECT current_schema()"))
        _prepare(connection, "pg_temp", live)
        # One snapshot from the first look at the head on: log and live tables stand at the same position in it.
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            _fill_temporary(connection, projections, range_size, progress or _nothing)
            for projection in projections:
                for table in projection.tables:
                    yield from _compare(connection, table, live)


def discard_leftovers(conninfo: str) -> bool:
    """Drops what a rebuild left behind that was killed; returns whether there was anything.

    While a rebuild is under way it does nothing. Raises `LogUnavailable` when the database cannot be reached.
    """
    with database_errors("the rebuild"), _connect(conninfo) as connection:
        left = _one(connection, f"SELECT to_regnamespace('{SCHEMA}') IS NOT NULL")
        if not left or not _one(connection, f"SELECT pg_try_advisory_lock({_LOCK})"):
            return False
        try:
            _drop_leftovers(connection)
        except psycopg.errors.InsufficientPrivilege:
            _log.warning("a rebuild that was killed has left tables that only their owner can drop", schema=SCHEMA)
            return False
        return True


def _fill_temporary(
    connection: Connection, projections: Sequence[Projection], range_size: int, progress: Progress
) -> None:
    head = _head(connection)
    filling = Filling(projections, "pg_temp", indexes=False)
    _run(connection, *filling.fresh_tables())
    meter = _Meter(filling.steps(head, range_size), head, progress)
    for task in meter.tasks():
        task.run(connection)
        meter.done(task)


def _compare(connection: Connection, table: sa.Table, live: str) -> Iterator[Difference]:
    statement = differences(table, placed(table, schema=live), placed(table, schema="pg_temp"))
    # A cursor of the server's: nobody knows how many there are.
    with connection.cursor(table.name) as rows:
        rows.itersize = _FETCHED_AT_ONCE
        rows.execute(statement.text.encode())
        for row in rows:
            yield difference(table, row)


class _Meter:
    """Tells the progress of steps: as positions, so that it ends with the head."""

    def __init__(self, every: Sequence[Sequence[Step]], head: int, progress: Progress) -> None:
        self._every = every
        self._head = head
        self._progress = progress
        self._total = sum(task.size for task in self.tasks())
        self._done = 0
        self._telling = threading.Lock()

    def tasks(self) -> Iterator[Task]:
        """All tasks, in an order that each projection's steps are in."""
        return (task for steps in self._every for step in steps for task in step)

    def done(self, task: Task) -> None:
        """Tells that one more is done."""
        with self._telling:
            self._done += task.size
            self._progress(self._done * self._head // max(self._total, 1), self._head)


class _Crew:
    """Threads that run tasks, each on a connection of its own."""

    def __init__(self, connections: Sequence[Connection], meter: _Meter) -> None:
        self._connections = connections
        self._meter = meter
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        for connection in connections:
            self._idle.put(connection)
        # With each task those of its step that are not done yet, itself too, and the steps that come after it.
        self._under_way: dict[Future[None], tuple[set[Future[None]], Iterator[Step]]] = {}

    def run(self, every: Sequence[Sequence[Step]]) -> None:
        """Runs all steps. Whatever ends it, nothing of it runs any more when it returns."""
        with ThreadPoolExecutor(len(self._connections)) as threads:
            try:
                for steps in every:
                    self._begin(threads, iter(steps))
                while self._under_way:
                    for task in wait(self._under_way, return_when=FIRST_COMPLETED).done:
                        self._go_on(threads, task)
            except BaseException:
                self._stop()
                raise

    def _begin(self, threads: ThreadPoolExecutor, steps: Iterator[Step]) -> None:
        """Begins the next step that has tasks."""
        step = next((step for step in steps if step), ())
        tasks = {threads.submit(self._do, task) for task in step}
        self._under_way.update(dict.fromkeys(tasks, (tasks, steps)))

    def _go_on(self, threads: ThreadPoolExecutor, task: Future[None]) -> None:
        of_step, steps = self._under_way.pop(task)
        task.result()
        of_step.remove(task)
        if not of_step:
            self._begin(threads, steps)

    def _do(self, task: Task) -> None:
        connection = self._idle.get()
        try:
            task.run(connection)
        finally:
            self._idle.put(connection)
        self._meter.done(task)

    def _stop(self) -> None:
        """Ends what runs in the database too, where it would go on by itself."""
        for task in self._under_way:
            task.cancel()
        while running := [task for task in self._under_way if not task.done()]:
            # Again and again: one that comes between two statements stops nothing.
            for connection in self._connections:
                with contextlib.suppress(psycopg.Error):
                    connection.cancel_safe(timeout=_CANCELLED_WITHIN)
            wait(running, timeout=0.1)


class _Rebuild:
    def __init__(
        self,
        conninfo: str,
        connection: Connection,
        projections: Sequence[Projection],
        progress: Progress | None,
        patience: float,
    ) -> None:
        self._conninfo = conninfo
        self._connection = connection
        self._live = str(_one(connection, "SELECT current_schema()"))
        # Last ones first, as queries do, which join messages to accounts: else each could wait for the other.
        self._tables = [table.name for projection in projections for table in projection.tables][::-1]
        self._filling = Filling(projections, SCHEMA, indexes=True)
        self._progress = progress or _nothing
        self._patience = patience

    def run(self, range_size: int) -> Rebuilt:
        _drop_leftovers(self._connection)
        _run(self._connection, f"CREATE SCHEMA {SCHEMA}")
        _prepare(self._connection, SCHEMA, self._live)
        _run(self._connection, *self._filling.fresh_tables())
        position = _head(self._connection)
        every = self._filling.steps(position, range_size)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(_connect(self._conninfo)) for _ in range(CONNECTIONS)]
            for connection in connections:
                _prepare(connection, SCHEMA, self._live)
            _Crew(connections, _Meter(every, position, self._progress)).run(every)
        # None of that was waited for. This commit is, and brings all of it to disk before anybody has to wait for us.
        _run(self._connection, "SET synchronous_commit = on", f"COMMENT ON SCHEMA {SCHEMA} IS 'filled'")
        return self._put_in_place(position)

    def _put_in_place(self, position: int) -> Rebuilt:
        """Swaps the tables, as soon as the readers of the live ones let it."""
        give_up, pause, blocked = time.monotonic() + self._patience, _FIRST_PAUSE, 0.0
        for attempt in itertools.count(1):
            position = self._come_close(position)
            witness = _Witness(self._conninfo)
            try:
                with witness:
                    position = self._swap(position, witness)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                if time.monotonic() > give_up:
                    raise LogError(
                        f"the read models could not be swapped in {attempt} attempts, since somebody reads them all "
                        "the time (a dump, or a transaction that was left open): they are as they were"
                    ) from error
                blocked = max(blocked, witness.seconds)
            else:
                return Rebuilt(position, max(blocked, witness.seconds), attempt)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("it counts for ever")

    def _swap(self, after: int, witness: _Witness) -> int:
        """One attempt to swap the tables, and where they then stand."""
        with self._connection.transaction():
            # These wait only for a vacuum, and nobody for them. Postgres takes its own vacuum off a table that somebody
            # has waited for, but only after a second, which is too long for appends.
            self._lock(SCHEMA, "ACCESS EXCLUSIVE", within=_VACUUMED_WITHIN)
            self._lock(self._live, "SHARE UPDATE EXCLUSIVE", within=_VACUUMED_WITHIN)
            after = self._come_close(after)
            deadline = time.perf_counter() + _LOCKED_WITHIN
            witness.begin()
            # The table, not its row: an append locks this table first and the read models' next, so it waits here
            # while it holds none of those.
            self._lock(self._live, "EXCLUSIVE", ["log_head"], within=_LOCKED_WITHIN)
            witness.stand_behind()
            position = self._catch_up(after)
            self._lock(self._live, "ACCESS EXCLUSIVE", within=deadline - time.perf_counter())
            self._move()
        return position

    def _lock(self, schema: str, mode: str, tables: Sequence[str] | None = None, *, within: float) -> None:
        """Locks the read models' tables, or others, in a schema; all of them within so many seconds."""
        deadline = time.perf_counter() + within
        for table in self._tables if tables is None else tables:
            left = max(1, int((deadline - time.perf_counter()) * 1000))
            name = sql.Identifier(schema, table).as_string(self._connection)
            _run(self._connection, f"SET LOCAL lock_timeout = {left}", f"LOCK TABLE {name} IN {mode} MODE")

    def _come_close(self, position: int) -> int:
        """Catches up with what has come meanwhile, until so little is left that appends can wait for it."""
        while _head(self._connection) - position > _LAST_STRETCH:
            position = self._catch_up(position)
        return position

    def _catch_up(self, after: int) -> int:
        """Brings all tables from `after` to the head of now, and returns that."""
        head = _head(self._connection)
        with self._connection.transaction():
            self._filling.catch_up(self._connection, after, head)
        return head

    def _move(self) -> None:
        connection = self._connection
        rights = connection.execute(_RIGHTS.encode(), [SCHEMA, self._live, self._tables]).fetchall()
        drop, move = "DROP TABLE {}", "ALTER TABLE {} SET SCHEMA {}"
        for table in self._tables:
            live, fresh = sql.Identifier(self._live, table), sql.Identifier(SCHEMA, table)
            _run(connection, sql.SQL(drop).format(live).as_string(connection))
            _run(connection, sql.SQL(move).format(fresh, sql.Identifier(self._live)).as_string(connection))
        _run(connection, *(str(statement) for statement, _ in rights), f"DROP SCHEMA {SCHEMA}")


class _Witness:
    """Waits where appends wait, behind the swap: `seconds` is for how long.

    The answer to our commit would say too much. It comes when the old tables' files are removed, and that happens when
    the locks are let go already.
    """

    def __init__(self, conninfo: str) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._connection = _connect(conninfo)
        self._threads = ThreadPoolExecutor(1)
        self._let_go: Future[float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._let_go is not None:
            self.seconds = self._let_go.result() - self._began
        elif self._began:
            self.seconds = time.perf_counter() - self._began
        self._threads.shutdown()
        self._connection.close()

    def begin(self) -> None:
        """Says that from now on appends may have to wait."""
        self._began = time.perf_counter()

    def stand_behind(self) -> None:
        """Begins to wait; says that appends must, until the transaction's end."""
        self._let_go = self._threads.submit(self._wait)

    def _wait(self) -> float:
        # Without the database nobody waits any more.
        with contextlib.suppress(psycopg.OperationalError):
            _run(self._connection, "BEGIN", "LOCK TABLE log_head IN ROW EXCLUSIVE MODE", "COMMIT")
        return time.perf_counter()


# What must be said so that the fresh tables in schema $1, once they have come to schema $2, belong to whom the live
# ones belong to, and everybody may do with them what they may do with those. Mostly nothing.
_RIGHTS = """
    WITH pair AS (
        SELECT live.oid, format('%I.%I', $2::text, live.relname) AS name, live.relowner AS owner,
               coalesce(live.relacl, acldefault('r', live.relowner)) AS granted,
               coalesce(fresh.relacl, acldefault('r', fresh.relowner)) AS given,
               live.relowner <> fresh.relowner AS is_strange
        FROM pg_class live JOIN pg_class fresh USING (relname)
        WHERE relname = ANY ($3::text[])
          AND live.relnamespace = to_regnamespace(quote_ident($2)) AND fresh.relnamespace = to_regnamespace($1)
    ), granting AS (
        SELECT oid, name, '' AS columns, granted FROM pair WHERE granted <> given
        UNION ALL
        SELECT pair.oid, name, format(' (%I)', attname), attacl
        FROM pair JOIN pg_attribute ON attrelid = oid WHERE attacl IS NOT NULL
    )
    SELECT format('ALTER TABLE %s OWNER TO %s', name, owner::regrole), 1 AS step FROM pair WHERE is_strange
    UNION ALL
    SELECT format('REVOKE ALL ON %s FROM %s CASCADE', name,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END), 2
    FROM pair, aclexplode(given) WHERE granted <> given
    UNION ALL
    SELECT format('GRANT %s%s ON %s TO %s%s', privilege_type, columns, name,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
                  CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), 3
    FROM granting, aclexplode(granted)
    ORDER BY step
"""


@contextmanager
def _only_one(conninfo: str, *, shared: bool = False) -> Iterator[Connection]:
    """A connection that holds the lock of rebuilds; raises `LogError` if somebody else does."""
    kind = "_shared" if shared else ""
    with _connect(conninfo) as connection:
        if not _one(connection, f"SELECT pg_try_advisory_lock{kind}({_LOCK})"):
            raise LogError("another rebuild is under way")
        try:
            yield connection
        finally:
            # The database would let go of it too, but only some time after we have gone.
            with contextlib.suppress(psycopg.OperationalError):
                _one(connection, f"SELECT pg_advisory_unlock{kind}({_LOCK})")


def _connect(conninfo: str) -> Connection:
    return psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)


def _prepare(connection: Connection, schema: str, live: str) -> None:
    """Sets a connection up: fresh tables first, and nothing that only matters to those who wait for a commit."""
    path = sql.SQL("SET search_path = {}, {}").format(sql.Identifier(schema), sql.Identifier(live))
    _run(connection, path.as_string(connection), "SET TIME ZONE 'UTC'", "SET jit = off", "SET synchronous_commit = off")
    _run(connection, "SET maintenance_work_mem = '256MB'", "SET work_mem = '64MB'", "SET temp_buffers = '64MB'")
    # It takes as long as it takes.
    _run(connection, "SET statement_timeout = 0", "SET idle_in_transaction_session_timeout = 0")
    for wish in (
        # It costs more than the disk that it spares; on a Postgres of somebody else's we may not say so.
        "SET wal_compression = off",
        # A statement of ours ends when we are killed; not every system can tell.
        "SET client_connection_check_interval = '1s'",
    ):
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue):
            _run(connection, wish)


def _drop_leftovers(connection: Connection) -> None:
    _run(connection, f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def _head(connection: Connection) -> int:
    return int(str(_one(connection, "SELECT position FROM log_head")))


def _nothing(_position: int, _head: int) -> None:
    """What is done with the progress when nobody asks for it."""


def _one(connection: Connection, statement: str) -> object:
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None


def _run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(statement.encode())
