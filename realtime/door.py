"""The door: WebSockets that open a session are let in before the HTTP server sees them.

Most connections that a server like this accepts are of one kind, and an HTTP server's care for each takes three times
as long as what it is about. So the door looks at what has arrived on a new connection without taking it. If that begins
with one whole request that opens a session by WebSocket, and nothing about it is unusual, the door takes exactly this
request, answers it and hands the socket to the engine. Everything else it leaves as it is, and to the HTTP server,
which also knows how to refuse. A client that says nothing for a while is the HTTP server's too: it keeps all deadlines.

Invariant: until a request is recognised, nothing is read from a connection; what follows it stays in the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from realtime.engine import Engine
from realtime.engineio import WEBSOCKET, Deadlines, HandshakeRefused, check_handshake
from realtime.links import SocketLink
from realtime.websocket import VERSION, is_key, switching

# Seconds after which a silent connection goes to the HTTP server, and bytes within which the request must be whole.
SILENT_SECONDS = 1.0
HEAD_SIZE = 8192

_HEADER = re.compile(r"([A-Za-z0-9-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_ENDS = b"\r\n\r\n"
# What says that a body follows: no opening of a WebSocket has one.
_OF_BODIES = {"content-length", "transfer-encoding"}

Otherwise = Callable[[socket.socket, Any], None]
"""Takes a connection and the address of its peer, as `socket.accept` gives them."""


@dataclass(frozen=True)
class Opening:
    """A request that opens a session: the bytes that it is long, and its `Sec-WebSocket-Key`."""

    size: int
    key: str


def recognise(data: bytes, paths: tuple[str, ...]) -> Opening | None:
    """The opening with which `data` begins, if it is a whole and usual one for one of the paths.

    None says nothing against the request, only that it is for somebody else to look at.
    """
    end = data.find(_ENDS)
    if end < 0 or not data.startswith(b"GET /"):
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    headers = _headers(lines)
    if headers is None or not _opens_session(first, paths) or not _upgrades(headers):
        return None
    key = headers.get("sec-websocket-key", "")
    return Opening(end + len(_ENDS), key) if is_key(key) else None


def _headers(lines: list[str]) -> dict[str, str] | None:
    """The headers by their names in lower case; None if one comes twice, goes on in a second line or is none at all."""
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None or found[1].lower() in headers:
            return None
        headers[found[1].lower()] = found[2]
    return headers


def _opens_session(line: str, paths: tuple[str, ...]) -> bool:
    method, _, rest = line.partition(" ")
    target, _, version = rest.partition(" ")
    path, _, text = target.partition("?")
    if path not in paths or version != "HTTP/1.1":
        return False
    query = dict(parse_qsl(text, keep_blank_values=True))
    try:
        check_handshake(query, method, is_upgrade=True)
    except HandshakeRefused:
        return False
    return query["transport"] == WEBSOCKET and not query.get("sid")


def _upgrades(headers: dict[str, str]) -> bool:
    return (
        headers.get("upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("connection", "").lower()
        and headers.get("sec-websocket-version") == VERSION
        and bool(headers.get("host"))
        and _OF_BODIES.isdisjoint(headers)
    )


class Door:
    """Looks at new connections, which must not be under TLS, for an engine at a path."""

    def __init__(self, engine: Engine, path: str) -> None:
        self._engine = engine
        self._paths = (path.rstrip("/"), path.rstrip("/") + "/")
        self._silent: dict[socket.socket, Callable[[], None]] = {}
        self._deadlines: Deadlines[socket.socket] = Deadlines(SILENT_SECONDS)
        self._timer: asyncio.TimerHandle | None = None

    def knock(self, connection: socket.socket, address: Any, otherwise: Otherwise) -> None:
        """Takes a connection just accepted: lets it in, now or as soon as it speaks, or gives it to `otherwise`."""
        connection.setblocking(False)
        if self._look(connection, address, otherwise):
            return
        loop = asyncio.get_running_loop()
        self._silent[connection] = lambda: otherwise(connection, address)
        self._deadlines.set(connection, loop.time())
        loop.add_reader(connection.fileno(), self._spoke, connection, address, otherwise)
        if self._timer is None:
            self._timer = loop.call_later(SILENT_SECONDS, self._tick)

    def close(self) -> None:
        """Closes the connections that have said nothing yet."""
        for connection in list(self._silent):
            self._forget(connection)
            connection.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _spoke(self, connection: socket.socket, address: Any, otherwise: Otherwise) -> None:
        # Whoever takes the connection over reads from it in a way of his own.
        self._forget(connection)
        if not self._look(connection, address, otherwise):
            otherwise(connection, address)

    def _look(self, connection: socket.socket, address: Any, otherwise: Otherwise) -> bool:
        """Deals with a connection as its first bytes ask for; False if there are none yet."""
        try:
            data = connection.recv(HEAD_SIZE, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            connection.close()
            return True
        opening = None if self._engine.is_closing else recognise(data, self._paths)
        if opening is None:
            otherwise(connection, address)
        else:
            self._let_in(connection, str(address[0]), opening)
        return True

    def _let_in(self, connection: socket.socket, address: str, opening: Opening) -> None:
        connection.recv(opening.size)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        descriptor = connection.detach()
        # Nothing was written to the socket before, so it takes this little at once; if it is broken, reading tells.
        with contextlib.suppress(OSError):
            os.write(descriptor, switching(opening.key))
        self._engine.open_websocket(SocketLink(descriptor), address, b"")

    def _forget(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(connection.fileno())
        self._deadlines.discard(connection)
        del self._silent[connection]

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in self._deadlines.due(loop.time()):
            give_away = self._silent[connection]
            self._forget(connection)
            give_away()
        first = self._deadlines.next
        self._timer = None if first is None else loop.call_at(first, self._tick)
