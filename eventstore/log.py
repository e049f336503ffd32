"""The log: append, read, follow. This is what the rest of the house sees of `eventstore`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from eventstore.barrier import ReadBarrier
from eventstore.erasure import ERASED
from eventstore.errors import LogError
from eventstore.events import Appended, Context, RecordedEvent, StreamWrite
from eventstore.feed import POLL_SECONDS, Feed, Subscriber
from eventstore.projection import Projection
from eventstore.reader import Reader
from eventstore.statements import Statement, inline
from eventstore.tables import events, log_head
from eventstore.writer import Writer

_COLUMNS = (
    events.c.position,
    events.c.stream,
    events.c.version,
    events.c.type,
    # The text as it was hashed, not a value that would have to be made canonical again.
    sa.func.convert_to(sa.cast(events.c.data, sa.Text), "UTF8"),
    sa.func.convert_to(sa.cast(events.c.metadata, sa.Text), "UTF8"),
    events.c.recorded_at,
)
_PAGE = Statement(
    sa.select(*_COLUMNS)
    .where(events.c.position > sa.bindparam("after", type_=sa.BigInteger))
    .order_by(events.c.position)
    .limit(sa.bindparam("limit", type_=sa.BigInteger))
)
_STREAM = Statement(
    sa.select(*_COLUMNS)
    .where(events.c.stream == sa.bindparam("stream", type_=sa.Text))
    .where(events.c.version > sa.bindparam("after", type_=sa.BigInteger))
    .order_by(events.c.version)
    .limit(sa.bindparam("limit", type_=sa.BigInteger))
)
_AT = Statement(sa.select(*_COLUMNS).where(events.c.position == sa.bindparam("position", type_=sa.BigInteger)))


def _erasing() -> Statement:
    """The events by which the data at `:position` was erased: few of the log's, found by an index of their own."""
    position = sa.bindparam("position", type_=sa.BigInteger)
    named = sa.func.json_array_elements_text(events.c.data[inline("positions")]).table_valued("value").lateral("named")
    is_named = sa.select(named.c.value).where(sa.cast(named.c.value, sa.BigInteger) == position).exists()
    found = sa.select(*_COLUMNS).where(events.c.type == inline(ERASED), events.c.position > position, is_named)
    return Statement(found.order_by(events.c.position))


_ERASING = _erasing()
_RECORDED_AT = Statement(
    sa.select(events.c.recorded_at).where(events.c.position == sa.bindparam("position", type_=sa.BigInteger))
)
_HEAD = Statement(sa.select(log_head.c.position))


class EventLog:
    """The totally ordered log of events in Postgres, as one process uses it: `async with EventLog(conninfo) as log`.

    `projections` are the read models that every append keeps up, in its own transaction. A log that is only read
    (`writable=False`) opens no writer.
    """

    def __init__(
        self,
        conninfo: str,
        projections: Sequence[Projection] = (),
        *,
        readers: int = 8,
        poll_seconds: float = POLL_SECONDS,
        writable: bool = True,
    ) -> None:
        self.reader = Reader(conninfo, size=readers)
        self._feed = Feed(conninfo, self.read, poll_seconds=poll_seconds)
        self._barrier = ReadBarrier(self.head, self._feed)
        self._writer = (
            Writer(conninfo, projections, on_commit=self._feed.offer, on_backend=self._feed.commits_by)
            if writable
            else None
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.reader)
            stack.push_async_callback(self._barrier.close)
            if self._writer is not None:
                await self._writer.connect()
                stack.push_async_callback(self._writer.close)
            self._feed.start_at(await self.head())
            self._stack = stack.pop_all()
        self._tasks = [asyncio.create_task(self._feed.run(), name="log feed")]
        if self._writer is not None:
            self._tasks.append(asyncio.create_task(self._writer.run(), name="log writer"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            await self._writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def watch(self) -> None:
        """Waits for ever; raises what stopped a background task of the log, should that happen."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def append(self, *writes: StreamWrite, context: Context, command_id: str | None = None) -> Appended:
        """Appends all the writes in one transaction, or none of them, and returns after the commit.

        The repeat of a `command_id` appends nothing and returns the first outcome. Raises `WrongVersion` if a stream
        is not where its write expected it, `InvalidEvent`, and `LogUnavailable` (the append may have been committed).
        """
        if self._writer is None:
            raise TypeError("this log was opened for reading only")
        return await self._writer.append(writes, context, command_id)

    async def read(self, after: int = 0, limit: int = 1000) -> list[RecordedEvent]:
        """Up to `limit` events behind position `after`, in order."""
        return [RecordedEvent(*row) for row in await self.reader.fetch(_PAGE, after=after, limit=limit)]

    async def read_stream(self, stream: str, after: int = 0, limit: int = 1000) -> list[RecordedEvent]:
        """Up to `limit` events of one stream behind version `after`, in order."""
        rows = await self.reader.fetch(_STREAM, stream=stream, after=after, limit=limit)
        return [RecordedEvent(*row) for row in rows]

    async def event_at(self, position: int) -> RecordedEvent | None:
        """The event at this position, or None behind the end of the log."""
        row = await self.reader.fetch_one(_AT, position=position)
        return None if row is None else RecordedEvent(*row)

    async def erasures_of(self, position: int) -> list[RecordedEvent]:
        """The events that erased the data of the event at this position, in order."""
        return [RecordedEvent(*row) for row in await self.reader.fetch(_ERASING, position=position)]

    async def head(self) -> int:
        """The last position of the log, 0 while it is empty."""
        row = await self.reader.fetch_one(_HEAD)
        return 0 if row is None else int(row[0])

    async def position_at(self, moment: datetime) -> int:
        """The last position that was recorded at or before this moment, which has a time zone; 0 if none was.

        Times never go back from one position to the next, so a handful of looks finds it in a log of any length.
        Raises `LogError` if an event that it looks at is missing.
        """
        before, behind = 0, await self.head() + 1
        while behind - before > 1:
            middle = (before + behind) // 2
            if await self._recorded_at(middle) <= moment:
                before = middle
            else:
                behind = middle
        return before

    async def _recorded_at(self, position: int) -> datetime:
        row = await self.reader.fetch_one(_RECORDED_AT, position=position)
        if row is None:
            raise LogError(f"event {position} is missing from the log")
        recorded_at: datetime = row[0]
        return recorded_at

    def follow(self, after: int = 0) -> AsyncIterator[list[RecordedEvent]]:
        """Batches of events behind position `after`, in order and without gaps, for ever."""
        return self._feed.follow(after)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Calls `subscriber` with every batch committed from now on, by any process: for caches to forget.

        See `Feed.subscribe` for what it may rely on; who needs order and every event exactly once uses `follow`.
        """
        self._feed.subscribe(subscriber)

    async def caught_up(self) -> bool:
        """Whether subscribers were told all that was committed, by any process, before this call.

        Then what they keep is as new as what a query would find. False after a short wait for it: ask the database.
        Raises `LogUnavailable`.
        """
        return await self._barrier.caught_up()

    @property
    def ready(self) -> bool:
        """Whether appends are taken and other processes' events arrive."""
        return (self._writer is None or self._writer.connected) and self._feed.listening.is_set()

    async def listening(self) -> None:
        """Returns once other processes' commits wake this one."""
        await self._feed.listening.wait()
