"""FastAPI and Starlette on uvicorn, and aiohttp, with asyncpg: a pool of 10, and a statement a request, prepared and
committed by itself.

In their favour: connections go back to the pool without the query by which asyncpg resets them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict

from bench.servers import Contestant, Running
from bench.servers.endpoints import Endpoint, Endpoints, refusal
from bench.servers.peers import COUNT_MESSAGES, on_uvicorn, own_conninfo, serve
from bench.servers.store import POOL, Refused

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.applications import Starlette

_JSON = "application/json"


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


def fastapi() -> FastAPI:
    """FastAPI's app, as uvicorn makes it in a process of its own."""
    from bench.servers.fastapi_app import make_app  # needs what may not be installed

    return make_app(AsyncpgStore(own_conninfo()))


def starlette() -> Starlette:
    """Starlette's app, as uvicorn makes it in a process of its own."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    endpoints = Endpoints(AsyncpgStore(own_conninfo()))

    def answering(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def post(request: Request) -> Response:
            try:
                return Response(await endpoint(await request.body()), media_type=_JSON)
            except Refused as refused:
                return Response(refusal(refused), refused.status, media_type=_JSON)

        return post

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await endpoints.open()
        yield
        await endpoints.close()

    routes = [Route(path, answering(endpoint), methods=["POST"]) for path, endpoint in endpoints.by_path.items()]
    return Starlette(routes=routes, lifespan=lifespan)


def aiohttp(port: int) -> None:
    """Serves aiohttp's app, on uvloop."""
    import uvloop
    from aiohttp import web

    endpoints = Endpoints(AsyncpgStore(own_conninfo()))

    def answering(endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def post(request: web.Request) -> web.Response:
            try:
                return web.Response(body=await endpoint(await request.read()), content_type=_JSON)
            except Refused as refused:
                return web.Response(body=refusal(refused), status=refused.status, content_type=_JSON)

        return post

    async def lifespan(_: web.Application) -> AsyncIterator[None]:
        await endpoints.open()
        yield
        await endpoints.close()

    app = web.Application()
    app.cleanup_ctx.append(lifespan)
    for path, endpoint in endpoints.by_path.items():
        app.router.add_post(path, answering(endpoint))
    web.run_app(
        app, host="127.0.0.1", port=port, loop=uvloop.new_event_loop(), access_log=None, print=None, backlog=1024
    )


def _contestant(name: str, command: Callable[[int], Sequence[str]], *packages: str) -> Contestant:
    def run(conninfo: str, folder: Path) -> AbstractContextManager[Running]:
        return serve(command, conninfo, folder)

    return Contestant(f"{name}, asyncpg", run, COUNT_MESSAGES, (*packages, "uvloop", "asyncpg"))


_THIS = "bench.servers.on_asyncpg"
FASTAPI = _contestant("FastAPI", on_uvicorn(f"{_THIS}:fastapi"), "fastapi", "uvicorn", "httptools")
STARLETTE = _contestant("Starlette", on_uvicorn(f"{_THIS}:starlette"), "starlette", "uvicorn", "httptools")
AIOHTTP = _contestant("aiohttp", lambda port: [sys.executable, "-m", _THIS, str(port)], "aiohttp")


if __name__ == "__main__":
    aiohttp(int(sys.argv[1]))
