"""How Engine.IO comes over HTTP: Tornado's handler for polling, and for the upgrade to WebSocket.

A WebSocket's socket is taken over from Tornado once the upgrade is answered, so that the hub can write to many at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from tornado import web
from tornado.iostream import IOStream, SSLIOStream
from tornado.routing import URLSpec

from realtime.engine import Engine, Session
from realtime.engineio import (
    POLLING,
    WEBSOCKET,
    HandshakeRefused,
    ProtocolError,
    check_handshake,
    check_transport,
    decode_payload,
)
from realtime.links import Link, SocketLink, StreamLink
from realtime.websocket import VERSION, is_key, switching

# A request may hold half a million packets: after so many of them others have their turn.
_STEP = 64


def routes(path: str, engine: Engine, cors_origin: str | None) -> list[URLSpec]:
    """Tornado's routes for an engine at a path, which works with and without its trailing slash."""
    return [URLSpec(path.rstrip("/") + "/?", EngineHandler, {"engine": engine, "cors_origin": cors_origin})]


@web.stream_request_body
class EngineHandler(web.RequestHandler):
    """GET polls, POST sends, and a GET that asks for it becomes a WebSocket.

    Bodies arrive in pieces: Tornado by itself would answer one that is too large without a word.
    """

    # Whoever may ask for it from a web page of another origin; None: nobody.
    cors_origin: str | None = None
    engine: Engine

    def initialize(self, engine: Engine, cors_origin: str | None) -> None:
        """Takes what the route hands in."""
        self.engine = engine
        self.cors_origin = cors_origin
        self._body = bytearray()
        self._session: Session | None = None
        self._poll: asyncio.Future[str] | None = None
        # Tornado has asked for them once already, before it was known what they are.
        self.set_default_headers()

    def set_default_headers(self) -> None:
        """Every answer is fresh, and tells web pages of other origins whether they may read it."""
        self.clear_header("Server")
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        if self.cors_origin is not None:
            self.set_header("Access-Control-Allow-Origin", self.cors_origin)

    def compute_etag(self) -> str | None:
        """None: no two answers are the same."""
        return None

    def check_etag_header(self) -> bool:
        """No answer is conditional."""
        return False

    def prepare(self) -> None:
        """Finds the session and refuses what cannot be served, before the body is read."""
        if self.request.method == "OPTIONS" and self.cors_origin is not None:
            return
        try:
            self._check()
        except HandshakeRefused as refusal:
            self._refuse(refusal)

    def _check(self) -> None:
        query = {name: values[-1].decode("latin-1") for name, values in self.request.query_arguments.items()}
        transport = check_transport(query)
        method = str(self.request.method)
        sid = query.get("sid")
        if not sid:
            check_handshake(query, method, is_upgrade=self._is_upgrade())
            if self.engine.is_closing:
                raise HandshakeRefused(HandshakeRefused.FORBIDDEN)
            return
        self._session = self.engine.session(sid)
        if self._session is None:
            raise HandshakeRefused(HandshakeRefused.UNKNOWN_SID)
        if method not in ("GET", "POST") or (transport == WEBSOCKET) != (method == "GET" and self._is_upgrade()):
            raise HandshakeRefused(HandshakeRefused.BAD_REQUEST)
        if transport == POLLING and self._session.transport != POLLING:
            raise HandshakeRefused(HandshakeRefused.BAD_REQUEST)
        if method == "POST":
            self._begin_post(self._session)
        elif transport == POLLING:
            # At once, in the order in which requests came: the next one may already end the session.
            self._begin_poll(self._session)

    def _begin_poll(self, session: Session) -> None:
        try:
            self._poll = session.poll()
        except ProtocolError:
            raise HandshakeRefused(HandshakeRefused.BAD_REQUEST) from None

    def _begin_post(self, session: Session) -> None:
        if session.is_posting or "octet-stream" in self.request.headers.get("Content-Type", ""):
            session.close("transport error")
            raise HandshakeRefused(HandshakeRefused.BAD_REQUEST)
        length = self.request.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length) > self.engine.limits.max_payload:
            self._refuse_body()
            return
        session.is_posting = True

    def _is_upgrade(self) -> bool:
        headers = self.request.headers
        return headers.get("Upgrade", "").lower() == "websocket" and "upgrade" in headers.get("Connection", "").lower()

    def _refuse(self, refusal: HandshakeRefused) -> None:
        self.set_status(refusal.status)
        self.set_header("Content-Type", "application/json")
        # A body that nobody reads must not be taken for the next request.
        self.set_header("Connection", "close")
        self.finish(refusal.body)

    def _refuse_body(self) -> None:
        self.set_status(413)
        self.set_header("Connection", "close")
        self.finish()

    def data_received(self, chunk: bytes) -> None:
        """Gathers the body, up to the limit."""
        # A poll has no body that anybody looks at.
        if self._finished or self.request.method != "POST":
            return
        self._body += chunk
        if len(self._body) > self.engine.limits.max_payload:
            self._body.clear()
            self._refuse_body()

    def options(self) -> None:
        """The question of a web page of another origin whether it may ask."""
        self.set_status(204)
        self.clear_header("Content-Type")
        self.set_header("Access-Control-Allow-Methods", "GET,POST")
        self.set_header("Access-Control-Max-Age", "86400")
        wanted = self.request.headers.get("Access-Control-Request-Headers")
        if wanted is not None:
            self.set_header("Access-Control-Allow-Headers", wanted)
            self.set_header("Vary", "Access-Control-Request-Headers")
        self.finish()

    async def get(self) -> None:
        """A poll, or the beginning of a WebSocket."""
        if self._is_upgrade():
            self._upgrade()
            return
        if self._session is None:
            self._session = self.engine.open_polling(str(self.request.remote_ip))
            self._begin_poll(self._session)
        if self._has_gone():
            self.on_connection_close()
        elif self._poll is not None:
            payload = await self._poll
            self._poll = None
            self.finish(payload)

    async def post(self) -> None:
        """Packets of the client."""
        session = self._session
        if session is None or self._finished:
            return
        try:
            packets = decode_payload(self._body.decode())
            for start in range(0, len(packets), _STEP):
                session.payload_received(packets[start : start + _STEP])
                # Who sends more than the application handles waits for the answer, and sends nothing more until then.
                await session.resumed()
                await asyncio.sleep(0)
        except (ProtocolError, UnicodeDecodeError):
            session.close("parse error")
            self.set_status(400)
            self.finish()
            return
        self.set_header("Content-Type", "text/html")
        self.finish("ok")

    def on_finish(self) -> None:
        """The answer was sent."""
        self._post_ended()

    def _has_gone(self) -> bool:
        """Whether the client went as soon as it had asked: Tornado tells of one that goes later only."""
        stream = getattr(self.request.connection, "stream", None)
        return stream is not None and bool(stream.closed())

    def on_connection_close(self) -> None:
        """The client went away before the answer."""
        self._post_ended()
        if self._session is None:
            return
        if self._poll is not None:
            self._session.poll_abandoned()
        elif self.request.method == "POST":
            self._session.end("transport error")

    def _post_ended(self) -> None:
        if self._session is not None and self.request.method == "POST":
            self._session.is_posting = False

    def _upgrade(self) -> None:
        """Answers the opening handshake (RFC 6455, section 4.2) and takes the socket over."""
        headers = self.request.headers
        key = headers.get("Sec-WebSocket-Key", "")
        if headers.get("Sec-WebSocket-Version") != VERSION or not is_key(key):
            self.set_header("Sec-WebSocket-Version", VERSION)
            self._refuse(HandshakeRefused(HandshakeRefused.BAD_REQUEST))
            return
        address = str(self.request.remote_ip)
        link, early = _taken_over(self.detach(), switching(key))
        if self._session is None:
            self.engine.open_websocket(link, address, early)
        else:
            self.engine.open_probe(self._session, link, early)


def _taken_over(stream: IOStream, answer: bytes) -> tuple[Link, bytes]:
    """The stream's socket as a link, after the answer was sent on it; and what the client sent too early."""
    stream.set_nodelay(True)
    if isinstance(stream, SSLIOStream):
        stream.write(answer).add_done_callback(lambda future: future.exception())
        return StreamLink(stream), b""
    # Tornado has no public way to what it has read already; a test sends a frame together with the request.
    early = bytes(stream._read_buffer)
    descriptor = os.dup(stream.socket.fileno())
    stream.close()
    link = SocketLink(descriptor)
    # Nothing was written to the socket before, so it takes as little as this at once; if it is broken, reading tells.
    with contextlib.suppress(OSError):
        os.write(descriptor, answer)
    return link, early
