"""Serving, on both parsers: connections, their limits and their ends, seen by raw clients and by h11."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import re
import resource
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import h11
import pytest
import tornado.test
from structlog.testing import capture_logs
from tornado import web
from tornado.httpclient import HTTPRequest
from tornado.iostream import StreamClosedError
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketHandler, websocket_connect

from http1 import accepting, server
from http1.limits import Limits
from http1.proxies import Proxies
from http1.server import HttpServer, Options, Parser, Server, make_server, tls_context
from http1.streams import TlsTransport
from tests.conftest import until

QUICK = Limits(idle=0.3, head=0.3, body=0.3, write=0.3, linger=0.3, tick=0.05)
PATIENT = Limits(tick=0.05)
FOLDER = Path(tornado.test.__file__).parent
HOST = b"Host: x\r\n"
both = pytest.mark.parametrize("parser", ["httptools", "tornado"])
encryption = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])


def get(path: str, *lines: bytes, version: bytes = b"1.1") -> bytes:
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (path.encode(), version, HOST, b"".join(line + b"\r\n" for line in lines))


class Stage:
    """What handlers wait for and what they saw."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[str] = []
        self.started = 0


class Handler(web.RequestHandler):
    """A handler that knows the stage."""

    stage: Stage

    def initialize(self, stage: Stage) -> None:
        self.stage = stage


class Echo(Handler):
    def get(self) -> None:
        self.write(f"{self.request.method} {self.request.uri}")

    def head(self) -> None:
        self.get()

    def post(self) -> None:
        self.write(self.request.body)


class Waiting(Handler):
    async def get(self) -> None:
        self.stage.started += 1
        await self.stage.gate.wait()
        self.stage.seen.append("answered")
        self.write("waited")

    def on_connection_close(self) -> None:
        self.stage.seen.append("gone")


@web.stream_request_body
class Streaming(Handler):
    async def prepare(self) -> None:
        self.stage.started += 1
        if "slow" in str(self.request.uri):
            await self.stage.gate.wait()

    async def data_received(self, chunk: bytes) -> None:
        self.stage.seen.append(chunk.decode())
        await asyncio.sleep(0)

    def post(self) -> None:
        self.write("|".join(self.stage.seen))

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.stage.seen.append("gone")


@web.stream_request_body
class Hasty(Handler):
    """Answers before the body has come."""

    def prepare(self) -> None:
        self.set_status(413)
        self.finish("too large")

    def data_received(self, chunk: bytes) -> None:  # noqa: ARG002 - Tornado's name for it
        raise AssertionError("the answer was given before")


class Large(Handler):
    async def get(self) -> None:
        try:
            for _ in range(200):
                self.write(b"x" * 100_000)
                await self.flush()
                self.stage.started += 1
        except StreamClosedError:
            self.stage.seen.append("closed")


class Impatient(Handler):
    """Gives up waiting for a client that does not read, and then waits again."""

    async def get(self) -> None:
        self.write(b"x" * 10_000_000)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.flush(), 0.05)
        self.stage.seen.append("gave up")
        with contextlib.suppress(StreamClosedError):
            await self.flush()
        self.stage.seen.append("ended")


class Status(Handler):
    def get(self, code: str) -> None:
        self.set_status(int(code))


class Pieces(Handler):
    async def get(self) -> None:
        for piece in ("a", "bc", ""):
            self.write(piece)
            await self.flush()


class Failing(Handler):
    def get(self, how: str) -> None:
        if how == "header":
            # Past Tornado's own look at it.
            self._headers._as_list["X"] = ["a\r\nSet-Cookie: b"]
            self._headers._combined_cache.pop("X", None)
        if how == "begun":
            self.set_header("Content-Length", 10)
            self.write("abc")
            self.flush()
        if how in ("early", "begun"):
            raise ValueError("a fault")
        self.write("abc")


class Unmakable(Handler):
    def initialize(self, stage: Stage) -> None:  # noqa: ARG002 - Tornado hands it in
        raise ValueError("a fault")


class Origin(Handler):
    def get(self) -> None:
        self.write(f"{self.request.remote_ip} {self.request.protocol}")


class Talk(WebSocketHandler):
    def initialize(self, **services: object) -> None:
        pass

    def on_message(self, message: str | bytes) -> None:
        self.write_message(f"{self.request.remote_ip} {message!s}")


