"""Connections that go from one process to another: nothing of them is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tornado.test
from structlog.testing import capture_logs
from tornado import web
from tornado.httputil import RequestStartLine
from tornado.testing import bind_unused_port

from handlers.neighbours import neighbours, session_prefix
from http1 import handover
from http1.exchange import Exchange
from http1.handover import Arrivals, Departures, Moved, Neighbours
from http1.headers import CheckedHeaders
from http1.server import Options, Server, make_server, tls_context
from tests.conftest import until

FOLDER = Path(tornado.test.__file__).parent
BACKLOGGED = 600  # more than the system keeps for a process that takes nothing


class Echo(web.RequestHandler):
    """Tells which server it is, who asks, and what was sent."""

    def initialize(self, name: str) -> None:
        self.name = name

    def get(self) -> None:
        self.write({"by": self.name, "ip": self.request.remote_ip, "protocol": self.request.protocol})

    def post(self) -> None:
        self.set_header("By", self.name)
        self.write(self.request.body)


class Taking(web.Application):
    """An application that takes requests to `/here` and `/there` as a whole where it can, as `Echo` would."""

    def __init__(self, name: str) -> None:
        super().__init__([("/.*", Echo, {"name": name})], log_function=lambda _: None)
        self.name = name
        self.taken: list[str] = []

    def take(self, exchange: Exchange, line: RequestStartLine, _headers: CheckedHeaders, body: bytes) -> bool:
        if body or line.path == "/anybody":
            return False
        self.taken.append(line.path)
        context = exchange.context
        told = {"by": self.name, "ip": context.remote_ip, "protocol": context.protocol}
        exchange.answer(b"HTTP/1.1 200 OK\r\n", json.dumps(told).encode())
        return True


class Two(NamedTuple):
    """Two servers, of which the first one's connections are accepted; the other gets what it is given."""

    port: int
    here: Server
    there: Server
    applications: dict[str, Taking]


