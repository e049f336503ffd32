"""Reading: a few connections that run compiled statements, for the log and for the read models alike."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from eventstore.connection import Connection, Row
from eventstore.errors import LogUnavailable
from eventstore.statements import Statement

WAIT_SECONDS = 3.0


class Reader:
    """Runs statements, each as a transaction of its own, on at most `size` connections, opened as they are needed.

    There is nothing to reconnect: a broken connection is thrown away, and the next statement opens another or fails.
    """

    def __init__(self, conninfo: str, *, size: int = 8) -> None:
        self._conninfo = conninfo
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(size)
        self._closed = False

    async def __aenter__(self) -> Self:
        self._idle.append(await Connection.open(self._conninfo))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """All rows of the statement; raises `LogUnavailable` when the database cannot be reached, or is too busy."""
        await self._take_slot()
        try:
            connection = await self._connection()
            try:
                return await connection.fetch(statement.text, statement.bind(values))
            finally:
                if connection.broken.done() or self._closed:
                    await connection.close()
                else:
                    self._idle.append(connection)
        finally:
            self._slots.release()

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """The statement's first row, or None."""
        rows = await self.fetch(statement, **values)
        return rows[0] if rows else None

    async def _take_slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise LogUnavailable("the database is too busy") from None

    async def _connection(self) -> Connection:
        """The connection that was used last, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.broken.done():
                return connection
            await connection.close()
        return await Connection.open(self._conninfo)
