"""From a request's head and body to the `JsonHandler` that answers it, in place of Tornado's way.

Tornado looks through all routes by regular expressions, makes much of a request that nobody asks for, and takes
handlers that want to see their body early through steps of their own. Most requests here are small POSTs to fixed
paths.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tornado import web
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.routing import URLSpec

from handlers.http import MAX_BODY, MAX_DISCARDED, JsonHandler
from http1.exchange import Exchange
from http1.headers import CheckedHeaders

# A route for one path, and perhaps the same with a slash at its end.
_FIXED = re.compile(r"(/[\w/-]+?)(/\?)?\$?", re.ASCII)
# Hosts beyond this are looked at each time: whoever sends long ones shall not fill the memory with them.
_USUAL_LENGTH = 128
# Of lengths: Python refuses to make numbers of thousands.
_MOST_DIGITS = 100

_Place = tuple[type[JsonHandler], Mapping[str, Any]]


class JsonApplication(web.Application):
    """Tornado's application, which serves its `JsonHandler`s by `_Delivery`, and finds those of fixed paths at once."""

    def __init__(self, routes: Sequence[URLSpec], **settings: Any) -> None:
        super().__init__(list(routes), **settings)
        self.fixed = dict(_fixed(routes))

    def place(self, line: RequestStartLine, headers: HTTPHeaders) -> _Place | None:
        """Who serves a request of a fixed path; None: Tornado's routes tell, or that it lacks its host."""
        return self.fixed.get(line.path) if "Host" in headers or line.version == "HTTP/1.0" else None

    def take(self, exchange: Exchange, line: RequestStartLine, headers: CheckedHeaders, body: bytes) -> bool:
        """Serves a request that is there as a whole, if its path is fixed; who need not wait answers at once."""
        place = self.place(line, headers)
        if place is None or len(body) > MAX_BODY:
            return False
        kind, given = place
        request = _Request(exchange, line, headers)
        request.body = body
        handler = kind(self, request, **given)
        if (answering := handler.begin(())) is not None:
            # What it waits for keeps the task.
            asyncio.get_running_loop().create_task(handler.end(answering))
        return True

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Whoever takes the request: its head tells who that is."""
        return _Arrival(self, server_conn, request_conn)

    def route(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Whoever takes a request that goes by Tornado's routes."""
        return super().start_request(server_conn, request_conn)

    def get_handler_delegate(  # type: ignore[override] # Tornado's type is private to it
        self,
        request: HTTPServerRequest,
        target_class: type[web.RequestHandler],
        target_kwargs: dict[str, Any] | None = None,
        path_args: list[bytes] | None = None,
        path_kwargs: dict[str, bytes] | None = None,
    ) -> HTTPMessageDelegate:
        """Whoever gives the request to a handler; no route of a `JsonHandler` names its groups."""
        if issubclass(target_class, JsonHandler):
            return _Delivery(self, request, (target_class, target_kwargs or {}), path_args or ())
        return super().get_handler_delegate(request, target_class, target_kwargs, path_args, path_kwargs)


def _fixed(routes: Iterable[URLSpec]) -> Iterable[tuple[str, _Place]]:
    """The places of fixed paths, which go before patterns; of two routes for one path the first."""
    found: dict[str, _Place] = {}
    for route in routes:
        if (path := _FIXED.fullmatch(route.regex.pattern)) and issubclass(route.handler_class, JsonHandler):
            for end in ("", "/") if path[2] else ("",):
                found.setdefault(path[1] + end, (route.handler_class, route.kwargs or {}))
    return found.items()


class _Request(HTTPServerRequest):
    """A request without a query, of which only that is made which our handlers ask for."""

    def __init__(self, connection: HTTPConnection, start_line: RequestStartLine, headers: HTTPHeaders) -> None:
        self.method, self.uri, self.version = start_line
        self.path, self.query = self.uri, ""
        self.headers = headers
        # Whoever makes one has seen that there is a host, or need not be one.
        self.host = headers.get("Host", "127.0.0.1")
        self.host_name = host_name(self.host)
        self.body = b""
        self.connection = connection
        context: Any = getattr(connection, "context", None)
        self.remote_ip, self.protocol = context.remote_ip, context.protocol
        self.arguments, self.query_arguments, self.body_arguments = {}, {}, {}
        self._began = time.monotonic()

    def request_time(self) -> float:
        """The seconds since its head came."""
        return time.monotonic() - self._began


