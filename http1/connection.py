"""A client's connection: an asyncio protocol that turns bytes into Tornado's requests, one after the other.

Each request goes through the phases in order, and the next one begins when it has gone through all:

    HEAD      waiting for a head, and then for `headers_received`
    PREPARED  the delegate has taken it: now a client that waits for `100 Continue` is told
    BODY      its body goes to the delegate, piece by piece
    READ      the delegate was given everything, `finish` too; the answer is on its way, or will be
    OVER      no more HTTP here: the connection closes, is closed, or belongs to somebody else

One that comes as most do, in one piece and with a head that is remembered, is READ at once if the application takes it.

Invariants: bytes stay in `_rest` until their time has come, so answers cannot overtake each other. Every request ends,
for the delegate, by `finish` or by `on_connection_close`, whatever fails; and every connection ends by a deadline if
not before.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Protocol, cast

import structlog
from tornado.httputil import HTTPInputError, HTTPMessageDelegate, RequestStartLine, format_timestamp
from tornado.iostream import IOStream, StreamClosedError

from http1.exchange import Exchange, RequestContext
from http1.handover import Departures, Moved
from http1.headers import CheckedHeaders
from http1.limits import Limits
from http1.parser import BadRequest, Head, Heads, RequestParser
from http1.streams import TlsTransport, socket_of, taken_from

_log = structlog.get_logger(__name__)


class Phase(Enum):
    """How far a connection's request has come."""

    HEAD = auto()
    PREPARED = auto()
    BODY = auto()
    READ = auto()
    OVER = auto()


Take = Callable[[Exchange, RequestStartLine, CheckedHeaders, bytes], bool]
"""Serves a request that is there as a whole, its body among it; False if it is to come piece by piece."""


class Owner(Protocol):
    """What a connection needs of the server that it belongs to."""

    limits: Limits
    heads: Heads
    is_stopping: bool
    take: Take | None

    @property
    def drained(self) -> asyncio.Future[None]:
        """A future that is done, for all who need not wait."""

    def start_request(self, connection: Connection, exchange: Exchange) -> HTTPMessageDelegate:
        """Whoever is given the request."""

    def context(self, connection: Connection, head: Head) -> RequestContext:
        """Where a request comes from."""

    def elsewhere(self, head: Head) -> Departures | None:
        """The way to the process that the request is for, if it is not for this one."""

    def stand_in(self, stream: IOStream) -> socket.socket:
        """A socket by which another process can serve a stream that cannot go there itself."""

    def upgrades(self, head: Head) -> bool:
        """Whether the request is to be served by somebody who can give the connection away."""

    def upgrade(self, stream: IOStream, address: Any) -> None:
        """Serves a connection whose request asks for another protocol."""

    def error_answer(self, status: int) -> tuple[Mapping[str, str], bytes]:
        """The fields and the body of the answer to what is no request."""

    def watch(self, connection: Connection) -> None:
        """A connection has begun."""

    def hasten(self, connection: Connection) -> None:
        """A connection's deadline may have come closer."""

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""


