"""Engine.IO by hand, over real sockets: a client that may do everything that a well-behaved one never does.

HTTP goes through raw connections, so that a test can abandon a request; websockets are spoken frame by frame
(RFC 6455), so that a test can break every rule of them. Nothing here answers a ping, and nothing waits longer than
`WITHIN` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port
from tornado.web import Application

from tests.fronts import make_server

# An answer that takes longer counts as a hang. Pings are 25 s apart in most tests, so no ping timeout comes within.
WITHIN = 20.0

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
SEPARATOR = "\x1e"


class Response(NamedTuple):
    """An answer over HTTP; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Closed(NamedTuple):
    """The end of a websocket: the code and the reason of the close frame, None where the connection just ended."""

    code: int | None
    reason: str = ""


class Frame(NamedTuple):
    """A websocket frame."""

    opcode: int
    payload: bytes
    is_final: bool = True


class Rejected(Exception):
    """The server did not switch to the websocket protocol."""

    def __init__(self, response: Response) -> None:
        super().__init__(str(response))
        self.response = response


@dataclass(frozen=True)
class Place:
    """Where a server listens, and on which path."""

    port: int
    path: str = "/engine.io/"

    def target(self, transport: str | None = "polling", sid: str | None = None, version: str | None = "4") -> str:
        """The request target; what is None is left out."""
        asked = {"EIO": version, "transport": transport, "sid": sid}
        return f"{self.path}?" + "&".join(f"{name}={value}" for name, value in asked.items() if value is not None)


