"""A client that keeps the server waiting is cut off, wherever it stalls."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from structlog.testing import capture_logs
from tornado.routing import URLSpec
from tornado.testing import bind_unused_port
from tornado.web import Application

from handlers.app import application
from handlers.http import JsonHandler
from http1.limits import Limits
from http1.server import Parser
from tests.fronts import make_server

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
STALLED = {
    "nothing": b"",
    "half a head": b"POST /api/v3/login HTTP/1.1\r\nHost",
    "half a body": b"POST /api/v3/login HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
    "a request, and then nothing": HEALTH,
}


@pytest.mark.parametrize("parser", ["httptools", "tornado"])
@pytest.mark.parametrize("sent", STALLED.values(), ids=list(STALLED))
@pytest.mark.gen_test
async def test_a_client_that_stalls_is_cut_off(app: Application, sent: bytes, parser: Parser) -> None:
    socket, port = bind_unused_port()
    server = make_server(app, parser=parser, limits=Limits(idle=0.2, head=0.2, body=0.2, tick=0.05))
    server.add_socket(socket)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    writer.write(sent)
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(5):
            await reader.read()

    writer.close()
    server.stop()
    await server.close_all_connections()


class Endless(JsonHandler):
    """Waits for what will not come."""

    async def get(self) -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr] # handlers have one
        await asyncio.Event().wait()


class Unwritable(JsonHandler):
    """Sets a header that would be two."""

    def get(self) -> None:
        self.set_header("X", "a\r\nSet-Cookie: b")
        self.reply(200, {})


@pytest.mark.parametrize(
    ("handler", "status", "event"),
    [(Unwritable, 500, "a request failed"), (Endless, 503, "a request could not be served now")],
)
@pytest.mark.gen_test
async def test_a_handler_that_comes_to_no_end_of_its_own_has_an_answer(
    handler: type[JsonHandler], status: int, event: str
) -> None:
    socket, port = bind_unused_port()
    server = make_server(application([URLSpec("/healthz", handler)]), parser="httptools")
    server.add_socket(socket)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    with capture_logs() as logs:
        writer.write(HEALTH)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Cookie" not in head
    assert [line["event"] for line in logs] == [event]
    writer.close()
    server.stop()
    await server.close_all_connections()
