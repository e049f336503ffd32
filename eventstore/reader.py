"""Reading: a few connections that run compiled statements, for the log and for the read models alike.

What is asked in one turn of the loop, and what waits for a connection meanwhile, is shared out among the connections
that have nothing to do, and goes to the database as one batch for each: a small statement costs both sides less than
to send it and to wake up for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from eventstore.connection import Connection, Row
from eventstore.errors import LogError, LogUnavailable, TimedOut
from eventstore.statements import Statement

WAIT_SECONDS = 3.0
# So that one that takes long keeps few others waiting.
MAX_BATCH = 32


class _Asked:
    """A statement that was asked for."""

    __slots__ = ("answer", "parameters", "since", "text")

    def __init__(self, text: str, parameters: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self.text = text
        self.parameters = parameters
        self.answer: asyncio.Future[list[Row]] = loop.create_future()
        self.since = loop.time()

    def succeed(self, rows: list[Row]) -> None:
        """Tells the rows, if somebody still waits for them."""
        if not self.answer.done():
            self.answer.set_result(rows)

    def fail(self, error: BaseException) -> None:
        """Tells the error, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Reader:
    """Runs statements on at most `size` connections, opened as they are needed.

    Those that go together are one transaction; if one of them fails, each is run again by itself, but for one that took
    too long. So they should change nothing, or nothing that a second time would change again.
    There is nothing to reconnect: a broken connection is thrown away, and the next statement opens another or fails.
    """

    def __init__(self, conninfo: str, *, size: int = 8) -> None:
        self._conninfo = conninfo
        self._size = size
        self._idle: list[Connection] = []
        self._batches: set[asyncio.Task[None]] = set()
        self._asked: deque[_Asked] = deque()
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._idle.append(await Connection.open(self._conninfo))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        for task in self._batches:
            task.cancel()
        await asyncio.gather(*self._batches, return_exceptions=True)
        _fail(self._asked, LogUnavailable("the log was closed"))
        self._asked.clear()
        if self._timer is not None:
            self._timer.cancel()
        while self._idle:
            await self._idle.pop().close()

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """All rows of the statement; raises `LogUnavailable` when the database cannot be reached, or is too busy."""
        asked = _Asked(statement.text, statement.bind(values))
        self._asked.append(asked)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._share_out)
        return await asked.answer

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """The statement's first row, or None."""
        rows = await self.fetch(statement, **values)
        return rows[0] if rows else None

    def _share_out(self) -> None:
        """Gives what was asked to the connections that have nothing to do."""
        self._is_due = False
        while self._asked and (free := self._size - len(self._batches)):
            # Those that are open first; another one is opened only for what would have to wait for them.
            share = -(-len(self._asked) // max(1, min(free, len(self._idle))))
            batch = [self._asked.popleft() for _ in range(min(share, MAX_BATCH))]
            task = asyncio.ensure_future(self._run(batch))
            self._batches.add(task)
            task.add_done_callback(self._ended)
        if self._asked and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WAIT_SECONDS, self._give_up)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        if not self._closed:
            self._share_out()

    async def _run(self, batch: Sequence[_Asked]) -> None:
        """Runs a batch, and tells everybody who waits for it how it went."""
        try:
            connection = await self._connection()
            try:
                await _answer(connection, batch)
            finally:
                if connection.broken.done() or self._closed:
                    await connection.close()
                else:
                    self._idle.append(connection)
        except LogUnavailable as error:
            _fail(batch, error)
        except BaseException:
            _fail(batch, LogUnavailable("the log is being closed"))
            raise

    def _give_up(self) -> None:
        """Lets nobody wait for a connection for longer than `WAIT_SECONDS`."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._asked and self._asked[0].since + WAIT_SECONDS <= loop.time():
            self._asked.popleft().fail(LogUnavailable("the database is too busy"))
        if self._asked:
            self._timer = loop.call_at(self._asked[0].since + WAIT_SECONDS, self._give_up)

    async def _connection(self) -> Connection:
        """The connection that was used last, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.broken.done():
                return connection
            await connection.close()
        return await Connection.open(self._conninfo)


async def _answer(connection: Connection, batch: Sequence[_Asked]) -> None:
    """Runs the statements as one; if one of them fails, each of them on its own, until one more takes too long."""
    try:
        found = await connection.fetch_batch([(asked.text, asked.parameters) for asked in batch])
    except TimedOut as error:
        batch[error.place].fail(error)
        if len(batch) == 1:
            # The database is busy: those behind it have waited for long, and are not to wait once more for each.
            raise
        await _answer_each(connection, [*batch[: error.place], *batch[error.place + 1 :]])
    except LogUnavailable:
        raise
    except LogError as error:
        if len(batch) == 1:
            batch[0].fail(error)
            return
        await _answer_each(connection, batch)
    else:
        for asked, rows in zip(batch, found, strict=True):
            asked.succeed(rows)


async def _answer_each(connection: Connection, batch: Iterable[_Asked]) -> None:
    for asked in batch:
        await _answer(connection, [asked])


def _fail(batch: Iterable[_Asked], error: LogUnavailable) -> None:
    for asked in batch:
        asked.fail(error)
