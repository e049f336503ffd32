"""The door: whom it lets in, and that everybody else meets the HTTP server as if there were none."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import tornado.test
from hypothesis import given
from hypothesis import strategies as st
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port
from tornado.web import Application

from handlers.serving import LIMITS
from http1.limits import Limits as HttpLimits
from http1.server import HttpServer
from realtime import door
from realtime.door import Door, recognise
from realtime.engine import Limits
from tests.conformance.engine import PATH, Echo
from tests.conftest import until
from tests.fronts import make_server
from tests.wire import TEXT, Place, Rejected, WebSocket, Wire, frame, own_wire

PATHS = ("/engine.io", "/engine.io/")
TARGET = "/engine.io/?EIO=4&transport=websocket"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = {
    "Host": "127.0.0.1:8080",
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
    "Cookie": "a=b; c=d",
}


def head(
    target: str = TARGET, method: str = "GET", version: str = "HTTP/1.1", headers: Mapping[str, str] = HEADERS
) -> bytes:
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def without(name: str) -> dict[str, str]:
    return {each: value for each, value in HEADERS.items() if each != name}


UNUSUAL = {
    "nothing": b"",
    "another method": head(method="POST"),
    "another version": head(version="HTTP/1.0"),
    "another path": head("/api/v3/login"),
    "a path below": head("/engine.io/x?EIO=4&transport=websocket"),
    "polling": head("/engine.io/?EIO=4&transport=polling"),
    "no transport": head("/engine.io/?EIO=4"),
    "another protocol": head("/engine.io/?EIO=3&transport=websocket"),
    "an upgrade of a session": head(TARGET + "&sid=abc"),
    "no upgrade": head(headers=without("Upgrade")),
    "no connection to upgrade": head(headers=without("Connection")),
    "another version of the protocol": head(headers=HEADERS | {"Sec-WebSocket-Version": "8"}),
    "no key": head(headers=without("Sec-WebSocket-Key")),
    "a short key": head(headers=HEADERS | {"Sec-WebSocket-Key": "c2hvcnQ="}),
    "no host": head(headers=without("Host")),
    "a body": head(headers=HEADERS | {"Content-Length": "1"}) + b"x",
    "a body in pieces": head(headers=HEADERS | {"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n",
    "a header twice": head(headers=HEADERS | {"host": "elsewhere"}),
    "a header in two lines": head(headers=HEADERS | {"Cookie": "a=b;\r\n c=d"}),
    "a header without a colon": head().replace(b"Cookie:", b"Cookie"),
    "a space before the colon": head().replace(b"Cookie:", b"Cookie :"),
    "a lone line feed": head(headers=HEADERS | {"Cookie": "a=b\nX: y"}),
    "a NUL": head(headers=HEADERS | {"Cookie": "a\0"}),
}


SPOKEN = {name: data for name, data in UNUSUAL.items() if data}


@pytest.mark.parametrize("target", [TARGET, TARGET.replace("/?", "?"), TARGET + "&t=abc&b64="])
@pytest.mark.parametrize("rest", [b"", b"\x81\x80abcd", head()], ids=["alone", "a frame behind", "another behind"])
def test_a_whole_opening_is_recognised_up_to_its_end(target: str, rest: bytes) -> None:
    opening = recognise(head(target) + rest, PATHS)

    assert opening is not None
    assert (opening.size, opening.key) == (len(head(target)), KEY)


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=list(UNUSUAL))
def test_what_is_unusual_is_not_recognised(data: bytes) -> None:
    assert recognise(data, PATHS) is None


@given(st.integers(0, len(head()) - 1))
def test_no_part_of_an_opening_is_recognised(size: int) -> None:
    assert recognise(head()[:size], PATHS) is None


@given(st.binary() | st.binary().map(lambda data: head() + data) | st.binary().map(lambda data: head()[:-2] + data))
def test_whatever_comes_nothing_but_an_opening_is_recognised(data: bytes) -> None:
    opening = recognise(data, PATHS)

    assert opening is None or data[: opening.size].startswith(head()[:-4])


@dataclass
class House:
    """A server with a door."""

    echo: Echo
    door: Door
    server: HttpServer
    place: Place

    @property
    def silent(self) -> int:
        return len(self.door._silent)


@pytest.fixture
def wire(io_loop: IOLoop) -> Iterator[Wire]:
    yield from own_wire(io_loop)


def open_house(io_loop: IOLoop, application: Application | None = None, limits: HttpLimits = LIMITS) -> Iterator[House]:
    echo = Echo(Limits())
    entrance = Door(echo.engine, PATH)
    server = make_server(application or echo.application(), entrance, limits=limits)
    listening, port = bind_unused_port()
    server.add_socket(listening)
    yield House(echo, entrance, server, Place(port, PATH))
    server.stop()
    io_loop.run_sync(server.close_all_connections)


@pytest.fixture
def house(io_loop: IOLoop) -> Iterator[House]:
    yield from open_house(io_loop)


@pytest.fixture
def only_door(io_loop: IOLoop) -> Iterator[House]:
    """Without routes for Engine.IO: who gets in came by the door."""
    yield from open_house(io_loop, Application())


@pytest.fixture
def no_door(io_loop: IOLoop) -> Iterator[Place]:
    server = make_server(Echo(Limits()).application())
    listening, port = bind_unused_port()
    server.add_socket(listening)
    yield Place(port, PATH)
    server.stop()
    io_loop.run_sync(server.close_all_connections)


async def answer_to(wire: Wire, place: Place, data: bytes) -> bytes:
    """The head that a server answers with, and the end if it closes; without the date and the request's id."""
    reader, writer = await wire.connect(place.port)
    writer.write(data)
    async with asyncio.timeout(8):
        try:
            answered = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            answered = error.partial + b" and closed"
    return b"\r\n".join(line for line in answered.split(b"\r\n") if not line.startswith((b"Date:", b"X-Request-Id:")))