class Detaching(Handler):
    async def get(self) -> None:
        stream = self.detach()
        await stream.write(b"yours ")
        await stream.write(await stream.read_bytes(5))
        stream.close()


ROUTES = [
    ("/echo.*", Echo),
    ("/wait", Waiting),
    ("/stream.*", Streaming),
    ("/hasty", Hasty),
    ("/large", Large),
    ("/impatient", Impatient),
    ("/status/(.*)", Status),
    ("/pieces", Pieces),
    ("/fail/(.*)", Failing),
    ("/unmakable", Unmakable),
    ("/origin", Origin),
    ("/talk", Talk),
    ("/detach", Detaching),
]


class Place:
    """A server under test."""

    def __init__(self, parser: Parser, options: Options) -> None:
        self.stage = Stage()
        services = {"stage": self.stage}
        routes = [(path, handler, services) for path, handler in ROUTES]
        application = web.Application(routes, log_function=lambda _handler: None)
        self.server: HttpServer = make_server(parser, application, options)
        listening, self.port = bind_unused_port()
        self.server.add_socket(listening)
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self._writers.append(writer)
        return reader, writer

    async def ask(self, *sent: bytes) -> bytes:
        """What comes until the connection ends."""
        reader, writer = await self.connect()
        for piece in sent:
            writer.write(piece)
            await asyncio.sleep(0.01 if len(sent) > 1 else 0)
        return await rest(reader)

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self.stage.gate.set()
        self.server.stop()
        await self.server.close_all_connections()


async def rest(reader: asyncio.StreamReader) -> bytes:
    received = b""
    async with asyncio.timeout(8):
        with contextlib.suppress(ConnectionResetError):
            while piece := await reader.read(1 << 16):
                received += piece
    return received


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of one answer."""
    async with asyncio.timeout(8):
        head = await reader.readuntil(b"\r\n\r\n")
        return await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))


@contextlib.asynccontextmanager
async def serving(parser: Parser = "httptools", limits: Limits = PATIENT, **options: Any) -> AsyncIterator[Place]:
    place = Place(parser, Options(limits=limits, **options))
    yield place
    await place.close()


@pytest.fixture
def stray(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged that was not expected."""
    yield
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# --- Requests and answers --------------------------------------------------------------------------------------------