class Connection(asyncio.Protocol):
    """A connection, served until one of the two sides ends it. `unread` is what was read of it before."""

    def __init__(self, owner: Owner, address: Any, protocol: str, unread: bytes = b"") -> None:
        self.address = address
        self.deadline = math.inf
        self.slot = 0
        self.origin = RequestContext(address[0] if isinstance(address, tuple) else "", protocol)
        self._owner = owner
        self._limits = owner.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = RequestParser(owner.limits, owner.heads)
        self._phase = Phase.HEAD
        self._rest: bytes | bytearray = unread
        self._exchange: Exchange | None = None
        self._delegate: HTTPMessageDelegate | None = None
        self._expects_continue = False
        self._is_advancing = False
        self._is_waiting = False
        self._is_reading = True
        self._reads_ahead = True
        self._writable: asyncio.Future[None] | None = None

    # What the exchange, handlers and the server ask

    @property
    def is_over(self) -> bool:
        """Whether nothing can be written to the client any more."""
        return self._phase is Phase.OVER

    @property
    def is_last(self) -> bool:
        """Whether the answer at hand is to be the last one."""
        return self._owner.is_stopping

    @property
    def socket(self) -> socket.socket | None:
        """The socket, where it has certificates to show (Tornado's `get_ssl_certificate`)."""
        found: socket.socket | None = self._transport.get_extra_info("socket")
        return found

    def closed(self) -> bool:
        """The same as `is_over`, by the name that Tornado's streams have for it."""
        return self.is_over

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Writes to the client; the future is done when it takes more."""
        if data:
            self._transport.write(data)
        if self._writable is None:
            return self._owner.drained
        if self._writable.cancelled():
            # Whoever waited for it has given up, which does not concern the next one.
            self._writable = self._loop.create_future()
        return self._writable

    def answered(self) -> None:
        """The answer to the request at hand is whole."""
        exchange = self._exchange
        if exchange is None:
            return
        if self._phase is Phase.READ:
            self._next(exchange)
            if self._rest or not self._is_reading:
                self._advance()
        elif not exchange.is_read:
            self._give_up(lingers=True)

    def detach(self) -> IOStream:
        """Takes the connection out of this one's hands, during a request."""
        if self._phase is Phase.OVER:
            raise StreamClosedError
        if self._transport.get_write_buffer_size():
            self.abort()  # what waits in the transport cannot be taken along
            raise StreamClosedError
        return taken_from(self._transport, self._leave())

    def unanswerable(self) -> None:
        """The handler has ended without an answer."""
        self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    def close(self) -> None:
        """Ends the connection when what was written is sent, whatever it is doing."""
        self._give_up()

    def abort(self) -> None:
        """Ends the connection now; what was written may be lost."""
        self._transport.abort()
        self._give_up()

    def expired(self) -> None:
        """The client has kept the server waiting for too long."""
        self.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class
        # A stream of Tornado's can only be given away while nobody reads from it.
        self._reads_ahead = not isinstance(transport, TlsTransport)
        self.deadline = self._loop.time() + self._limits.idle
        self._owner.watch(self)
        if self._rest:
            self._loop.call_soon(self._advance)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._phase is Phase.OVER:
            return  # lingering: the client is to read why nobody listens
        if not self._rest:
            if self._phase is Phase.HEAD and self._take(data):
                return
            self._rest = data
        else:
            if isinstance(self._rest, bytes):
                self._rest = bytearray(self._rest)
            self._rest += data
        self._advance()

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        self._writable = self._loop.create_future()
        self._due(self._limits.write)

    def resume_writing(self) -> None:
        """The client has taken it."""
        if (writable := self._take_writable()) is not None:
            writable.set_result(None)
        if self._phase is Phase.HEAD:
            self._due(self._limits.idle)
        elif self._phase is not Phase.OVER:
            self.deadline = math.inf
        self._advance()

    def eof_received(self) -> None:
        """The client sends nothing more: it has gone, or will not get its answer, as with Tornado's own parser."""
        self._due(self._limits.write)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it was lost
        """The connection is gone."""
        self._give_up()
        self._owner.forget(self)

    # Going on

    def _take(self, data: bytes) -> bool:
        """Gives a request to the application at once, if these bytes are a known head, its body and nothing else."""
        owner = self._owner
        if owner.take is None or self._writable is not None or not self._reads_ahead:
            return False
        head = owner.heads.get(data)
        if head is None or head.length is None or head.size + head.length != len(data):
            return False
        if owner.elsewhere(head) is not None:
            return False
        exchange = self._exchange = Exchange(self, head, owner.context(self, head))
        exchange.is_read = True
        self._phase = Phase.READ
        self.deadline = math.inf
        try:
            if owner.take(exchange, head.line, head.headers.copy(), data[head.size :]):
                return True
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection must not hang
            self._failed(error)
            return True
        self._phase, self._exchange = Phase.HEAD, None
        return False

    def _advance(self) -> None:
        """Does what the bytes that are there allow, request after request."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._step():
                pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection must not hang
            self._failed(error)
        self._is_advancing = False
        self._regulate()

    def _failed(self, error: BaseException) -> None:
        """The one place where what fails in a request ends its connection, with an answer if there was none yet."""
        match error:
            case BadRequest(status=status):
                self._refuse(status)
            case HTTPInputError():
                self._refuse(HTTPStatus.BAD_REQUEST)
            case _:
                _log.error("a request could not be passed on", exc_info=error)
                self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _step(self) -> bool:
        """Goes on by one phase or piece; False if there is nothing to do now."""
        if self._is_waiting:
            return False
        match self._phase:
            case Phase.HEAD:
                return bool(self._rest) and self._writable is None and self._begin()
            case Phase.PREPARED:
                return self._prepared()
            case Phase.BODY:
                return self._read_body()
            case _:
                return False

    def _begin(self) -> bool:
        head = self._parser.head(self._rest)
        if head is None:
            self._await_head()
            return False
        if (way := self._owner.elsewhere(head)) is not None:
            self._hand_over(lambda: way.send(self._moved()))
            return False
        if head.upgrade and self._owner.upgrades(head):
            self._hand_over(lambda: self._owner.upgrade(self.detach(), self.address))
            return False
        self._consume(head.size)
        self._start(head)
        return True

    def _start(self, head: Head) -> None:
        exchange = self._exchange = Exchange(self, head, self._owner.context(self, head))
        self._expects_continue = head.length != 0 and head.expects_continue
        self._phase = Phase.PREPARED
        self.deadline = math.inf
        delegate = self._owner.start_request(self, exchange)
        ready = delegate.headers_received(head.line, head.headers.copy())
        # Only who has taken the request is told of its end.
        self._delegate = delegate
        self._wait_for(ready)

    def _prepared(self) -> bool:
        exchange = self._exchange
        assert exchange is not None  # noqa: S101 - there is one in this phase
        if exchange.is_read:
            self._read()
        else:
            self._phase = Phase.BODY
            if self._expects_continue and not exchange.is_begun:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _read_body(self) -> bool:
        assert self._delegate is not None  # noqa: S101 - there is one in this phase
        assert self._exchange is not None  # noqa: S101
        if self._parser.is_complete:
            self._exchange.is_read = True
            self._read()
            return True
        piece, size = self._parser.body(self._rest) if self._rest else (b"", 0)
        if not size:
            if self.deadline == math.inf:
                self._due(self._limits.body)
            return False
        self._consume(size)
        if piece:
            self._wait_for(self._delegate.data_received(piece))
        return True

    def _read(self) -> None:
        """Everything of the request was read."""
        assert self._exchange is not None  # noqa: S101 - there is one in these phases
        self._phase = Phase.READ
        self.deadline = math.inf if self._writable is None else self.deadline
        delegate, exchange = self._delegate, self._exchange
        if exchange.is_answered:
            self._tell_delegate()
            self._next(exchange)
        elif delegate is not None:
            delegate.finish()

    def _next(self, exchange: Exchange) -> None:
        """The request is over."""
        self._exchange = self._delegate = None
        if exchange.keeps_alive and not self._owner.is_stopping:
            self._phase = Phase.HEAD
            self.deadline = self._loop.time() + self._limits.idle
            self._owner.hasten(self)
        else:
            self._give_up(lingers=bool(self._rest))

    def _hand_over(self, give: Callable[[], None]) -> None:
        if self._transport.get_write_buffer_size():
            # Answers before it are still on their way, and what waits in the transport cannot be taken along.
            self._parser = RequestParser(self._limits, self._owner.heads)
            self._transport.set_write_buffer_limits(high=0)
            return
        try:
            give()
        except OSError:
            # No descriptor is left for it, so it is nobody's.
            self._transport.abort()
            raise

    def _moved(self) -> Moved:
        if isinstance(self._transport, TlsTransport):
            return Moved(self._owner.stand_in(self.detach()), self.address, self.origin.protocol, b"")
        unread = self._leave()
        return Moved(socket_of(self._transport), self.address, self.origin.protocol, unread)

    def _leave(self) -> bytes:
        """Ends all HTTP here, but not the connection; returns what was read of it and not looked at."""
        self._phase, self._exchange, self._delegate = Phase.OVER, None, None
        unread, self._rest = bytes(self._rest), b""
        return unread

    # Waiting for delegates

    def _wait_for(self, awaitable: Awaitable[None] | None) -> None:
        if awaitable is None:
            return
        future = asyncio.ensure_future(awaitable)
        if future.done():
            future.result()
            return
        self._is_waiting = True
        future.add_done_callback(self._waited)

    def _waited(self, future: asyncio.Future[None]) -> None:
        self._is_waiting = False
        if self._phase is Phase.OVER:
            if not future.cancelled():
                future.exception()
            self._tell_delegate()
            return
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            self._failed(error)
        self._advance()

    # Reading

    def _consume(self, size: int) -> None:
        if size == len(self._rest):
            self._rest = b""
            return
        if isinstance(self._rest, bytes):
            # Its front can be cut off again and again without moving what follows.
            self._rest = bytearray(self._rest)
        del self._rest[:size]

    def _regulate(self) -> None:
        """Lets what comes wait in the system while more of it is here than can be looked at soon."""
        if self._phase is Phase.OVER:
            return
        if self._reads_ahead:
            reads = len(self._rest) <= self._limits.ahead or (self._phase is Phase.HEAD and self._writable is None)
        else:
            reads = len(self._rest) <= self._limits.ahead and self._phase in (Phase.HEAD, Phase.BODY)
        if reads != self._is_reading:
            self._is_reading = reads
            (self._transport.resume_reading if reads else self._transport.pause_reading)()

    def _await_head(self) -> None:
        if self.deadline > (latest := self._loop.time() + self._limits.head) and self._writable is None:
            self.deadline = latest
            self._owner.hasten(self)

    def _due(self, seconds: float) -> None:
        self.deadline = self._loop.time() + seconds
        self._owner.hasten(self)

    # Ending

    def _refuse(self, status: int) -> None:
        """Answers what went wrong, if nothing was answered yet, and ends the connection."""
        if self._phase is Phase.OVER:
            return
        if self._exchange is not None and self._exchange.is_begun:
            self.abort()
            return
        fields, body = self._owner.error_answer(status)
        own = {"Date": format_timestamp(time.time()), "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**fields, **own}.items()]
        sent = b"" if self._exchange is not None and self._exchange.is_head else body
        self._transport.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + sent)
        self._give_up(lingers=True)

    def _give_up(self, *, lingers: bool = False) -> None:
        """Ends all HTTP here: tells whoever waits for the request or its answer, and closes the connection."""
        if self._phase is Phase.OVER:
            return
        phase, self._phase = self._phase, Phase.OVER
        self._rest = b""
        if (writable := self._take_writable()) is not None:
            writable.set_exception(StreamClosedError())
            writable.exception()  # nobody needs to look at it
        self._end_transport(lingers=lingers)
        exchange, self._exchange = self._exchange, None
        if phase is Phase.READ:
            self._delegate = None
            if exchange is not None and (callback := exchange.close_callback) is not None:
                self._tell(callback)
        elif not self._is_waiting:
            self._tell_delegate()

    def _take_writable(self) -> asyncio.Future[None] | None:
        """What writers wait for, which is over now; None if nobody does, or no more."""
        writable, self._writable = self._writable, None
        return None if writable is None or writable.done() else writable

    def _end_transport(self, *, lingers: bool) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        unsent = transport.get_write_buffer_size() > 0
        if lingers and transport.can_write_eof():
            # To close while something is unread resets the connection, and the client may lose the answer
            # (RFC 9112, section 9.6).
            transport.write_eof()
            transport.resume_reading()
            self._due(self._limits.write if unsent else self._limits.linger)
        else:
            transport.close()
            self._due(self._limits.write)

    def _tell_delegate(self) -> None:
        delegate, self._delegate = self._delegate, None
        if delegate is not None:
            self._tell(delegate.on_connection_close)

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - the others are to be told all the same
            _log.exception("a handler failed when its client had gone")
