"""Time travel: the read models as they were at a position of the log, made in one session's temporary tables.

The changes of the projections run over the events up to that position, as in a rebuild, and the projections' own
queries then run on the same session, whose temporary tables stand before the live ones of the same names.

Invariants:
* Nothing but the session's own tables is written to: it is read-only from the moment that they are made, and before
  that makes nothing elsewhere. So it takes no right but SELECT, and TEMPORARY on the database.
* The session is never replaced by another one, which would answer from the live tables.
* What was erased since is gone at every position.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from eventstore.comparison import Difference, difference, placed
from eventstore.connection import Connection, Row
from eventstore.errors import LogUnavailable
from eventstore.projection import Projection, log_range, types_in_range
from eventstore.reader import Reader
from eventstore.statements import Statement, ddl

# A range's statement takes a fraction of a second, so that whoever waits sees it go on and can give it up.
RANGE = 20_000
PAGE = 5_000

# Called with the position that is reached and the one that is wanted.
Progress = Callable[[int, int], None]
Key = tuple[Any, ...]

_TEMPORARY = "pg_temp"
_SETTINGS = (
    # A search path that names it elsewhere would have the changes written to the live tables.
    "SELECT set_config('search_path', concat_ws(', ', 'pg_temp', nullif(current_setting('search_path'), '')), false)",
    "SET temp_buffers = '128MB'",
    "SET work_mem = '64MB'",
)
_READ_ONLY = "SET default_transaction_read_only = on"
_TYPES = Statement(types_in_range())


class Past(Reader):
    """The read models of some projections as of `position`, 0 at first: `async with Past(conninfo, projections)`.

    It is the reader for those projections' queries. Tables of others it does not have: a query that joins them needs
    their projections, too. Raises `LogError` if the role may make no temporary tables, and `LogUnavailable`.
    """

    def __init__(self, conninfo: str, projections: Sequence[Projection]) -> None:
        super().__init__(conninfo, size=1)
        self.tables = [table for projection in projections for table in projection.tables]
        self.position = 0
        self._changes = [
            (change.types, Statement(change.build(log_range())))
            for projection in projections
            for change in projection.changes
        ]

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            for text in (*_SETTINGS, *_making(self.tables), _READ_ONLY):
                await self.fetch(Statement(sa.text(text)))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def go_to(self, position: int, progress: Progress | None = None) -> None:
        """Takes the tables forward to a position. There is no way back: `ValueError` for one that lies behind."""
        if position < self.position:
            raise ValueError(f"position {position} lies before {self.position}")
        while self.position < position:
            await self._take(min(self.position + RANGE, position))
            if progress is not None:
                progress(self.position, position)

    async def _take(self, through: int) -> None:
        bounds = {"after": self.position, "through": through}
        present = {name for (name,) in await self.fetch(_TYPES, **bounds)}
        for types, change in self._changes:
            if types & present:
                await self.fetch(change, **bounds)
        self.position = through

    async def _connection(self) -> Connection:
        if not self._idle or self._idle[-1].broken.done():
            raise LogUnavailable("the connection on which the past was made is lost, and the past with it")
        return self._idle.pop()


def _making(tables: Sequence[sa.Table]) -> Iterator[str]:
    for table in tables:
        temporary = placed(table, schema=_TEMPORARY)
        yield ddl(CreateTable(temporary))
        yield from (ddl(CreateIndex(index)) for index in temporary.indexes)


class Interval:
    """The same read models at two positions: `async with Interval(conninfo, projections) as interval`.

    They are made on two connections, side by side, and compared page by page: in little memory, however large they are.
    """

    def __init__(self, conninfo: str, projections: Sequence[Projection]) -> None:
        self.before = Past(conninfo, projections)
        self.after = Past(conninfo, projections)

    async def __aenter__(self) -> Self:
        await self.before.__aenter__()
        try:
            await self.after.__aenter__()
        except BaseException:
            await self.before.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.after.__aexit__(kind, error, traceback)
        await self.before.__aexit__(kind, error, traceback)

    async def go_to(self, first: int, last: int, progress: Progress | None = None) -> None:
        """Takes the two to their positions."""

        def tell(_reached: int, _wanted: int) -> None:
            if progress is not None:
                progress(self.before.position + self.after.position, first + last)

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.before.go_to(first, tell))
                tasks.create_task(self.after.go_to(last, tell))
        except ExceptionGroup as failed:
            # Whichever failed first, the other was given up.
            raise failed.exceptions[0] from None

    async def differences(self) -> AsyncIterator[Difference]:
        """What is not the same in the two, table by table, each in the order of its primary key."""
        for table in self.before.tables:
            async for found in self._differences(table):
                yield found

    async def _differences(self, table: sa.Table) -> AsyncIterator[Difference]:
        pages = _Pages(table)
        through: Key | None = None
        while True:
            old, new = await asyncio.gather(pages.behind(self.before, through), pages.behind(self.after, through))
            # Of two pages that end at different keys, only what lies before both ends can be compared.
            through = min((pages.key(page[-1]) for page in (old, new) if len(page) == PAGE), default=None)
            if old != new:
                for found in pages.compared(old, new, through):
                    yield found
            if through is None:
                return


class _Pages:
    """A table read in pages, in the order of its primary key."""

    def __init__(self, table: sa.Table) -> None:
        self._table = table
        keys = list(table.primary_key)
        self._places = [list(table.columns).index(column) for column in keys]
        ordered = sa.select(table).order_by(*keys).limit(sa.literal_column(str(PAGE)))
        self._names = [f"key_{column.name}" for column in keys]
        values = [sa.bindparam(name, type_=column.type) for name, column in zip(self._names, keys, strict=True)]
        self._first = Statement(ordered)
        self._next = Statement(ordered.where(sa.tuple_(*keys) > sa.tuple_(*values)))

    async def behind(self, reader: Reader, key: Key | None) -> list[Row]:
        """The rows behind a key; the first ones, if there is none."""
        if key is None:
            return await reader.fetch(self._first)
        return await reader.fetch(self._next, **dict(zip(self._names, key, strict=True)))

    def key(self, row: Row) -> Key:
        """The primary key of a row."""
        return tuple(row[place] for place in self._places)

    def compared(self, old: Sequence[Row], new: Sequence[Row], through: Key | None) -> Iterator[Difference]:
        """The differences of two pages up to a key, or up to their ends."""
        before, after = (
            {key: row for row in page if (key := self.key(row)) and (through is None or key <= through)}
            for page in (old, new)
        )
        nothing = (None,) * len(self._table.columns)
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield difference(self._table, (*before.get(key, nothing), *after.get(key, nothing)))