class Client:
    """A client that is h11's: its own idea of what is a good answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._h11 = h11.Connection(h11.CLIENT)
        self._reader, self._writer = reader, writer

    async def ask(
        self, method: str, target: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        fields = [("Host", "x"), *((name.replace("_", "-"), value) for name, value in headers.items())]
        self._send(h11.Request(method=method, target=target, headers=fields))
        if headers.get("Expect"):
            assert isinstance(await self._next(), h11.InformationalResponse)
        if body:
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        head = await self._next()
        assert isinstance(head, h11.Response), head
        received = b""
        while isinstance(event := await self._next(), h11.Data):
            received += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        if self._h11.our_state is not h11.MUST_CLOSE:
            self._h11.start_next_cycle()
        return head.status_code, {name.decode(): value.decode() for name, value in head.headers}, received

    def _send(self, event: Any) -> None:
        self._writer.write(self._h11.send(event) or b"")

    async def _next(self) -> Any:
        async with asyncio.timeout(8):
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self._reader.read(1 << 16))
        return event


@both
@pytest.mark.gen_test
async def test_an_independent_client_has_a_long_conversation(parser: Parser, stray: None) -> None:
    async with serving(parser) as place:
        client = Client(*await place.connect())

        assert (await client.ask("GET", "/echo"))[2] == b"GET /echo"
        assert (await client.ask("POST", "/echo", b"hello", Content_Length="5"))[2] == b"hello"
        assert (await client.ask("POST", "/echo", b"x" * 300_000, Transfer_Encoding="chunked"))[2] == b"x" * 300_000
        assert (await client.ask("POST", "/stream", b"hello", Content_Length="5", Expect="100-continue"))[2] == b"hello"
        status, headers, body = await client.ask("HEAD", "/echo")
        assert (status, headers["content-length"], body) == (200, "10", b"")
        assert (await client.ask("GET", "/pieces"))[2] == b"abc"
        assert (await client.ask("HEAD", "/pieces"))[0] == 405
        for code in (204, 304):
            status, headers, body = await client.ask("GET", f"/status/{code}")
            assert (status, body) == (code, b"")
            assert not {"content-length", "transfer-encoding"} & headers.keys()
        assert (await client.ask("GET", "/fail/early"))[0] == 500
        assert (await client.ask("GET", "/nowhere"))[0] == 404
        assert (await client.ask("GET", "/echo", Connection="close"))[1]["connection"] == "close"


@both
@pytest.mark.gen_test
async def test_an_old_client_gets_an_answer_whose_end_is_the_connection_s(parser: Parser) -> None:
    async with serving(parser) as place:
        received = await place.ask(get("/pieces", version=b"1.0"))

    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == b"abc"


@both
@pytest.mark.gen_test
async def test_answers_come_in_the_order_of_the_requests(parser: Parser) -> None:
    async with serving(parser) as place:
        reader, writer = await place.connect()
        writer.write(
            get("/wait")
            + get("/echo/1")
            + b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
            + get("/echo/2")
        )
        await until(lambda: place.stage.started)

        place.stage.gate.set()

        assert [await answer(reader) for _ in range(4)] == [b"waited", b"GET /echo/1", b"hi", b"GET /echo/2"]


@both
@pytest.mark.gen_test
async def test_two_thousand_requests_at_once_are_answered_in_order(parser: Parser) -> None:
    count = 2_000 if parser == "httptools" else 300
    async with serving(parser) as place:
        reader, writer = await place.connect()
        writer.write(b"".join(get(f"/echo/{number}") for number in range(count)))

        for number in range(count):
            assert await answer(reader) == b"GET /echo/%d" % number


@pytest.mark.gen_test
async def test_while_a_request_is_answered_only_so_much_is_read_of_the_next() -> None:
    async with serving(limits=Limits(ahead=1000)) as place:
        reader, writer = await place.connect()
        writer.write(get("/wait"))
        await until(lambda: place.stage.started)
        [connection] = one(place)._connections

        body = b"x" * 20_000_000
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: not connection._is_reading)
        held = len(connection._rest)
        place.stage.gate.set()

        assert held < 1_000_000
        assert await answer(reader) == b"waited"
        assert await answer(reader) == body


def one(place: Place) -> Server:
    assert isinstance(place.server, Server)
    return place.server


@both
@pytest.mark.gen_test
async def test_a_body_waits_for_who_prepares_for_it(parser: Parser) -> None:
    async with serving(parser) as place:
        reader, writer = await place.connect()
        writer.write(b"POST /stream/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd")
        await until(lambda: place.stage.started)
        assert place.stage.seen == []

        place.stage.gate.set()

        assert await answer(reader) == b"abcd"


@both
@pytest.mark.gen_test
async def test_an_answer_before_the_body_ends_the_connection_and_reaches_the_client(parser: Parser) -> None:
    async with serving(parser, limits=QUICK) as place:
        received = await place.ask(b"POST /hasty HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc" + get("/echo"))

    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.endswith(b"too large")


@encryption
@pytest.mark.gen_test
async def test_who_still_sends_when_refused_reads_why(
    encrypted: bool, certificate: ssl.SSLContext, trusting: ssl.SSLContext, stray: None
) -> None:
    async with serving(tls=certificate if encrypted else None) as place:
        received = await asyncio.to_thread(send_all_and_then_read, place.port, trusting if encrypted else None)

        assert b"\r\nConnection: close\r\n" in received
        assert received.endswith(b"too large")
        await until(lambda: not one(place)._connections)


@encryption
@pytest.mark.gen_test
async def test_who_is_refused_and_stays_is_let_go_soon(
    encrypted: bool, certificate: ssl.SSLContext, trusting: ssl.SSLContext, stray: None
) -> None:
    async with serving(tls=certificate if encrypted else None, limits=Limits(linger=0.1, tick=0.05)) as place:
        with await asyncio.to_thread(refused, place.port, trusting if encrypted else None):
            # Long before a client would be given up that takes none of its answer.
            await until(lambda: not one(place)._connections)


def refused(port: int, encrypted_by: ssl.SSLContext | None) -> socket.socket:
    """A connection whose client neither reads nor ends anything."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=8)
    if encrypted_by is not None:
        connection = encrypted_by.wrap_socket(connection)
    connection.sendall(b"no request\r\n\r\n")
    return connection