@pytest.mark.gen_test
async def test_a_websocket_comes_in_by_the_door(wire: Wire, only_door: House) -> None:
    websocket = await wire.websocket_session(only_door.place)

    await websocket.send("4hello")

    assert await websocket.receive() == "4hello"
    [session] = only_door.echo.opened
    assert session.address == "127.0.0.1"


@pytest.mark.gen_test
async def test_a_client_that_speaks_after_a_while_comes_in_by_the_door(wire: Wire, only_door: House) -> None:
    reader, writer = await wire.connect(only_door.place.port)
    await until(lambda: only_door.silent)

    writer.write(head())

    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert (await WebSocket(reader, writer).receive_text()).startswith("0{")
    assert not only_door.silent


@pytest.mark.gen_test
async def test_what_a_client_sends_with_its_request_is_not_lost(wire: Wire, only_door: House) -> None:
    reader, writer = await wire.connect(only_door.place.port)
    messages = [f"4{number}" for number in range(200)]

    writer.write(head() + b"".join(frame(TEXT, message.encode()) for message in messages))

    await reader.readuntil(b"\r\n\r\n")
    received = await WebSocket(reader, writer).receive_many(1 + len(messages))
    assert received[1:] == messages


@pytest.mark.gen_test
async def test_a_request_that_comes_in_parts_is_answered_all_the_same(wire: Wire, house: House) -> None:
    reader, writer = await wire.connect(house.place.port)
    for part in (head()[:7], head()[7:-1], head()[-1:]):
        writer.write(part)
        await until(lambda: not house.silent)
        await asyncio.sleep(0.01)

    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert (await WebSocket(reader, writer).receive_text()).startswith("0{")


@pytest.mark.parametrize("data", SPOKEN.values(), ids=list(SPOKEN))
@pytest.mark.gen_test
async def test_everything_unusual_is_answered_as_without_a_door(
    wire: Wire, house: House, no_door: Place, data: bytes
) -> None:
    with_door, without_door = await asyncio.gather(answer_to(wire, house.place, data), answer_to(wire, no_door, data))

    assert with_door == without_door


@pytest.mark.gen_test
async def test_a_keep_alive_connection_serves_one_request_after_the_other(wire: Wire, house: House) -> None:
    request = head("/engine.io/?EIO=4&transport=polling", headers={"Host": "x"})
    reader, writer = await wire.connect(house.place.port)

    for _ in range(3):
        writer.write(request)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"}")


@pytest.mark.gen_test
async def test_an_engine_that_closes_lets_nobody_in(wire: Wire, house: House) -> None:
    house.echo.engine.is_closing = True

    with pytest.raises(Rejected) as rejected:
        await wire.websocket(house.place)

    assert rejected.value.response.json == {"code": 4, "message": "Forbidden"}
    assert not house.echo.opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, io_loop: IOLoop) -> Iterator[House]:
    monkeypatch.setattr(door, "SILENT_SECONDS", 0.05)
    yield from open_house(io_loop, limits=HttpLimits(idle=0.3, head=0.3, tick=0.05))


@pytest.mark.gen_test
async def test_a_silent_client_is_handed_to_the_http_server_which_ends_it(wire: Wire, impatient: House) -> None:
    reader, _ = await wire.connect(impatient.place.port)
    await until(lambda: impatient.silent)
    await until(lambda: not impatient.silent)

    async with asyncio.timeout(8):
        assert await reader.read() == b""


@pytest.mark.gen_test
async def test_a_client_that_speaks_late_is_served_by_the_http_server(wire: Wire, impatient: House) -> None:
    connections = [await wire.connect(impatient.place.port) for _ in range(3)]
    await until(lambda: impatient.silent == 3)
    await until(lambda: not impatient.silent)

    for reader, writer in connections:
        writer.write(head())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert (await WebSocket(reader, writer).receive_text()).startswith("0{")


@pytest.mark.gen_test
async def test_a_client_that_goes_away_without_a_word_leaves_nothing_behind(wire: Wire, house: House) -> None:
    for _ in range(3):
        _, writer = await wire.connect(house.place.port)
        await until(lambda: house.silent)
        writer.transport.abort()

        await until(lambda: not house.silent)


@pytest.mark.gen_test
async def test_who_has_said_nothing_when_the_server_stops_is_cut_off(wire: Wire, house: House) -> None:
    reader, _ = await wire.connect(house.place.port)
    await until(lambda: house.silent)

    house.door.close()

    assert await reader.read() == b""
    assert not house.silent


@pytest.mark.gen_test
async def test_a_server_under_tls_does_without_a_door() -> None:
    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = Path(tornado.test.__file__).parent
    certificate.load_cert_chain(folder / "test.crt", folder / "test.key")
    echo = Echo(Limits())
    server = make_server(echo.application(), Door(echo.engine, PATH), tls=certificate)
    listening, port = bind_unused_port()
    server.add_socket(listening)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    writer.write(head())

    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert (await WebSocket(reader, writer).receive_text()).startswith("0{")
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    server.stop()
    await server.close_all_connections()
