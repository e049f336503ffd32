"""One request and its answer, as `tornado.httputil.HTTPConnection`, which is what handlers write to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPOutputError, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError

from http1.parser import Head

_NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_LENGTH = re.compile("[0-9]+")


class Carrier(Protocol):
    """What answers need of the connection that carries them."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can be written any more."""

    @property
    def is_last(self) -> bool:
        """Whether the answer at hand is to be the last one."""

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Writes to the client; the future is done when it takes more."""

    def answered(self) -> None:
        """The answer is whole."""

    def unanswerable(self) -> None:
        """The handler has ended without an answer."""

    def abort(self) -> None:
        """Ends the connection now."""

    def detach(self) -> IOStream:
        """Gives the connection away."""


class RequestContext:
    """Where a request comes from: what Tornado looks for in a connection's `context`."""

    __slots__ = ("protocol", "remote_ip")

    def __init__(self, remote_ip: str, protocol: str) -> None:
        self.remote_ip = remote_ip
        self.protocol = protocol

    def __str__(self) -> str:
        return self.remote_ip


class Exchange(HTTPConnection):
    """The answer to one request, written to a connection that is shared by many, one after the other.

    `stream` is there for those who ask Tornado's connections whether they are closed.
    """

    def __init__(self, connection: Carrier, head: Head, context: RequestContext) -> None:
        self.context = context
        self.stream = connection
        self.close_callback: Callable[[], None] | None = None
        self.is_read = head.length == 0
        self.is_begun = False
        self.is_answered = False
        self.keeps_alive = head.keeps_alive
        self._connection = connection
        method, _, version = head.line
        self._is_modern = version == "HTTP/1.1"
        self.is_head = self._has_no_body = method == "HEAD"
        self._is_chunked = False
        self._missing: int | None = None  # bytes of the announced length that were not written yet

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        """Writes the head of the answer, in one piece with the beginning of its body.

        The future is done when the client takes more; it fails with `StreamClosedError` if there is none any more.
        Raises `ValueError` for headers that would be more than they seem.
        """
        if self._connection.is_over:
            return _closed()
        self._frame(int(start_line[1]), headers)
        data = _head(start_line, headers)
        self.is_begun = True
        return self._connection.write(data + self._framed(chunk) if chunk else data)

    def answer(self, head: bytes, body: bytes) -> asyncio.Future[None]:
        """Writes a whole answer, which has a body; as `write_headers` and `finish`, in a third of their time.

        `head` is the status line and the fields, each with the end of its line and known to be good, without those that
        are the connection's business: Content-Length and Connection.
        """
        connection = self._connection
        if connection.is_over:
            return _closed()
        fields = b"Content-Length: %d\r\n" % len(body)
        self.keeps_alive = self.keeps_alive and self.is_read and not connection.is_last
        if not self.keeps_alive:
            fields += b"Connection: close\r\n"
        elif not self._is_modern:
            fields += b"Connection: keep-alive\r\n"
        self.is_begun = self.is_answered = True
        written = connection.write(b"%b%b\r\n%b" % (head, fields, b"" if self.is_head else body))
        connection.answered()
        return written

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Writes more of the body; as `write_headers`."""
        if self._connection.is_over:
            return _closed()
        if chunk and not self.is_begun:
            raise HTTPOutputError("the answer has no head")
        return self._connection.write(self._framed(chunk))

    def finish(self) -> None:
        """Says that the answer is whole; raises `HTTPOutputError` if it is shorter than announced."""
        if self._connection.is_over or self.is_answered:
            return
        if not self.is_begun:
            self._connection.unanswerable()
            raise HTTPOutputError("the answer has no head")
        if self._missing:
            self._connection.abort()
            raise HTTPOutputError(f"{self._missing} bytes less were written than Content-Length says")
        if self._is_chunked:
            self._connection.write(b"0\r\n\r\n")
        self.is_answered = True
        self._connection.answered()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Calls back when the client goes away before it has the answer."""
        self.close_callback = callback

    def detach(self) -> IOStream:
        """Gives the connection away, with what was read of it and not used; no more HTTP is spoken on it."""
        return self._connection.detach()

    def _frame(self, code: int, headers: HTTPHeaders) -> None:
        """Decides how the answer's end will be known (RFC 9112, section 6.3), and what becomes of the connection."""
        self._has_no_body |= code in _NO_BODY or code < HTTPStatus.OK
        length = headers.get("Content-Length")
        if self._has_no_body:
            self._missing = 0
        elif length is not None:
            if not _LENGTH.fullmatch(length):
                raise ValueError(f"Content-Length must be a number, not {length!r}")
            self._missing = int(length)
        elif self._is_modern:
            self._is_chunked = True
            headers["Transfer-Encoding"] = "chunked"
        else:
            self.keeps_alive = False
        # A client whose body is not read to its end would have the rest of it taken for a request.
        closes = not self.is_read or self._connection.is_last or headers.get("Connection", "").lower() == "close"
        self.keeps_alive = self.keeps_alive and not closes
        if not self.keeps_alive:
            headers["Connection"] = "close"
        elif not self._is_modern:
            headers["Connection"] = "keep-alive"

    def _framed(self, chunk: bytes) -> bytes:
        if self._missing is not None:
            if self._has_no_body:
                return b""
            self._missing -= len(chunk)
            if self._missing < 0:
                self._connection.abort()
                raise HTTPOutputError("more bytes were written than Content-Length says")
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._is_chunked and chunk else chunk


def _head(start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> bytes:
    lines = [f"HTTP/1.1 {start_line[1]} {start_line[2]}"]
    lines += [f"{name}: {value}" for name, value in headers.get_all()]
    text = "\r\n".join(lines)
    if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1:
        raise ValueError("a header holds a line's end")
    return text.encode("latin-1") + b"\r\n\r\n"


def _closed() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(StreamClosedError())
    future.exception()  # nobody needs to look at it
    return future
