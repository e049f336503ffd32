"""Reading: a pool of connections that runs compiled statements, for the log and for the read models alike."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import psycopg
import psycopg_pool
import structlog

from eventstore.errors import LogError, LogUnavailable
from eventstore.session import configure
from eventstore.statements import Statement

_log = structlog.get_logger(__name__)

Row = tuple[Any, ...]


class Reader:
    """Runs statements, each as a transaction of its own, on a bounded pool of connections."""

    def __init__(self, conninfo: str, *, size: int = 8) -> None:
        self._pool = psycopg_pool.AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=size,
            open=False,
            timeout=3.0,
            max_waiting=1000,
            reconnect_timeout=3600,
            configure=configure,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._pool.open(wait=True, timeout=10)
        except psycopg_pool.PoolTimeout as error:
            await self._pool.close()
            raise LogUnavailable("the database cannot be reached") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pool.close()

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """All rows of the statement; raises `LogUnavailable` when the database cannot be reached."""
        try:
            async with self._pool.connection() as connection:
                cursor = psycopg.AsyncRawCursor(connection)
                await cursor.execute(statement.text, statement.bind(**values), prepare=True, binary=True)
                return await cursor.fetchall()
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg_pool.TooManyRequests) as error:
            if not isinstance(error, psycopg_pool.PoolTimeout):
                # One connection broke, so the others are likely dead too: replace them before the next caller comes.
                await self._pool.check()
            raise LogUnavailable(f"the database cannot be reached: {error}") from error
        except psycopg.Error as error:
            raise LogError(f"the database refused a query: {error}") from error

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """The statement's first row, or None."""
        rows = await self.fetch(statement, **values)
        return rows[0] if rows else None
