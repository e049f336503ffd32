"""How the tables of projections are filled from the log: which statements, in which order, and what may run at once.

Each projection has *steps*, one after the other; a step is a few *tasks* that may run in any order and at the same
time, on connections of their own. A projection reads nothing but the log and its own tables, so the steps of several
projections may be mixed as one likes.

For most projections a step is one range of the log, since what a range changes hangs on those before it. One whose
changes may run in any order (`Projection.unordered`) takes all ranges in one step, twice: at first what is inserted,
into tables without any key, and when these have their keys, what is changed and deleted. Other indexes come last.

The tables stand in a schema of their own, which must be the first in the connections' search path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa
from sqlalchemy.schema import AddConstraint, CreateIndex, CreateTable

from eventstore.comparison import placed
from eventstore.projection import Change, Projection, log_range, types_in_range
from eventstore.statements import Statement, ddl

RANGE = 50_000

Connection = psycopg.Connection[tuple[object, ...]]
# Behind the first position, up to the second.
Range = tuple[int, int]
# For the progress: indexing a table takes about as long as filling it from so small a part of the events.
_INDEXED_AT_ONCE = 8


@dataclass(frozen=True)
class Task:
    """A part of the work; `size` says how much of it that is, in events."""

    run: Callable[[Connection], None]
    size: int


Step = Sequence[Task]


class Filling:
    """The filling of projections' tables in `schema`, from position 1 on; other indexes than keys only if wanted."""

    def __init__(self, projections: Sequence[Projection], schema: str, *, indexes: bool) -> None:
        self._projections = [(projection, _placed(projection, schema)) for projection in projections]
        self._changes = [_Changes(projection.changes) for projection in projections]
        self._indexes = indexes

    def fresh_tables(self) -> Iterator[str]:
        """The statements that make the empty tables."""
        for projection, tables in self._projections:
            for table in tables:
                yield ddl(CreateTable(_bare(table) if projection.unordered else table))

    def steps(self, through: int, range_size: int = RANGE) -> list[list[Step]]:
        """The steps of each projection up to a position, first those of the projections that take most of them."""
        ranges = [(after, min(after + range_size, through)) for after in range(0, through, range_size)]
        types = TypesInRanges()
        every = [list(self._steps(*projection, ranges, types)) for projection in self._projections]
        return sorted(every, key=len, reverse=True)

    def catch_up(self, connection: Connection, after: int, through: int) -> None:
        """Takes all tables on by a range, once their steps are done; as a part of the connection's transaction."""
        present = TypesInRanges().of(connection, (after, through))
        for changes in self._changes:
            changes.run(connection, (after, through), present)

    def _steps(
        self, projection: Projection, tables: Sequence[sa.Table], ranges: Sequence[Range], types: TypesInRanges
    ) -> Iterator[Step]:
        if projection.unordered:
            inserts, others = (_Changes(changes) for changes in _parted(projection.changes))
            yield inserts.tasks(ranges, types)
            yield _indexing(_keys(tables), ranges)
            yield others.tasks(ranges, types)
        else:
            yield from ([task] for task in _Changes(projection.changes).tasks(ranges, types))
        if self._indexes:
            yield _indexing(_other_indexes(tables), ranges)


class TypesInRanges:
    """Which types of event each range holds, looked up once for all projections."""

    def __init__(self) -> None:
        self._known: dict[Range, frozenset[str]] = {}

    def of(self, connection: Connection, positions: Range) -> frozenset[str]:
        """The types in a range. Two threads may look at the same time, and find the same."""
        types = self._known.get(positions)
        if types is None:
            rows = _execute(connection, _TYPES, positions)
            types = self._known[positions] = frozenset(str(name) for (name,) in rows)
        return types


class _Changes:
    """Changes of one projection, ready to be run over ranges of the log."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self._statements = [(change.types, Statement(change.build(log_range()))) for change in changes]

    def tasks(self, ranges: Sequence[Range], types: TypesInRanges) -> list[Task]:
        """Running them over each of the ranges, each time as a transaction."""
        return [self._task(positions, types) for positions in ranges]

    def _task(self, positions: Range, types: TypesInRanges) -> Task:
        def run(connection: Connection) -> None:
            while not attempt(connection):
                pass

        def attempt(connection: Connection) -> bool:
            try:
                with connection.transaction():
                    self.run(connection, positions, types.of(connection, positions))
            except psycopg.errors.DeadlockDetected:
                # Two ranges may change the same rows, each in an order of its own. The other one goes on.
                return False
            return True

        after, through = positions
        return Task(run, through - after)

    def run(self, connection: Connection, positions: Range, present: frozenset[str]) -> None:
        """Runs them over a range, but for those whose types are not present in it."""
        for types, statement in self._statements:
            if types & present:
                _execute(connection, statement, positions)


_TYPES = Statement(types_in_range())


def _execute(connection: Connection, statement: Statement, positions: Range) -> psycopg.Cursor[tuple[object, ...]]:
    values = dict(zip(("after", "through"), positions, strict=True))
    return connection.execute(statement.text, [values[name] for name in statement.names])


def _parted(changes: Iterable[Change]) -> tuple[list[Change], list[Change]]:
    """The changes that insert rows, and the others."""
    parts: tuple[list[Change], list[Change]] = ([], [])
    for change in changes:
        parts[not isinstance(change.build(log_range()), sa.Insert)].append(change)
    return parts


def _placed(projection: Projection, schema: str) -> list[sa.Table]:
    return [placed(table, schema=schema) for table in projection.tables]


def _bare(table: sa.Table) -> sa.Table:
    """The table's columns alone: nothing slows rows down that come in."""
    columns = [sa.Column(column.name, column.type, nullable=column.nullable) for column in table.columns]
    return sa.Table(table.name, sa.MetaData(), *columns, schema=table.schema)


def _keys(tables: Iterable[sa.Table]) -> list[str]:
    """The statements that add the tables' keys."""
    return [
        ddl(AddConstraint(key, isolate_from_table=False))
        for table in tables
        for key in sorted(table.constraints, key=lambda each: str(each.name))
        if isinstance(key, sa.PrimaryKeyConstraint | sa.UniqueConstraint)
    ]


def _other_indexes(tables: Iterable[sa.Table]) -> list[str]:
    return [
        ddl(CreateIndex(index)) for table in tables for index in sorted(table.indexes, key=lambda each: str(each.name))
    ]


def _indexing(statements: Iterable[str], ranges: Sequence[Range]) -> list[Task]:
    size = ranges[-1][1] // _INDEXED_AT_ONCE if ranges else 0
    return [Task(_running(statement), size) for statement in statements]


def _running(statement: str) -> Callable[[Connection], None]:
    def run(connection: Connection) -> None:
        connection.execute(statement.encode())

    return run
