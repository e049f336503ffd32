"""Imports what `exporting` wrote into an empty log: the same positions, the same bytes, the same tree.

Invariants:
* Every line is checked before it counts (`eventstore.transfer.checking`), and the whole once more where it takes the
  whole.
* It is one transaction, read models included, under the lock that an append takes first. What is refused or
  interrupted, wherever it is, leaves an empty log.
* The file is read once, as a stream; how large it is does not matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import IO

import psycopg
import sqlalchemy as sa
from sqlalchemy.schema import AddConstraint, CreateIndex, DropConstraint, DropIndex

from eventstore.erasure import named_positions
from eventstore.errors import LogError, database_errors
from eventstore.filling import Filling
from eventstore.grants import require_owner
from eventstore.projection import Projection
from eventstore.statements import Statement, ddl, inline
from eventstore.tables import commands, events, log_head, log_key
from eventstore.transfer.checking import BadExport, ExportCheck, Header, Imported
from eventstore.transparency.notes import VerifierKey

# Events that are stored while as many are checked, and how many of them are sent at a time.
_BATCH = 20_000
_ROWS_AT_ONCE = 128
_IN_MEMORY = 1 << 20

Progress = Callable[[int, int], None]
_Connection = psycopg.Connection[tuple[object, ...]]


class NotEmpty(LogError):
    """The log has events already."""

    def __init__(self) -> None:
        super().__init__("the log is not empty: import into a new data folder or database, before its first `serve`")


def import_log(
    conninfo: str,
    header: Header,
    lines: Iterable[bytes],
    projections: Sequence[Projection],
    *,
    key: VerifierKey | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Makes the log of a migrated, empty database: `lines` are those behind the header, with their line breaks.

    Checkpoints must be signed by `key`; without it by the key that the header names, which shows only that the file
    agrees with itself. `progress(done, of)` counts events. Raises `BadExport`, `NotEmpty`, `LogError` for those who do
    not own the tables, and `LogUnavailable` when the database cannot be reached.
    """
    check = ExportCheck(header, key)
    require_owner(conninfo, "an import")
    with _transaction(conninfo) as connection, SpooledTemporaryFile(_IN_MEMORY) as notes:
        store = _Store(connection, projections)
        with _bad_if_refused():
            store.prepare()
            for done in store.take(check.rows(lines, notes)):
                if progress is not None:
                    progress(done, header.through)
            imported = check.outcome()
            store.finish()
            _check_whole(connection)
            _complete(connection, check, notes)
    return imported


@contextmanager
def _bad_if_refused() -> Iterator[None]:
    """What the database does not take is no log, however well its hashes agree."""
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        raise BadExport(f"no log can be made of this: {error.diag.message_primary}{detail}") from error


class _Store:
    """Puts events into the log and the read models, many at a time, while the next ones are read and checked."""

    def __init__(self, connection: _Connection, projections: Sequence[Projection]) -> None:
        self._connection = connection
        self._filling = Filling(projections, str(_one(connection, _SCHEMA)), indexes=False)
        tables = [table for projection in projections for table in projection.tables]
        self._indexes = [index for table in tables for index in table.indexes]
        self._stored = 0

    def prepare(self) -> None:
        """Takes away the indexes that nothing here needs: to make them at the end costs half as much."""
        _run(self._connection, ddl(DropConstraint(_PLACE_IN_STREAM)), *(ddl(DropIndex(each)) for each in self._indexes))

    def finish(self) -> None:
        """Makes them again."""
        _run(self._connection, "SET LOCAL maintenance_work_mem = '256MB'")
        _run(self._connection, ddl(AddConstraint(_PLACE_IN_STREAM, isolate_from_table=False)))
        _run(self._connection, *(ddl(CreateIndex(each)) for each in self._indexes))

    def take(self, rows: Iterator[bytes]) -> Iterator[int]:
        """Stores the rows, and tells how many are."""
        with ThreadPoolExecutor(1) as thread:
            storing: Future[int] | None = None
            while batch := list(itertools.islice(rows, _BATCH)):
                if storing is not None:
                    yield storing.result()
                storing = thread.submit(self._store, batch)
            if storing is not None:
                yield storing.result()

    def _store(self, rows: list[bytes]) -> int:
        with self._connection.cursor().copy(_COPY_EVENTS.encode()) as copy:
            for i in range(0, len(rows), _ROWS_AT_ONCE):
                copy.write(b"".join(rows[i : i + _ROWS_AT_ONCE]))
        after, self._stored = self._stored, self._stored + len(rows)
        self._filling.catch_up(self._connection, after, self._stored)
        return self._stored