def host_name(host: str) -> str:
    """The name in a Host header; raises `HTTPInputError` for what is none, as Tornado sees it."""
    return _usual_host_name(host) if len(host) <= _USUAL_LENGTH else _host_name(host)


def _host_name(host: str) -> str:
    line = RequestStartLine("GET", "/", "HTTP/1.1")
    return HTTPServerRequest(start_line=line, headers=HTTPHeaders({"Host": host})).host_name


_usual_host_name = lru_cache(256)(_host_name)


class _Arrival(HTTPMessageDelegate):
    """Takes a request's head, and passes the rest on to whom it concerns."""

    __slots__ = ("_application", "_connection", "_delegate", "_server")

    def __init__(self, application: JsonApplication, server: object, connection: HTTPConnection) -> None:
        self._application = application
        self._server = server
        self._connection = connection
        self._delegate: HTTPMessageDelegate | None = None

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Finds the place of the path."""
        assert isinstance(start_line, RequestStartLine)  # noqa: S101 - servers get no other
        application = self._application
        place = application.place(start_line, headers)
        if place is None:
            self._delegate = application.route(self._server, self._connection)
        else:
            self._delegate = _Delivery(application, _Request(self._connection, start_line, headers), place, ())
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Passes it on."""
        assert self._delegate is not None  # noqa: S101 - the head comes first
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        """Passes it on."""
        assert self._delegate is not None  # noqa: S101 - the head comes first
        self._delegate.finish()

    def on_connection_close(self) -> None:
        """Passes it on."""
        if self._delegate is not None:
            self._delegate.on_connection_close()


class _Delivery(HTTPMessageDelegate):
    """Gathers a request's body as far as it is small enough, and gives all of it to a handler.

    A body that is not much too large is read to its end, so that its sender reads the answer; beyond that it is
    refused before its end, and before its beginning if it says so itself.
    """

    __slots__ = ("_application", "_arguments", "_body", "_is_refused", "_place", "_received", "_request")

    def __init__(
        self, application: web.Application, request: HTTPServerRequest, place: _Place, arguments: Sequence[bytes]
    ) -> None:
        self._application = application
        self._request = request
        self._place = place
        self._arguments = arguments
        self._body: bytes | bytearray = b""
        self._received = 0
        self._is_refused = False

    def headers_received(
        self,
        start_line: RequestStartLine | ResponseStartLine,  # noqa: ARG002 - the request has it
        headers: HTTPHeaders,
    ) -> Awaitable[None] | None:
        """The head has come."""
        length = headers.get("Content-Length", "0")
        if length.isdecimal() and (len(length) > _MOST_DIGITS or int(length) > MAX_DISCARDED):
            self._refuse()
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """More of the body has come."""
        self._received += len(chunk)
        if self._received <= MAX_BODY:
            self._body = self._body + chunk if self._body else chunk
        elif self._received > MAX_DISCARDED and not self._is_refused:
            self._refuse()
        return None

    def finish(self) -> None:
        """All of it has come."""
        if not self._is_refused:
            handler = self._handler()
            self._request.body = bytes(self._body)
            handler.is_too_large = self._received > MAX_BODY
            # What it waits for keeps the task.
            asyncio.get_running_loop().create_task(handler.serve(self._arguments))

    def on_connection_close(self) -> None:
        """The client has gone before its request was whole, so nobody is to answer it."""

    def _handler(self) -> JsonHandler:
        kind, given = self._place
        return kind(self._application, self._request, **given)

    def _refuse(self) -> None:
        self._is_refused = True
        self._handler().refuse_body()
