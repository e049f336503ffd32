"""The servers: `Server`, which parses with llhttp, and `TornadoServer`, which is Tornado's own; both serve alike.

server = make_server("httptools", application, Options(limits=Limits(idle=60)))
server.add_sockets(bind_sockets(8080))
...
server.stop()
await server.close_all_connections()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakSet

from tornado import httputil
from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.iostream import IOStream

from http1.accepting import Accepted, Acceptor
from http1.connection import Connection, Take
from http1.exchange import Exchange, RequestContext
from http1.handover import Departures, Moved, Neighbours, Tunnel, tunnelled
from http1.headers import CheckedHeaders
from http1.limits import Limits
from http1.parser import Head, Heads
from http1.proxies import Proxies
from http1.streams import ReadAgainTlsStream, TlsTransport
from http1.wheel import Wheel

Parser = Literal["httptools", "tornado"]

# How long connections may take to send what is left when everything is closed.
_CLOSING_SECONDS = 1.0


class Entrance(Protocol):
    """Looks at connections before HTTP does, and keeps those that it knows."""

    def knock(self, connection: socket.socket, address: Any, otherwise: Accepted) -> None:
        """Takes a connection just accepted, and gives it to `otherwise` if it is not for the entrance."""

    def close(self) -> None:
        """Lets nobody in any more."""


@runtime_checkable
class TakesWhole(Protocol):
    """An application that can be given a request as a whole, too, which spares it and the server the steps between."""

    def take(self, exchange: Exchange, line: httputil.RequestStartLine, headers: CheckedHeaders, body: bytes) -> bool:
        """Serves the request; False if it is to come piece by piece, by `start_request`."""


def plain_error(status: int) -> tuple[Mapping[str, str], bytes]:
    """The fields and the body of an answer that no handler gives: a line of text."""
    return {"Content-Type": "text/plain; charset=UTF-8"}, f"{status} {HTTPStatus(status).phrase}\n".encode()


@dataclass(frozen=True)
class Options:
    """How to serve.

    Connections come to HTTP through the `entrance`, if there is one, but not those under TLS, which nobody can look
    into from outside, and not those of trusted proxies, whose clients are known by their headers alone. `error_answer`
    words what is answered to bytes that are no request, and gives its fields (Date and those that say how long it is
    come of themselves). A request that wants to `upgrade` to one of these protocols
    is served by Tornado's parser, whose handlers can take the connection over; other such wishes are not heard.
    With `neighbours`, which are for llhttp alone, connections go to the processes that their requests are for.
    """

    limits: Limits = field(default_factory=Limits)
    tls: ssl.SSLContext | None = None
    proxies: Proxies = field(default_factory=Proxies)
    entrance: Entrance | None = None
    error_answer: Callable[[int], tuple[Mapping[str, str], bytes]] = plain_error
    upgrades: frozenset[str] = frozenset(["websocket"])
    neighbours: Neighbours | None = None


_DEFAULTS = Options()


class HttpServer(Protocol):
    """What both servers can do."""

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accepts connections from these listening sockets."""

    def add_socket(self, socket: socket.socket) -> None:
        """Accepts connections from one more."""

    def stop(self) -> None:
        """Accepts no more connections; those that are open may end what they are doing."""

    async def close_all_connections(self) -> None:
        """Ends all connections, and returns when they have ended."""


def make_server(
    parser: Parser, application: httputil.HTTPServerConnectionDelegate, options: Options = _DEFAULTS
) -> HttpServer:
    """A server for the application, with one parser or the other; `ValueError` for what only one of them can do."""
    if parser != "httptools" and options.neighbours is not None:
        raise ValueError("Tornado's parser cannot give connections to other processes")
    return Server(application, options) if parser == "httptools" else TornadoServer(application, options=options)