@contextmanager
def _transaction(conninfo: str) -> Iterator[_Connection]:
    """A connection with an open transaction, in which the log is empty and nobody else can append."""
    settings = "SET TIME ZONE 'UTC'; SET jit = off; SET lock_timeout = '10s'; SET statement_timeout = 0"
    with (
        database_errors("the import"),
        psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor) as connection,
    ):
        _run(connection, settings)
        try:
            with connection.transaction():
                # An append locks this table first.
                _run(connection, "LOCK TABLE log_head IN EXCLUSIVE MODE", "SET LOCAL synchronous_commit = on")
                if _one(connection, _IS_BEGUN):
                    raise NotEmpty
                yield connection
        except psycopg.errors.LockNotAvailable as error:
            raise LogError("somebody works on this log: stop the server, and import into an empty one") from error


_IS_BEGUN = Statement(
    sa.select(sa.or_(sa.exists().select_from(events), sa.exists().where(log_head.c.position > sa.literal_column("0"))))
)
_COPY_EVENTS = (
    "COPY events (position, stream, version, type, recorded_at, leaf_hash, metadata, data, salt, data_hash) FROM STDIN"
)
_SCHEMA = Statement(sa.select(sa.func.current_schema()))
(_PLACE_IN_STREAM,) = (key for key in events.constraints if isinstance(key, sa.UniqueConstraint))
_COPY_CHECKPOINTS = "COPY checkpoints (size, note, signed_at) FROM STDIN"


def _first_without_predecessor() -> Statement:
    """The first event whose stream has none with the version before at an earlier position.

    Versions are unique in their stream, so without such an event they are gapless and in the order of positions.
    """
    before = events.alias("before")
    c = events.c
    predecessor = sa.exists().where(
        before.c.stream == c.stream, before.c.version == c.version - _ONE, before.c.position < c.position
    )
    return Statement(sa.select(sa.func.min(c.position)).where(c.version > _ONE, sa.not_(predecessor)))


def _first_erased_by_nobody() -> Statement:
    named = named_positions(events).subquery("named")
    (position,) = named.c
    is_named = sa.exists().where(position == events.c.position)
    return Statement(sa.select(sa.func.min(events.c.position)).where(events.c.data.is_(None), sa.not_(is_named)))


def _first_left_after_erasure() -> Statement:
    named = named_positions(events.alias("erasures")).subquery("named")
    (position,) = named.c
    found = sa.select(sa.func.min(events.c.position)).join_from(named, events, position == events.c.position)
    return Statement(found.where(events.c.data.is_not(None)))


_ONE = sa.literal_column("1", sa.BigInteger)
_FAULTS = (
    (_first_without_predecessor(), "its version is not the next one of its stream"),
    (_first_erased_by_nobody(), "it is erased, and no event says so"),
    (_first_left_after_erasure(), "an event says that it was erased, and it was not"),
)


def _check_whole(connection: _Connection) -> None:
    """What no line shows by itself; raises `BadExport`."""
    # Without it the plans are those for a table as empty as it was.
    _run(connection, "ANALYZE events")
    for statement, fault in _FAULTS:
        position = _one(connection, statement)
        if position is not None:
            raise BadExport(f"position {position}: {fault}")


def _commands() -> Statement:
    """Keeps the command ids again; the events of one append have the same."""
    command_id = events.c.metadata[inline("command_id")].astext
    # Few events have one, and looking for it costs less than taking the JSON apart.
    mentioned = sa.func.strpos(sa.cast(events.c.metadata, sa.Text), inline('"command_id"')) > sa.literal_column("0")
    rows = sa.select(command_id, sa.func.min(events.c.position), sa.func.max(events.c.position))
    rows = rows.where(mentioned, command_id.is_not(None)).group_by(command_id)
    return Statement(sa.insert(commands).from_select(["command_id", "first_position", "last_position"], rows))


def _head() -> Statement:
    last = sa.select(events.c.position, events.c.recorded_at).order_by(events.c.position.desc()).limit(_ONE)
    found = last.subquery("last")
    moved = sa.update(log_head).values(position=found.c.position, recorded_at=found.c.recorded_at)
    return Statement(moved)


_COMMANDS = _commands()
_HEAD = _head()
_KEY = Statement(
    sa.insert(log_key).from_select(["verifier_key"], sa.select(sa.bindparam("verifier_key", type_=sa.Text)))
)


def _complete(connection: _Connection, check: ExportCheck, notes: IO[bytes]) -> None:
    """The tables of the log beside its events."""
    _execute(connection, _COMMANDS)
    _execute(connection, _HEAD)
    if check.verifier_key is not None:
        _execute(connection, _KEY, verifier_key=check.verifier_key)
    notes.seek(0)
    with connection.cursor().copy(_COPY_CHECKPOINTS.encode()) as copy:
        while part := notes.read(_IN_MEMORY):
            copy.write(part)


def _execute(connection: _Connection, statement: Statement, **values: object) -> psycopg.Cursor[tuple[object, ...]]:
    return connection.execute(statement.text, [values[name] for name in statement.names])


def _one(connection: _Connection, statement: Statement) -> object:
    row = _execute(connection, statement).fetchone()
    return row[0] if row else None


def _run(connection: _Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(statement.encode())
