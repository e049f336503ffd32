"""FastAPI on uvicorn with psycopg 3: a pool of 10, and a statement a request, prepared and committed by itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from bench.servers import Contestant, Running
from bench.servers.peers import COUNT_MESSAGES, on_uvicorn, own_conninfo, serve
from bench.servers.store import POOL

if TYPE_CHECKING:
    import psycopg_pool
    from fastapi import FastAPI


class PsycopgStore:
    """The store on psycopg: connections in autocommit mode, so that a statement is one round trip."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._pool: psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None

    async def open(self) -> None:
        """Opens all connections."""
        import psycopg_pool  # may not be installed

        self._pool = psycopg_pool.AsyncConnectionPool(
            self._conninfo, min_size=POOL, max_size=POOL, open=False, kwargs={"autocommit": True}
        )
        await self._pool.open(wait=True)

    async def close(self) -> None:
        """Closes them."""
        await self._opened.close()

    async def execute(self, statement: str, *parameters: object) -> None:
        """Runs a statement and waits for its commit."""
        async with self._opened.connection() as connection:
            await psycopg.AsyncRawCursor(connection).execute(statement, parameters, prepare=True)

    async def fetch(self, statement: str, *parameters: object) -> Sequence[Sequence[Any]]:
        """The rows of a query."""
        async with self._opened.connection() as connection:
            cursor = psycopg.AsyncRawCursor(connection, row_factory=psycopg.rows.tuple_row)
            await cursor.execute(statement, parameters, prepare=True, binary=True)
            return await cursor.fetchall()

    @property
    def _opened(self) -> psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        if self._pool is None:
            raise RuntimeError("the store is not open")
        return self._pool


def app() -> FastAPI:
    """The app, as uvicorn makes it in a process of its own."""
    from bench.servers.fastapi_app import make_app  # needs what may not be installed

    return make_app(PsycopgStore(own_conninfo()))


def _serve(conninfo: str, folder: Path) -> AbstractContextManager[Running]:
    return serve(on_uvicorn("bench.servers.on_psycopg:app"), conninfo, folder)


SERVER = Contestant(
    "FastAPI, psycopg", _serve, COUNT_MESSAGES, ("fastapi", "uvicorn", "uvloop", "httptools", "psycopg_pool")
)
