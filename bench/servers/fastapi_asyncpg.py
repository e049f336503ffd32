"""FastAPI on uvicorn with asyncpg: a pool of 10, and a statement a request, prepared and committed by itself.

In its favour: connections go back to the pool without the query by which asyncpg resets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict

from bench.servers import Contestant, Running
from bench.servers.fastapi_world import COUNT_MESSAGES, own_conninfo, serve

if TYPE_CHECKING:
    from fastapi import FastAPI

POOL = 10


class AsyncpgStore:
    """The store on asyncpg."""

    def __init__(self, conninfo: str) -> None:
        self._parts = conninfo_to_dict(conninfo)
        self._pool: Any = None

    async def open(self) -> None:
        """Opens all connections."""
        import asyncpg

        self._pool = await asyncpg.create_pool(
            host=self._parts["host"],
            port=int(str(self._parts.get("port", 5432))),
            user=self._parts["user"],
            database=self._parts["dbname"],
            min_size=POOL,
            max_size=POOL,
            reset=_leave_as_it_is,
        )

    async def close(self) -> None:
        """Closes them."""
        await self._pool.close()

    async def execute(self, statement: str, *parameters: object) -> None:
        """Runs a statement and waits for its commit."""
        await self._pool.execute(statement, *parameters)

    async def fetch(self, statement: str, *parameters: object) -> Sequence[Sequence[Any]]:
        """The rows of a query."""
        rows: Sequence[Sequence[Any]] = await self._pool.fetch(statement, *parameters)
        return rows


async def _leave_as_it_is(_: object) -> None:
    """Nothing is set on a connection here, so nothing is to be reset."""


def app() -> FastAPI:
    """The app, as uvicorn makes it in a process of its own."""
    from bench.servers.fastapi_app import make_app  # needs what may not be installed

    return make_app(AsyncpgStore(own_conninfo()))


def _serve(conninfo: str, folder: Path) -> AbstractContextManager[Running]:
    return serve("bench.servers.fastapi_asyncpg:app", conninfo, folder)


SERVER = Contestant(
    "FastAPI, asyncpg", _serve, COUNT_MESSAGES, ("fastapi", "uvicorn", "uvloop", "httptools", "asyncpg")
)