class Request:
    """A request over a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def response(self) -> Response:
        """The answer, once it is there; ConnectionError if the server closes without one."""
        async with asyncio.timeout(WITHIN):
            return await _read_response(self._reader)

    def send(self, body: bytes) -> None:
        """Sends more of the request's body."""
        self._writer.write(body)

    def abandon(self) -> None:
        """Goes away without waiting for an answer."""
        self._writer.transport.abort()

    async def ended(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(WITHIN):
            return await _read_to_end(self._reader)


class WebSocket:
    """A websocket, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *messages: str | bytes) -> None:
        """Sends messages, each in one frame."""
        for message in messages:
            self._writer.write(frame(*_opcode_and_payload(message)))
        await self._writer.drain()

    async def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def frame(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        async with asyncio.timeout(WITHIN):
            try:
                return await _read_frame(self._reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def receive(self) -> str | bytes | Closed:
        """The next message, or how the server ended the connection."""
        received = await self.frame()
        if received is None:
            return Closed(None)
        assert received.is_final, "the server has no reason to send fragments"
        if received.opcode == CLOSE:
            return _closed(received.payload)
        assert received.opcode in (TEXT, BINARY), received
        return received.payload.decode() if received.opcode == TEXT else received.payload

    async def receive_text(self) -> str:
        """The next message, which must be text."""
        message = await self.receive()
        assert isinstance(message, str), message
        return message

    async def receive_many(self, count: int) -> list[str | bytes | Closed]:
        """The next messages."""
        return [await self.receive() for _ in range(count)]

    async def ended(self) -> bool:
        """Waits until the server has closed the connection, and whether nothing came before."""
        async with asyncio.timeout(WITHIN):
            return await _read_to_end(self._reader) == b""

    def abort(self) -> None:
        """Ends the connection by a reset."""
        if not self._writer.is_closing():
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def finish(self) -> None:
        """Ends this side of the connection, without a close frame."""
        self._writer.write_eof()

    def pause_reading(self) -> None:
        """Reads no more from the connection, so that the server's writes back up."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume_reading(self) -> None:
        """Reads again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]


class Wire:
    """Connections to servers here, all of which end with it."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def close(self) -> None:
        """Ends all connections."""
        for writer in self._writers:
            writer.transport.abort()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def start(
        self, place: Place, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Request:
        """Sends a request, and does not wait for its answer."""
        reader, writer = await self.connect(place.port)
        writer.write(_head(method, target, {"Connection": "close", **_length(body), **headers}) + (body or b""))
        await writer.drain()
        return Request(reader, writer)

    async def ask(
        self, place: Place, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Response:
        """Sends a request; its answer."""
        request = await self.start(place, method, target, body, headers)
        return await request.response()

    async def connect(
        self, port: int, receive_buffer: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection; with a small buffer, the server's writes to it soon meet resistance."""
        raw = socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        limit = receive_buffer or 1 << 20
        reader, writer = await asyncio.open_connection(sock=raw, limit=limit)
        self._writers.append(writer)
        return reader, writer

    async def websocket(
        self,
        place: Place,
        sid: str | None = None,
        *,
        target: str | None = None,
        headers: Mapping[str, str] = {},
        receive_buffer: int | None = None,
    ) -> WebSocket:
        """Opens a websocket, the Engine.IO handshake not yet read; raises `Rejected`."""
        reader, writer = await self.connect(place.port, receive_buffer)
        writer.write(_head("GET", target or place.target("websocket", sid), {**UPGRADE, **headers}))
        async with asyncio.timeout(WITHIN):
            status, answered = await _read_head(reader)
            if status != 101:
                raise Rejected(Response(status, answered, await _read_body(reader, answered)))
        return WebSocket(reader, writer)

    async def handshake(self, place: Place) -> dict[str, Any]:
        """Opens a polling session; the server's handshake."""
        response = await self.ask(place, "GET", place.target())
        assert response.status == 200, response
        opened: dict[str, Any] = json.loads(response.text.removeprefix("0"))
        return opened

    async def session(self, place: Place) -> PollingSession:
        """An open polling session."""
        return PollingSession(self, place, (await self.handshake(place))["sid"])

    async def websocket_session(self, place: Place, receive_buffer: int | None = None) -> WebSocket:
        """An open session over a websocket, its handshake read."""
        opened = await self.websocket(place, receive_buffer=receive_buffer)
        assert (await opened.receive_text()).startswith("0{")
        return opened


@dataclass(frozen=True)
class PollingSession:
    """A polling session."""

    wire: Wire
    place: Place
    sid: str

    @property
    def target(self) -> str:
        return self.place.target(sid=self.sid)

    async def start_poll(self) -> Request:
        """Begins to poll."""
        return await self.wire.start(self.place, "GET", self.target)

    async def poll(self) -> Response:
        """Polls once."""
        return await (await self.start_poll()).response()

    async def packets(self) -> list[str]:
        """The packets of one poll, which must succeed."""
        response = await self.poll()
        assert response.status == 200, response
        return response.text.split(SEPARATOR)

    async def gather(self, count: int) -> list[str]:
        """The packets of as many polls as it takes to have so many of them."""
        packets: list[str] = []
        while len(packets) < count:
            packets += await self.packets()
        return packets

    async def post(self, *packets: str) -> Response:
        """Sends packets in one payload."""
        return await self.wire.ask(self.place, "POST", self.target, SEPARATOR.join(packets).encode(), TEXT_PLAIN)

    async def probe(self) -> WebSocket:
        """A websocket that has answered the probe."""
        opened = await self.wire.websocket(self.place, self.sid)
        await opened.send("2probe")
        assert await opened.receive() == "3probe"
        return opened

    async def upgrade(self) -> WebSocket:
        """The websocket that the session goes on with."""
        opened = await self.probe()
        await opened.send("5")
        return opened


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
ACCEPTED = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the answer to this key (RFC 6455, section 1.3)
TEXT_PLAIN = {"Content-Type": "text/plain;charset=UTF-8"}


def frame(
    opcode: int, payload: bytes = b"", *, is_final: bool = True, is_masked: bool = True, reserved: int = 0
) -> bytes:
    """A client's frame (RFC 6455, section 5.2)."""
    first = (is_final << 7) | (reserved << 4) | opcode
    mask = os.urandom(4) if is_masked else b""
    body = masked(payload, mask) if is_masked else payload
    return bytes([first]) + length_field(len(payload), is_masked=is_masked) + mask + body


def length_field(length: int, *, is_masked: bool = True) -> bytes:
    """The length of a payload, as short as it can be written."""
    if length < 126:
        return bytes([is_masked << 7 | length])
    if length < 1 << 16:
        return bytes([is_masked << 7 | 126]) + length.to_bytes(2)
    return bytes([is_masked << 7 | 127]) + length.to_bytes(8)


def masked(payload: bytes, mask: bytes) -> bytes:
    """The payload under a mask of four bytes; twice gives the payload back (RFC 6455, section 5.3)."""
    whole = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(whole)).to_bytes(len(payload))


def fragments(opcode: int, pieces: Sequence[bytes]) -> list[bytes]:
    """The frames of a message in pieces."""
    last = len(pieces) - 1
    return [
        frame(CONTINUATION if number else opcode, piece, is_final=number == last) for number, piece in enumerate(pieces)
    ]


def close_payload(code: int, reason: str = "") -> bytes:
    """The body of a close frame."""
    return code.to_bytes(2) + reason.encode()


def _opcode_and_payload(message: str | bytes) -> tuple[int, bytes]:
    return (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)


def _closed(payload: bytes) -> Closed:
    return Closed(int.from_bytes(payload[:2]), payload[2:].decode()) if payload else Closed(1005)


def _length(body: bytes | None) -> dict[str, str]:
    return {} if body is None else {"Content-Length": str(len(body))}


def _head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError as error:
        raise ConnectionError(f"the server closed after {error.partial!r}") from None
    status, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers


async def _read_response(reader: asyncio.StreamReader) -> Response:
    status, headers = await _read_head(reader)
    return Response(status, headers, await _read_body(reader, headers))


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await _read_to_end(reader)


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            received += chunk
    return received


async def _read_frame(reader: asyncio.StreamReader) -> Frame:
    first, second = await reader.readexactly(2)
    assert not first & 0x70, "a reserved bit is set"
    assert not second & 0x80, "a server masks nothing (RFC 6455, section 5.1)"
    length = second
    if second >= 126:
        length = int.from_bytes(await reader.readexactly(2 if second == 126 else 8))
    return Frame(first & 0x0F, await reader.readexactly(length), bool(first & 0x80))


def own_wire(io_loop: IOLoop) -> Iterator[Wire]:
    """The body of a fixture: a wire on the test's loop."""
    wire = Wire()
    yield wire
    io_loop.run_sync(wire.close)


def own_place(io_loop: IOLoop, application: Application, path: str = "/engine.io/") -> Iterator[Place]:
    """The body of a fixture: where the application is served."""
    listening, port = bind_unused_port()
    server = make_server(application)
    server.add_socket(listening)
    yield Place(port, path)
    server.stop()
    io_loop.run_sync(server.close_all_connections)