@contextlib.contextmanager
def ways() -> Iterator[tuple[Departures, Arrivals]]:
    """The way to a process, and where it arrives."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    departures, arrivals = Departures(writing), Arrivals(reading)
    yield departures, arrivals
    departures.close()
    arrivals.close()


@contextlib.asynccontextmanager
async def two_servers(tls: ssl.SSLContext | None = None) -> AsyncIterator[Two]:
    listening, port = bind_unused_port()
    applications: dict[str, Taking] = {}
    with ways() as (to_here, at_here), ways() as (to_there, at_there):

        def served(name: str, arrivals: Arrivals, other: str, departures: Departures) -> Server:
            whose = {f"/{other}": departures}.get
            application = applications[name] = Taking(name)
            options = Options(tls=tls, neighbours=Neighbours(arrivals, lambda target: whose(target)))
            return Server(application, options)

        here = served("here", at_here, "there", to_there)
        there = served("there", at_there, "here", to_here)
        here.add_sockets([listening])
        there.add_sockets([])
        yield Two(port, here, there, applications)
        for server in (here, there):
            server.stop()
            await server.close_all_connections()


@contextlib.asynccontextmanager
async def connected(
    port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    trusting = None
    if tls is not None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        yield reader, writer
    writer.transport.abort()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the body of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def told(reader: asyncio.StreamReader) -> dict[str, str]:
    found: dict[str, str] = json.loads((await answer(reader))[1])
    return found


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    return tls_context(FOLDER / "test.crt", FOLDER / "test.key") if request.param else None


@pytest.mark.gen_test
async def test_a_request_is_served_by_whoever_it_is_for(tls: ssl.SSLContext | None) -> None:
    async with two_servers(tls) as two, connected(two.port, tls) as (reader, writer):
        served = []
        for path in ("/here", "/there", "/there", "/anybody", "/here", "/here", "/anybody", "/there"):
            writer.write(get(path))
            served.append(await told(reader))

    protocol = "http" if tls is None else "https"
    assert [each["by"] for each in served] == ["here", "there", "there", "there", "here", "here", "here", "there"]
    assert {(each["ip"], each["protocol"]) for each in served} == {("127.0.0.1", protocol)}
    # Those with a head that was there before, but for the one for which the connection came.
    taken = {name: application.taken for name, application in two.applications.items()}
    assert taken == {"here": ["/here"], "there": ["/there"]}


@pytest.mark.gen_test
async def test_a_wish_that_is_not_granted_is_answered_as_any_request_and_is_the_last(
    tls: ssl.SSLContext | None,
) -> None:
    wish = get("/there").replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    async with two_servers(tls) as two, connected(two.port, tls) as (reader, writer):
        writer.write(wish + get("/here"))

        head, body = await answer(reader)
        assert await reader.read() == b""

    assert b"\r\nConnection: close\r\n" in head
    assert json.loads(body) == {"by": "there", "ip": "127.0.0.1", "protocol": "http" if tls is None else "https"}


@pytest.mark.gen_test
async def test_a_connection_that_cannot_go_for_want_of_descriptors_ends(
    tls: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with two_servers(tls) as two, connected(two.port, tls) as (reader, writer):
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(os, "dup", fail)
            patched.setattr(socket, "socketpair", fail)
            writer.write(get("/there"))

            assert await reader.read() == b""
        await until(lambda: not two.here._connections)
    assert [line["event"] for line in logs] == ["a request could not be passed on"]


@pytest.mark.gen_test
async def test_requests_in_one_piece_are_answered_in_order_wherever_they_are_for(tls: ssl.SSLContext | None) -> None:
    paths = ["/here", "/there", "/here", "/there", "/there", "/here"] * 5
    async with two_servers(tls) as two, connected(two.port, tls) as (reader, writer):
        writer.write(b"".join(map(get, paths)))

        served = [(await told(reader))["by"] for _ in paths]

    assert [f"/{name}" for name in served] == paths


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
@pytest.mark.gen_test
async def test_a_body_that_has_partly_come_goes_along(tls: ssl.SSLContext | None, size: int) -> None:
    body = bytes(number % 251 for number in range(size))
    async with two_servers(tls) as two, connected(two.port, tls) as (reader, writer):
        writer.write(post("/there", body))

        head, echoed = await answer(reader)
        writer.write(get("/here"))
        after = await told(reader)

    assert b"\r\nBy: there\r\n" in head
    assert echoed == body
    assert after["by"] == "here"


@pytest.mark.gen_test
async def test_the_end_of_a_connection_is_seen_by_whoever_has_it(tls: ssl.SSLContext | None) -> None:
    async with two_servers(tls) as two:
        async with connected(two.port, tls) as (reader, writer):
            writer.write(get("/there"))
            await told(reader)
            assert len(two.there._connections) == 1
        await until(lambda: not two.there._connections)
        await until(lambda: not two.here._tunnels)

        async with connected(two.port, tls) as (reader, writer):
            writer.write(get("/there").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            await told(reader)
            assert await reader.read() == b""
        await until(lambda: not two.here._tunnels)


@pytest.mark.gen_test
async def test_a_server_that_stops_keeps_what_it_has(tls: ssl.SSLContext | None) -> None:
    async with two_servers(tls) as two, connected(two.port, tls) as (reader, writer):
        writer.write(get("/here"))
        await told(reader)
        two.here.stop()
        writer.write(get("/there"))

        assert (await told(reader))["by"] == "here"


def pair() -> tuple[socket.socket, Moved]:
    """A connection, and its other end on its way."""
    own, other = socket.socketpair()
    own.settimeout(5)
    return own, Moved(other, ("192.0.2.1", len(str(other))), "http", b"")


@pytest.mark.gen_test
async def test_connections_wait_in_order_for_a_process_that_takes_nothing() -> None:
    with ways() as (departures, arrivals), contextlib.ExitStack() as stack:
        for number in range(BACKLOGGED):
            own, moved = pair()
            stack.callback(own.close)
            own.send(b"%d" % number)
            departures.send(moved)
        assert len(departures._waiting) > 0, "the system takes some, and the rest waits here"

        arrived: list[Moved] = []
        arrivals.start(arrived.append)
        await until(lambda: len(arrived) == BACKLOGGED)
        assert [int(moved.socket.recv(10)) for moved in arrived] == list(range(BACKLOGGED))
        for moved in arrived:
            moved.socket.close()


@pytest.mark.gen_test
async def test_a_connection_that_comes_without_its_bytes_is_closed() -> None:
    with ways() as (departures, arrivals), capture_logs() as logs:
        own, moved = pair()
        departures.send(moved._replace(unread=b"x" * 100_000))
        arrived: list[Moved] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        try:
            # One descriptor is left: for the connection, and not for its bytes.
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
            arrivals.start(arrived.append)
            await until(lambda: bool(logs or arrived))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert arrived == []
        assert own.recv(1) == b""
        own.close()
    assert [line["event"] for line in logs] == ["a connection from another process was lost for want of descriptors"]


@pytest.mark.gen_test
async def test_what_is_too_much_to_wait_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_MOST_WAITING", 1)
    with ways() as (departures, _), contextlib.ExitStack() as stack:
        own = []
        for _ in range(BACKLOGGED):
            end, moved = pair()
            stack.callback(end.close)
            own.append(end)
            departures.send(moved)

        assert own[-1].recv(1) == b""


@pytest.mark.gen_test
async def test_a_process_that_is_gone_for_good_closes_what_is_sent_to_it() -> None:
    with ways() as (departures, arrivals), capture_logs() as logs:
        arrivals.close()
        own, moved = pair()

        departures.send(moved)

        assert own.recv(1) == b""
        own.close()
    assert [line["event"] for line in logs] == ["a connection could not be given to another process"]


def test_only_llhttp_has_neighbours() -> None:
    with ways() as (_, arrivals):
        options = Options(neighbours=Neighbours(arrivals, lambda _: None))

        with pytest.raises(ValueError, match="cannot give connections"):
            make_server("tornado", web.Application(), options)


# Whose a request is


@pytest.mark.parametrize(
    ("target", "worker"),
    [
        ("/socket.io/?EIO=4&transport=polling&sid=2.abc", 2),
        ("/socket.io?sid=2.abc", 2),
        ("/socket.io/?sid=2%2Eabc", 2),
        ("/socket.io/?sid=1.abc&sid=2.abc", 2),
        ("/socket.io/?sid=2.abc&sid=", None),
        ("/socket.io/?sid=1.abc", None),  # this one itself
        ("/socket.io/?sid=3.abc", None),
        ("/socket.io/?sid=02.abc", None),
        ("/socket.io/?sid=-1.abc", None),
        ("/socket.io/?sid=2", None),
        ("/socket.io/?sid=.", None),
        ("/socket.io/?EIO=4&transport=polling", None),
        ("/socket.io/", None),
        ("/elsewhere?sid=2.abc", None),
        ("/metrics?worker=2", 2),
        ("/metrics?worker=9", None),
        ("/metrics", None),
        ("*", None),
    ],
)
def test_a_request_names_its_worker(target: str, worker: int | None) -> None:
    with ways() as (to_first, arrivals), ways() as (to_third, _):
        others = {0: to_first, 2: to_third}

        found = neighbours(arrivals, others, "/socket.io/").whose(target)

        assert found is (None if worker is None else others[worker])
        assert session_prefix(2) == "2."
