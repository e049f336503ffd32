"""One small endpoint without a database, on each of the servers: what a framework itself takes for a request.

Every server gets the body of `sendmessage`, reads its JSON, looks whether the three texts are there, and answers
"Message sent!". Starlette and aiohttp leave JSON to their users: so they get msgspec, as ours. FastAPI does it its own
way. `python -m bench.servers.alone <which> <port>` serves.
"""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench import npm
from bench.rounds import OURS
from bench.servers import Contestant, Running
from bench.servers.process import HOUSE, free_port, running

PATH = "/api/v3/sendmessage/"
_ANSWER = {"message": "Message sent!"}
_TOKEN = "no database looks at it"
NOTHING_KEPT = "SELECT 0"


class _Body(msgspec.Struct):
    token: str
    message: str
    channel: str


_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


def minutebook(port: int) -> None:
    """Ours: the base of all handlers, on our HTTP server and our loop."""
    import asyncio

    from tornado.netutil import bind_sockets
    from tornado.routing import URLSpec

    import loops
    from handlers.app import application
    from handlers.http import JsonHandler
    from handlers.serving import make_server

    class Handler(JsonHandler):
        async def post(self) -> None:
            _decode(self.body())
            self.reply(200, _ANSWER)

    async def serve() -> None:
        server = make_server(application([URLSpec(PATH + "?", Handler)]))
        server.add_sockets(bind_sockets(port, "127.0.0.1", backlog=1024))
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()

    loops.run(serve())


def starlette(port: int) -> None:
    """Starlette on uvicorn, with all that makes it fast."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def post(request: Request) -> Response:
        _decode(await request.body())
        return Response(_encode(_ANSWER), media_type="application/json")

    _uvicorn(Starlette(routes=[Route(PATH, post, methods=["POST"])]), port)


def fastapi(port: int) -> None:
    """FastAPI on uvicorn, with all that makes it fast."""
    from fastapi import FastAPI

    from bench.servers import fastapi_app

    app = FastAPI(openapi_url=None)

    @app.post(PATH)
    async def post(body: fastapi_app.SendMessage) -> fastapi_app.Done:  # noqa: ARG001 - FastAPI reads it
        return fastapi_app.Done(message=_ANSWER["message"])

    _uvicorn(app, port)


def aiohttp(port: int) -> None:
    """aiohttp on uvloop."""
    import uvloop
    from aiohttp import web

    async def post(request: web.Request) -> web.Response:
        _decode(await request.read())
        return web.Response(body=_encode(_ANSWER), content_type="application/json")

    app = web.Application()
    app.router.add_post(PATH, post)
    web.run_app(
        app, host="127.0.0.1", port=port, loop=uvloop.new_event_loop(), access_log=None, print=None, backlog=1024
    )


def _uvicorn(app: Any, port: int) -> None:
    import uvicorn

    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


_SERVERS: dict[str, Callable[[int], None]] = {
    "minutebook": minutebook,
    "starlette": starlette,
    "fastapi": fastapi,
    "aiohttp": aiohttp,
}


def _contestant(name: str, which: str, packages: tuple[str, ...] = ()) -> Contestant:
    return _served(name, lambda port: [sys.executable, "-m", "bench.servers.alone", which, str(port)], packages)


def _served(name: str, command: Callable[[int], list[str]], packages: tuple[str, ...] = ()) -> Contestant:
    @contextlib.contextmanager
    def serve(_conninfo: str, folder: Path) -> Iterator[Running]:
        port = free_port()
        with running(command(port), port, folder / "alone.log") as pid:
            yield Running(pid, port, (_TOKEN,))

    return Contestant(name, serve, NOTHING_KEPT, packages)


AIOHTTP = _contestant("aiohttp", "aiohttp", ("aiohttp", "uvloop"))
STARLETTE = _contestant("Starlette", "starlette", ("starlette", "uvicorn", "uvloop", "httptools"))
FASTAPI = _contestant("FastAPI", "fastapi", ("fastapi", "uvicorn", "uvloop", "httptools"))
NODE = _served("Node", lambda port: [str(npm.node()), str(HOUSE / "bench/servers/alone.js"), str(port)])
PYTHON = (_contestant(OURS, "minutebook"), AIOHTTP, STARLETTE, FASTAPI)


if __name__ == "__main__":
    _SERVERS[sys.argv[1]](int(sys.argv[2]))
