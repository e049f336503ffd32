"""The HTTP server: Tornado's, with one shared look at the clock in place of two timers for each request.

Tornado guards every request by a timer for its headers and one for its body, which costs a small request a fifth of its
time. Here the server notes when it began to wait for a client, and looks through the notes every few seconds.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable
from typing import Any

from tornado import httputil
from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.ioloop import PeriodicCallback
from tornado.web import Application

from realtime.door import Door

# Seconds that a connection may be idle, or take to send a request's headers; and that a body may take.
IDLE_SECONDS = 120.0
BODY_SECONDS = 20.0
_LOOK_EVERY = 5.0


def make_server(application: Application, door: Door | None = None) -> HTTPServer:
    """The HTTP server for the application, with its limits in time; those in size are kept by the handlers.

    Connections come to it through the door, if there is one. Tornado's own limit of a body's size would answer without
    a word, and by 400.
    """
    return _Server(application, door=door, max_body_size=1 << 62)


class _Server(HTTPServer):
    """Closes connections whose clients keep it waiting."""

    def initialize(self, *args: Any, door: Door | None = None, **kwargs: Any) -> None:
        """Sets up as Tornado does, without its timers."""
        super().initialize(*args, **kwargs)
        self._door = door
        self.conn_params.header_timeout = None
        self._deadlines: dict[HTTP1ServerConnection, float] = {}
        self._sweeper = PeriodicCallback(self._sweep, _LOOK_EVERY * 1000)

    def add_sockets(self, sockets: Any) -> None:
        super().add_sockets(sockets)
        self._sweeper.start()

    def stop(self) -> None:
        super().stop()
        self._sweeper.stop()
        if self._door is not None:
            self._door.close()

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        # What is under TLS, nobody can look at from outside.
        if self._door is None or self.ssl_options is not None:
            super()._handle_connection(connection, address)
        else:
            self._door.knock(connection, address, super()._handle_connection)

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        delegate = super().start_request(server_conn, request_conn)
        assert isinstance(server_conn, HTTP1ServerConnection)  # noqa: S101 - the only kind that HTTPServer makes
        self._deadlines[server_conn] = time.monotonic() + IDLE_SECONDS
        return _Awaited(delegate, self._deadlines, server_conn)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        if isinstance(server_conn, HTTP1ServerConnection):
            self._deadlines.pop(server_conn, None)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in [each for each, deadline in self._deadlines.items() if deadline < now]:
            del self._deadlines[connection]
            connection.stream.close()


class _Awaited(httputil.HTTPMessageDelegate):
    """Passes a request on, and keeps note of until when the rest of it must have come."""

    __slots__ = ("_connection", "_deadlines", "_delegate")

    def __init__(
        self,
        delegate: httputil.HTTPMessageDelegate,
        deadlines: dict[HTTP1ServerConnection, float],
        connection: HTTP1ServerConnection,
    ) -> None:
        self._delegate = delegate
        self._deadlines = deadlines
        self._connection = connection

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        self._deadlines[self._connection] = time.monotonic() + BODY_SECONDS
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._deadlines.pop(self._connection, None)
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._deadlines.pop(self._connection, None)
        self._delegate.on_connection_close()