def tls_context(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """A server's context of a certificate (with those that lead to its root) and its key, which may be in one file.

    Raises `OSError` (`ssl.SSLError` is one) for files that are not there or do not fit.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    # Otherwise a client could agree by ALPN on a protocol that is not spoken here.
    context.set_alpn_protocols(["http/1.1"])
    return context


class Server:
    """Serves HTTP/1.1 with llhttp as its parser."""

    def __init__(self, application: httputil.HTTPServerConnectionDelegate, options: Options) -> None:
        self.limits = options.limits
        self.heads = Heads()
        self.is_stopping = False
        self.take: Take | None = application.take if isinstance(application, TakesWhole) else None
        self._application = application
        self._options = options
        self._acceptor = Acceptor(_through(options, self._serve))
        self._wheel = Wheel(options.limits.tick)
        self._connections: set[Connection] = set()
        self._none_left: asyncio.Future[None] | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        self._tunnels: set[Tunnel] = set()
        self._protocol = "http" if options.tls is None else "https"
        # A connection whose wish was not granted ends: what came next on it would be parsed by other rules, and nobody
        # would ask whether it is for a neighbour. A proxy may send anybody's requests there.
        self._handed_over = TornadoServer(application, options=options, answers_once=True)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accepts connections from these listening sockets, and from the neighbours if there are some."""
        for listening in sockets:
            self.add_socket(listening)
        if self._options.neighbours is not None:
            self._options.neighbours.arrivals.start(self._adopt)

    def add_socket(self, socket: socket.socket) -> None:
        """Accepts connections from one more."""
        self._acceptor.add(socket, _loop())

    def stop(self) -> None:
        """Accepts no more connections. Those that are open are served on, each of them once more at most.

        So who asks while the last requests are ended still hears that the server goes down.
        """
        self.is_stopping = True
        self._acceptor.close()
        if self._options.neighbours is not None:
            self._options.neighbours.arrivals.close()
        if self._options.entrance is not None:
            self._options.entrance.close()

    async def close_all_connections(self) -> None:
        """Ends all connections, and returns when they have ended."""
        for tunnel in self._tunnels:
            tunnel.close()
        await asyncio.gather(*(tunnel.ended for tunnel in self._tunnels), return_exceptions=True)
        # Not cancelled: of a connection that was about to begin then, uvloop would never tell the end.
        await asyncio.gather(*self._beginning, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._ended()
        for connection in list(self._connections):
            connection.abort()
        await self._ended()
        self._wheel.close()
        await self._handed_over.close_all_connections()
        self._handed_over.stop()

    async def _ended(self) -> None:
        while self._connections:
            self._none_left = _loop().create_future()
            await self._none_left

    def _serve(self, accepted: socket.socket, address: Any) -> None:
        connection = Connection(self, address, self._protocol)
        if self._options.tls is None:
            self._start(accepted, connection)
            return
        try:
            wrapped = self._options.tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        except OSError:
            accepted.close()  # the client went as it came
            return
        TlsTransport(ReadAgainTlsStream(wrapped), connection)

    def _adopt(self, moved: Moved) -> None:
        self._start(moved.socket, Connection(self, moved.address, moved.protocol, moved.unread))

    def _start(self, accepted: socket.socket, connection: Connection) -> None:
        task = asyncio.ensure_future(self._begin(accepted, connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            accepted.close()  # the client went as it came

    # What connections need

    @cached_property
    def drained(self) -> asyncio.Future[None]:
        """A future that is done."""
        future: asyncio.Future[None] = _loop().create_future()
        future.set_result(None)
        return future

    def start_request(self, connection: Connection, exchange: Exchange) -> httputil.HTTPMessageDelegate:
        """The application's delegate for a request."""
        return self._application.start_request(connection, exchange)

    def context(self, connection: Connection, head: Head) -> RequestContext:
        """Where a request comes from."""
        peer = connection.origin
        if not self._options.proxies:
            return peer
        return RequestContext(*self._options.proxies.origin(peer.remote_ip, peer.protocol, head.headers))

    def elsewhere(self, head: Head) -> Departures | None:
        """The way to the neighbour that the request is for; while this server stops, none is sent away any more."""
        neighbours = self._options.neighbours
        return None if neighbours is None or self.is_stopping else neighbours.whose(head.target)

    def stand_in(self, stream: IOStream) -> socket.socket:
        """A socket by which a neighbour can serve a stream under TLS."""
        stands_in, tunnel = tunnelled(stream)
        self._tunnels.add(tunnel)
        tunnel.ended.add_done_callback(lambda _: self._tunnels.discard(tunnel))
        return stands_in

    def upgrades(self, head: Head) -> bool:
        """Whether the request asks for one of the protocols that handlers here may know."""
        return head.upgrade in self._options.upgrades

    def upgrade(self, stream: IOStream, address: Any) -> None:
        """Serves the connection by Tornado's parser from here on."""
        self._handed_over.handle_stream(stream, address)

    def error_answer(self, status: int) -> tuple[Mapping[str, str], bytes]:
        """The fields and the body of the answer to what is no request."""
        return self._options.error_answer(status)

    def watch(self, connection: Connection) -> None:
        """A connection has begun."""
        self._connections.add(connection)
        self._wheel.add(connection)

    def hasten(self, connection: Connection) -> None:
        """A connection's deadline may have come closer."""
        self._wheel.hasten(connection)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._wheel.discard(connection)
        self._connections.discard(connection)
        self._application.on_close(connection)
        if not self._connections and self._none_left is not None:
            self._none_left.set_result(None)
            self._none_left = None


class TornadoServer(HTTPServer):
    """Serves by Tornado's own parser, with one shared look at the clock in place of two timers for each request.

    Tornado guards every request by a timer for its headers and one for its body, which costs a small request a fifth
    of its time. Here the server notes when it began to wait for a client, and looks through the notes now and then.
    """

    def initialize(self, *args: Any, options: Options = _DEFAULTS, answers_once: bool = False, **kwargs: Any) -> None:
        """Sets up as Tornado does, without its timers. It may answer but once on each connection."""
        limits = options.limits
        kwargs |= {"ssl_options": options.tls, "max_header_size": limits.head_size, "max_body_size": limits.body_size}
        super().initialize(*args, **kwargs)
        self._options = options
        self._limits = options.limits
        self._answers_once = answers_once
        self._served: WeakSet[object] = WeakSet()
        self.conn_params.header_timeout = None
        self._acceptor = Acceptor(_through(options, self._handle_connection))
        self._deadlines: dict[HTTP1ServerConnection, float] = {}
        self._sweeper = PeriodicCallback(self._sweep, options.limits.tick * 1000)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accepts connections from these listening sockets."""
        for listening in sockets:
            self._acceptor.add(listening, _loop())

    def stop(self) -> None:
        """Accepts no more connections."""
        super().stop()
        self._acceptor.close()
        self._sweeper.stop()
        if self._options.entrance is not None:
            self._options.entrance.close()

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Tornado's delegate for a request, watched."""
        if not self._sweeper.is_running():
            self._sweeper.start()
        delegate = super().start_request(server_conn, request_conn)
        assert isinstance(server_conn, HTTP1ServerConnection)  # noqa: S101 - the only kind that HTTPServer makes
        if self._answers_once:
            if server_conn in self._served:
                server_conn.stream.close()
            self._served.add(server_conn)
            self._announce_end(server_conn, request_conn)
        self._deadlines[server_conn] = time.monotonic() + self._limits.idle
        return _Watched(delegate, self, server_conn)

    def on_close(self, server_conn: object) -> None:
        """A connection has ended."""
        super().on_close(server_conn)
        if isinstance(server_conn, HTTP1ServerConnection):
            self._deadlines.pop(server_conn, None)

    def _announce_end(self, server_conn: HTTP1ServerConnection, request_conn: httputil.HTTPConnection) -> None:
        """Lets an answer say that it is the last one, and end in time, unless another protocol begins with it."""
        write_headers = request_conn.write_headers

        def announcing(
            start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
            headers: httputil.HTTPHeaders,
            chunk: bytes | None = None,
        ) -> asyncio.Future[None]:
            if int(start_line[1]) != HTTPStatus.SWITCHING_PROTOCOLS:
                headers["Connection"] = "close"
                self._deadlines[server_conn] = time.monotonic() + self._limits.write
            return write_headers(start_line, headers, chunk)

        request_conn.write_headers = announcing  # type: ignore[method-assign] # each request has one of its own

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in [each for each, deadline in self._deadlines.items() if deadline < now]:
            del self._deadlines[connection]
            connection.stream.close()


class _Watched(httputil.HTTPMessageDelegate):
    """Passes a request on, and keeps note of until when the rest of it must have come, and of who sent it."""

    __slots__ = ("_connection", "_deadlines", "_delegate", "_server")

    def __init__(
        self, delegate: httputil.HTTPMessageDelegate, server: TornadoServer, connection: HTTP1ServerConnection
    ) -> None:
        self._delegate = delegate
        self._server = server
        self._deadlines = server._deadlines
        self._connection = connection

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        """The head has come."""
        self._deadlines[self._connection] = time.monotonic() + self._server._limits.body
        self._tell_origin(headers)
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """More of the body has come."""
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        """All of it has come."""
        self._deadlines.pop(self._connection, None)
        self._delegate.finish()

    def on_connection_close(self) -> None:
        """The client has gone."""
        self._deadlines.pop(self._connection, None)
        self._delegate.on_connection_close()

    def _tell_origin(self, headers: httputil.HTTPHeaders) -> None:
        # One object for all requests of the connection, so each request begins with what is true of the connection:
        # of a stream that stands in for one under TLS, Tornado itself sees neither the address nor the protocol.
        context: Any = self._connection.context
        peer = str(context.address[0])
        own = "http" if self._server.ssl_options is None else "https"
        context.remote_ip, context.protocol = self._server._options.proxies.origin(peer, own, headers)


def _through(options: Options, serve: Accepted) -> Accepted:
    """Where accepted connections go: to the entrance, or past it."""
    entrance = options.entrance
    if entrance is None or options.tls is not None:
        return serve
    if not options.proxies:
        return lambda connection, address: entrance.knock(connection, address, serve)
    trusts = options.proxies.trusts

    def sort(connection: socket.socket, address: Any) -> None:
        if trusts(address[0]):
            serve(connection, address)
        else:
            entrance.knock(connection, address, serve)

    return sort


def _loop() -> asyncio.AbstractEventLoop:
    """The loop that runs, or will: sockets may be added before it does, as with Tornado's servers."""
    loop: asyncio.AbstractEventLoop = IOLoop.current().asyncio_loop  # type: ignore[attr-defined]
    return loop