def send_all_and_then_read(port: int, encrypted_by: ssl.SSLContext | None) -> bytes:
    """What a simple client is told that looks for an answer only when its whole body is sent."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=8))
        if encrypted_by is not None:
            connection = stack.enter_context(encrypted_by.wrap_socket(connection))
        connection.sendall(b"POST /hasty HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
        connection.sendall(b"x" * 5_000_000)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        return received


# --- Failing handlers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fail/header", "/fail/begun", "/unmakable"])
@both
@pytest.mark.gen_test
async def test_a_handler_that_fails_leaves_no_connection_hanging(parser: Parser, path: str) -> None:
    async with serving(parser) as place:
        with capture_logs() as logged:
            received = await place.ask(get(path))
        # What Tornado itself catches, it logs itself.
        is_ours = parser == "httptools" and path == "/unmakable"
        assert [line["event"] for line in logged] == ["a request could not be passed on"] * is_ours
        assert b"Set-Cookie" not in received
        assert received.startswith(b"HTTP/1.1 500 ") or parser == "tornado" or path == "/fail/begun"
        assert b"abc" not in received or path == "/fail/begun"
        client = Client(*await place.connect())
        assert (await client.ask("GET", "/echo"))[2] == b"GET /echo"


@pytest.mark.gen_test
async def test_what_is_no_request_is_answered_in_the_application_s_words() -> None:
    def words(status: int) -> tuple[Mapping[str, str], bytes]:
        return {"Content-Type": "application/json", "X-A": "b"}, json.dumps({"message": status}).encode()

    async with serving(error_answer=words) as place:
        received = await place.ask(b"rubbish\r\n\r\n")

    before, date, after = re.split(rb"Date: ([^\r]+)\r\n", received)
    assert before == b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nX-A: b\r\n"
    assert after == b'Content-Length: 16\r\nConnection: close\r\n\r\n{"message": 400}'
    assert abs(parsedate_to_datetime(date.decode()).timestamp() - time.time()) < 60


# --- Limits ----------------------------------------------------------------------------------------------------------

STALLING = {
    "nothing": b"",
    "half a head": b"GET /echo HTTP/1.1\r\nHos",
    "half a body": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
    "half a body in chunks": b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "a request, and then nothing": get("/echo"),
}


@pytest.mark.parametrize("sent", STALLING.values(), ids=list(STALLING))
@both
@pytest.mark.gen_test
async def test_a_client_that_stalls_is_cut_off(parser: Parser, sent: bytes) -> None:
    async with serving(parser, limits=QUICK) as place:
        reader, writer = await place.connect()
        writer.write(sent)

        await rest(reader)


@pytest.mark.gen_test
async def test_a_client_that_sends_a_byte_now_and_then_is_cut_off() -> None:
    async with serving(limits=replace(QUICK, idle=60.0)) as place:
        reader, writer = await place.connect()
        began = asyncio.get_running_loop().time()
        ended = asyncio.ensure_future(rest(reader))
        writer.write(b"GET /echo HTTP/1.1\r\n")
        while not ended.done():
            writer.write(b"A: b\r\n")
            await asyncio.sleep(0.02)

        assert 0.3 <= asyncio.get_running_loop().time() - began < 5


@pytest.mark.parametrize("lines", [(), (b"Connection: Upgrade", b"Upgrade: websocket")], ids=["plain", "upgrade"])
@pytest.mark.gen_test
async def test_a_client_that_does_not_read_is_cut_off_and_its_handler_told(lines: tuple[bytes, ...]) -> None:
    async with serving(limits=QUICK) as place:
        _, writer = await place.connect(limit=1000)
        writer.write(get("/large", *lines))

        await until(lambda: place.stage.seen == ["closed"])

        assert place.stage.started < 200
        await until(lambda: not one(place)._connections)


@both
@pytest.mark.gen_test
async def test_writing_waits_for_a_client_that_reads_slowly(parser: Parser) -> None:
    async with serving(parser) as place:
        reader, writer = await place.connect(limit=1000)
        writer.write(get("/large"))
        await until(lambda: place.stage.started)
        await asyncio.sleep(0.05)
        begun = place.stage.started

        received = 0
        async with asyncio.timeout(8):
            while received < 20_000_000:
                received += len(await reader.read(1 << 20))

        assert begun < 150


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.gen_test
async def test_a_handler_may_give_up_waiting_for_its_client(reads: bool, stray: None) -> None:
    async with serving() as place:
        reader, writer = await place.connect(limit=1000)
        writer.write(get("/impatient"))
        await until(lambda: place.stage.seen == ["gave up"])

        if reads:
            writer.write(get("/echo", b"Connection: close"))
            assert (await rest(reader)).endswith(b"GET /echo")
        else:
            writer.transport.abort()

        await until(lambda: place.stage.seen == ["gave up", "ended"])
        await until(lambda: not one(place)._connections)


@pytest.mark.gen_test
async def test_a_long_poll_may_last(stray: None) -> None:
    async with serving(limits=QUICK) as place:
        reader, writer = await place.connect()
        writer.write(get("/wait"))
        await asyncio.sleep(0.6)

        place.stage.gate.set()

        assert await answer(reader) == b"waited"


@pytest.mark.gen_test
async def test_chunks_that_hold_hardly_anything_are_refused() -> None:
    async with serving(limits=Limits(head_size=1000)) as place:
        small = (
            b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"1;%b\r\nx\r\n" % (b"a" * 100) * 100
        )

        assert b"HTTP/1.1 400 " in await place.ask(small)


# --- Clients that go -------------------------------------------------------------------------------------------------


def vanish(writer: asyncio.StreamWriter, how: str) -> None:
    if how == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("sent", [get("/wait"), b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"])
@both
@pytest.mark.gen_test
async def test_a_handler_is_told_that_its_client_has_gone(parser: Parser, sent: bytes, how: str, stray: None) -> None:
    async with serving(parser) as place:
        _, writer = await place.connect()
        writer.write(sent)
        await until(lambda: place.stage.started or place.stage.seen)

        vanish(writer, how)

        await until(lambda: place.stage.seen[-1:] == ["gone"])
        place.stage.gate.set()


@pytest.mark.gen_test
async def test_who_goes_while_a_request_is_prepared_is_told_of_afterwards() -> None:
    async with serving() as place:
        _, writer = await place.connect()
        writer.write(b"POST /stream/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        await until(lambda: place.stage.started)
        vanish(writer, "close")
        await until(lambda: not one(place)._connections)
        assert place.stage.seen == []

        place.stage.gate.set()

        await until(lambda: place.stage.seen == ["gone"])


# --- Ending ----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_server_that_stops_answers_each_connection_once_more() -> None:
    async with serving() as place:
        idle, speaks = await place.connect()
        speaks.write(get("/echo"))
        assert await answer(idle) == b"GET /echo"
        silent, _ = await place.connect()
        busy, writer = await place.connect()
        writer.write(get("/wait"))
        await until(lambda: place.stage.started)

        place.server.stop()

        speaks.write(get("/echo"))
        assert b"\r\nConnection: close\r\n" in await rest(idle)
        with pytest.raises(ConnectionRefusedError):
            await place.connect()
        place.stage.gate.set()
        received = await rest(busy)
        assert b"\r\nConnection: close\r\n" in received
        assert received.endswith(b"waited")
        await place.server.close_all_connections()
        assert await rest(silent) == b""


@both
@pytest.mark.gen_test
async def test_closing_ends_every_connection_whatever_it_is_doing(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CLOSING_SECONDS", 0.1)
    async with serving(parser) as place:
        streams = []
        for sent in (
            b"",
            get("/wait"),
            b"GET /",
            get("/large"),
            b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
        ):
            reader, writer = await place.connect(limit=1000)
            writer.write(sent)
            streams.append(reader)
        await until(lambda: place.stage.started > 2)

        place.server.stop()
        await place.server.close_all_connections()

        for reader in streams:
            await rest(reader)


# --- TLS, proxies, upgrades ------------------------------------------------------------------------------------------


@pytest.fixture
def certificate() -> ssl.SSLContext:
    return tls_context(FOLDER / "test.crt", FOLDER / "test.key")


@pytest.fixture
def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@both
@pytest.mark.gen_test
async def test_under_tls_all_is_the_same(
    parser: Parser, certificate: ssl.SSLContext, trusting: ssl.SSLContext, stray: None
) -> None:
    async with serving(parser, tls=certificate) as place:
        client = Client(*await place.connect(ssl=trusting))
        assert (await client.ask("GET", "/origin"))[2] == b"127.0.0.1 https"
        assert (await client.ask("POST", "/echo", b"x" * 300_000, Content_Length="300000"))[2] == b"x" * 300_000

        reader, writer = await place.connect(ssl=trusting)
        writer.write(get("/wait") + get("/echo"))
        await until(lambda: place.stage.started)
        place.stage.gate.set()
        assert [await answer(reader) for _ in range(2)] == [b"waited", b"GET /echo"]


@both
@pytest.mark.gen_test
async def test_under_tls_a_handler_is_told_that_its_client_has_gone(
    parser: Parser, certificate: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with serving(parser, tls=certificate) as place:
        _, writer = await place.connect(ssl=trusting)
        writer.write(get("/wait"))
        await until(lambda: place.stage.started)

        vanish(writer, "close")

        await until(lambda: place.stage.seen == ["gone"])


@pytest.mark.gen_test
async def test_who_does_not_speak_tls_is_cut_off(certificate: ssl.SSLContext) -> None:
    async with serving(tls=certificate, limits=QUICK) as place:
        reader, writer = await place.connect()
        writer.write(get("/echo"))
        await rest(reader)
        reader, _ = await place.connect()
        await rest(reader)

        await until(lambda: not one(place)._connections)


@pytest.mark.gen_test
async def test_who_goes_before_speaking_tls_is_no_news(certificate: ssl.SSLContext) -> None:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with serving(tls=certificate) as place:
        _, writer = await place.connect()
        await until(lambda: one(place)._connections)
        writer.close()
        await until(lambda: not one(place)._connections)
        await asyncio.sleep(0)
        gc.collect()

    assert not failures


class Flooded:
    """A stream under TLS that always has something to read, for so many pieces."""

    socket = None

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    def set_close_callback(self, callback: object) -> None:
        pass

    async def wait_for_handshake(self) -> None:
        pass

    def read_bytes(self, size: int, *, partial: bool) -> asyncio.Future[bytes]:
        piece: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.left -= 1
        if self.left:
            piece.set_result(b"x" * (size if partial else 0))
        else:
            piece.set_exception(StreamClosedError())
        return piece


@pytest.mark.gen_test
async def test_who_sends_without_a_pause_under_tls_leaves_others_their_turn() -> None:
    stream = Flooded(pieces=1000)
    TlsTransport(stream, asyncio.Protocol())  # type: ignore[arg-type]

    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert stream.left > 900
    await until(lambda: not stream.left)


@encryption
@both
@pytest.mark.gen_test
async def test_tornado_s_websockets_work_as_they_are(
    parser: Parser, encrypted: bool, certificate: ssl.SSLContext
) -> None:
    async with serving(parser, tls=certificate if encrypted else None) as place:
        url = f"{'wss' if encrypted else 'ws'}://127.0.0.1:{place.port}/talk"
        client = await websocket_connect(HTTPRequest(url, validate_cert=False))
        for _ in range(3):
            await client.write_message("hello" * 1000)
            assert await client.read_message() == "127.0.0.1 " + "hello" * 1000
        client.close()


UPGRADE = get(
    "/talk",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
FRAME = b"\x81\x85\0\0\0\0hello"


@both
@pytest.mark.gen_test
async def test_an_upgrade_comes_after_the_answers_before_it_and_loses_nothing_behind_it(parser: Parser) -> None:
    async with serving(parser) as place:
        reader, writer = await place.connect()
        writer.write(get("/wait") + get("/echo") + UPGRADE + FRAME)
        await until(lambda: place.stage.started)
        place.stage.gate.set()

        assert [await answer(reader) for _ in range(2)] == [b"waited", b"GET /echo"]
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await reader.readexactly(17) == b"\x81\x0f127.0.0.1 hello"


@pytest.mark.gen_test
async def test_an_upgrade_behind_answers_that_nobody_reads_waits_for_them(stray: None) -> None:
    async with serving() as place:
        reader, writer = await place.connect(limit=1000)
        writer.write(get("/large") + UPGRADE + FRAME)
        await until(lambda: place.stage.started > 10)

        received = b""
        async with asyncio.timeout(8):
            while not received.endswith(b"127.0.0.1 hello"):
                received = received[-100:] + await reader.read(1 << 20)


@pytest.mark.parametrize("parser", ["httptools", "tornado"])
@pytest.mark.gen_test
async def test_a_handler_may_take_the_connection_over(parser: Parser) -> None:
    async with serving(parser) as place:
        assert await place.ask(get("/detach"), b"hello") == b"yours hello"
        assert await place.ask(get("/detach") + b"hello") == b"yours hello"


@both
@pytest.mark.gen_test
async def test_a_trusted_proxy_tells_who_asks_anew_for_each_request(parser: Parser) -> None:
    async with serving(parser, proxies=Proxies(["127.0.0.1"])) as place:
        client = Client(*await place.connect())

        told = [
            (await client.ask("GET", "/origin", X_Forwarded_For="10.9.9.9, 192.0.2.7"))[2],
            (await client.ask("GET", "/origin", X_Forwarded_For="192.0.2.8", X_Forwarded_Proto="https"))[2],
            (await client.ask("GET", "/origin"))[2],
        ]

    assert told == [b"192.0.2.7 http", b"192.0.2.8 https", b"127.0.0.1 http"]


@both
@pytest.mark.gen_test
async def test_nobody_else_is_believed(parser: Parser) -> None:
    async with serving(parser, proxies=Proxies(["10.0.0.0/8"])) as place:
        client = Client(*await place.connect())

        told = await client.ask("GET", "/origin", X_Forwarded_For="192.0.2.7", X_Forwarded_Proto="https")

    assert told[2] == b"127.0.0.1 http"


@pytest.mark.parametrize(
    ("peer", "said", "origin"),
    [
        ("10.0.0.1", {}, ("10.0.0.1", "http")),
        ("10.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, ("192.0.2.1", "http")),
        ("10.0.0.1", {"X-Forwarded-For": "6.6.6.6, 192.0.2.1"}, ("192.0.2.1", "http")),
        ("10.0.0.1", {"X-Forwarded-For": "192.0.2.1, 10.0.0.2,10.0.0.3"}, ("192.0.2.1", "http")),
        ("10.0.0.1", {"X-Forwarded-For": "192.0.2.1, nonsense, 10.0.0.3"}, ("10.0.0.3", "http")),
        ("10.0.0.1", {"X-Forwarded-For": "nonsense"}, ("10.0.0.1", "http")),
        ("10.0.0.1", {"X-Forwarded-For": "2001:DB8::1"}, ("2001:db8::1", "http")),
        ("::ffff:10.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, ("192.0.2.1", "http")),
        ("10.0.0.1", {"X-Forwarded-Proto": "https"}, ("10.0.0.1", "https")),
        ("10.0.0.1", {"X-Forwarded-Proto": "http, HTTPS"}, ("10.0.0.1", "https")),
        ("10.0.0.1", {"X-Forwarded-Proto": "gopher"}, ("10.0.0.1", "http")),
        ("11.0.0.1", {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}, ("11.0.0.1", "http")),
        ("", {"X-Forwarded-For": "192.0.2.1"}, ("", "http")),
    ],
)
def test_the_origin_is_what_trusted_proxies_say(peer: str, said: dict[str, str], origin: tuple[str, str]) -> None:
    assert Proxies(["10.0.0.0/8"]).origin(peer, "http", said) == origin


# --- Accepting -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.gen_test
async def test_without_descriptors_accepting_rests_and_then_goes_on(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "_RETRY_SECONDS", 0.2)
    tries: list[int | None] = []
    pause = accepting.Acceptor._pause

    def counted(self: accepting.Acceptor, listening: socket.socket, error: OSError) -> None:
        tries.append(error.errno)
        pause(self, listening, error)

    monkeypatch.setattr(accepting.Acceptor, "_pause", counted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(parser) as place:
        client = socket.create_connection(("127.0.0.1", place.port))
        client.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        held: list[socket.socket] = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(client.dup())
            await until(lambda: tries)
            await asyncio.sleep(0.1)
            assert tries == [errno.EMFILE]
        finally:
            for each in held:
                each.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        await asyncio.get_running_loop().sock_sendall(client, get("/echo"))
        async with asyncio.timeout(8):
            assert (await asyncio.get_running_loop().sock_recv(client, 1000)).startswith(b"HTTP/1.1 200 ")
        client.close()
