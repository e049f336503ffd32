"""A Socket.IO server: `Server`, its namespaces, and the sockets of their clients. This is what applications use.

    server = Server()
    chat = server.namespace("/")

    @chat.on_connect
    async def connect(socket, auth):
        if auth.get("key") != "open sesame":
            raise Refuse("wrong key")
        socket.join("everybody")

    @chat.on_event("say")
    def say(socket, text):
        chat.emit("said", text, room="everybody", skip=socket)
        return "heard"  # what the client's acknowledgement gets

    application = tornado.web.Application(server.routes("/socket.io/"))

A socket's handlers run one after the other, in the order in which its client sent: an asynchronous one is waited for
before the next begins. A client that sends faster than its handlers work is made to wait.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import structlog
from tornado.routing import URLSpec

from realtime import socketio
from realtime.door import Door
from realtime.engine import Engine, Limits, Session
from realtime.engineio import Deadlines
from realtime.engineio import Packet as EnginePacket
from realtime.hub import Parcel, Room
from realtime.socketio import MAIN, RESERVED_EVENTS, Decoder, Packet, PacketError, PacketType
from realtime.transport import routes

# A client whose events wait in this number is not listened to until half of them are handled.
MAX_WAITING_EVENTS = 16
ACK_SECONDS = 10.0

_log = structlog.get_logger(__name__)


class Refuse(Exception):
    """Raised by a connect handler: the client gets CONNECT_ERROR with this message and, if given, data."""

    def __init__(self, message: str, data: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data


class Disconnected(Exception):
    """The socket's connection ended before the client acknowledged."""


class OnConnect(Protocol):
    """Lets a socket in, or raises `Refuse`; `auth` is the client's CONNECT payload, an empty dict without one."""

    def __call__(self, socket: Socket, auth: dict[str, Any], /) -> Awaitable[None] | None:
        """Called once for a socket, before anything else."""


class OnEvent(Protocol):
    """Handles an event. What it returns is the acknowledgement: a tuple its arguments, None no argument, else one."""

    def __call__(self, socket: Socket, /, *arguments: Any) -> Any:
        """Called with the event's arguments, bytes among them where the client sent such."""


class OnDisconnect(Protocol):
    """Hears that a socket has ended, once, and why."""

    def __call__(self, socket: Socket, reason: str, /) -> Awaitable[None] | None:
        """Called after the socket has left its rooms."""


C = TypeVar("C", bound=OnConnect)
E = TypeVar("E", bound=OnEvent)
D = TypeVar("D", bound=OnDisconnect)


class Server:
    """A Socket.IO server. Times are in seconds, sizes in bytes.

    `max_payload` bounds a message of a client, `max_backlog` what waits for one that does not read: more ends its
    connection. `connect_timeout` is how long a connection may be in no namespace. Web pages of `cors_origin` ("*"
    for any) may connect, without it those of the same origin only. Session ids begin with `session_prefix`.
    """

    def __init__(
        self,
        *,
        ping_interval: float = 25.0,
        ping_timeout: float = 20.0,
        max_payload: int = 1_000_000,
        max_backlog: int = 1 << 20,
        connect_timeout: float = 45.0,
        cors_origin: str | None = None,
        session_prefix: str = "",
    ) -> None:
        limits = Limits(ping_interval, ping_timeout, max_payload, max_backlog)
        self._engine = Engine(limits, self._opened, self._message, self._closed, session_prefix)
        self._namespaces: dict[str, Namespace] = {}
        self._cors_origin = cors_origin
        self._connecting: Deadlines[Session] = Deadlines(connect_timeout)
        self._connect_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def namespace(self, name: str = MAIN) -> Namespace:
        """The namespace of this name, made if need be. Clients can only connect to those that were made."""
        if not name.startswith("/") or "," in name:
            raise ValueError(f"a namespace begins with / and holds no comma, unlike {name!r}")
        if name not in self._namespaces:
            self._namespaces[name] = Namespace(self, name)
        return self._namespaces[name]

    def routes(self, path: str = "/socket.io/") -> list[URLSpec]:
        """The routes for a Tornado application."""
        return routes(path, self._engine, self._cors_origin)

    def door(self, path: str = "/socket.io/") -> Door:
        """A short way in for WebSockets, past the HTTP server, which needs the routes all the same."""
        return Door(self._engine, path)

    @property
    def statistics(self) -> dict[str, Any]:
        """What the server has done: open connections, opened ones, closed ones by reason, deliveries, their bytes."""
        counts, delivered = self._engine.statistics, self._engine.hub.delivered
        return {
            "open": len(self._engine.sessions),
            "opened": counts.opened,
            "closed": dict(counts.closed),
            "delivered": delivered.parcels,
            "delivered_bytes": delivered.bytes,
        }

    async def polled(self) -> None:
        """Returns when what was sent is under way to those who poll and those who are held, or after a moment."""
        await self._engine.polled()

    async def close(self) -> None:
        """Closes all connections, without Socket.IO's DISCONNECT, so that clients come back by themselves."""
        await self._engine.close()
        if self._connect_timer is not None:
            self._connect_timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What the engine calls

    def _opened(self, session: Session) -> None:
        session.application = _Connection(self, session)
        self._connecting.set(session, self._engine.now())
        self._watch_connecting()

    def _message(self, session: Session, message: EnginePacket) -> None:
        session.application.received(message)

    def _closed(self, session: Session, reason: str) -> None:
        self._connecting.discard(session)
        if reason == "backlog":
            _log.warning("a connection was closed: its client does not keep up", sid=session.sid, reason=reason)
        connection, session.application = session.application, None
        connection.ended(reason)

    def _watch_connecting(self) -> None:
        if self._connect_timer is None and (moment := self._connecting.next) is not None:
            self._connect_timer = asyncio.get_running_loop().call_at(moment, self._refuse_idle)

    def _refuse_idle(self) -> None:
        self._connect_timer = None
        for session in self._connecting.due(self._engine.now()):
            session.close("connect timeout")
        self._watch_connecting()

    # What connections and sockets call

    def _entered(self, session: Session) -> None:
        self._connecting.discard(session)

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Namespace:
    """A part of a server with handlers, rooms and sockets of its own."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self._server = server
        self._connect: OnConnect | None = None
        self._events: dict[str, OnEvent] = {}
        self._disconnect: OnDisconnect | None = None
        # The members of each room; None is the room of all. Those that recover get other parcels: with offsets.
        self._rooms: dict[str | None, Room] = {}
        self._recoverable: dict[str | None, Room] = {}

    def on_connect(self, handler: C) -> C:
        """Registers what lets sockets in; without it everybody is let in."""
        self._connect = handler
        return handler

    def on_event(self, name: str) -> Callable[[E], E]:
        """Registers what handles the events of a name."""
        _check_event(name)

        def register(handler: E) -> E:
            self._events[name] = handler
            return handler

        return register

    def on_disconnect(self, handler: D) -> D:
        """Registers what hears of the end of sockets that were let in."""
        self._disconnect = handler
        return handler

    def emit(
        self,
        event: str,
        *arguments: Any,
        room: str | None = None,
        skip: Socket | None = None,
        offset: int | None = None,
        is_logged: bool = True,
    ) -> None:
        """Sends an event to all sockets of a room, or of the namespace, but `skip`. It is encoded once.

        `offset` is the event's place in the application's log: sockets that are `recoverable` get it as last argument.
        One that is not `is_logged` does not stand there itself, so that a socket that is held gets it in any case.
        """
        _check_event(event)
        to_skip = None if skip is None else skip._session
        plain, recoverable = self._rooms.get(room), self._recoverable.get(room)
        hub = self._server._engine.hub
        place = offset if is_logged else None
        if plain is not None:
            hub.publish(plain, self._parcel(event, arguments, place), to_skip)
        if recoverable is not None:
            marked = arguments if offset is None else (*arguments, str(offset))
            hub.publish(recoverable, self._parcel(event, marked, place), to_skip)

    def has_listeners(self, room: str | None = None) -> bool:
        """Whether anybody would get what is emitted to a room."""
        return room in self._rooms or room in self._recoverable

    def sockets(self, room: str | None = None) -> list[Socket]:
        """The sockets in a room, or all."""
        rooms = (self._rooms.get(room), self._recoverable.get(room))
        members = [member for each in rooms if each is not None for member in each.members]
        found = (member.application.sockets.get(self.name) for member in members if isinstance(member, Session))
        return [socket for socket in found if socket is not None]

    def _parcel(self, event: str, arguments: Sequence[Any], offset: int | None) -> Parcel:
        return _parcel(PacketType.EVENT, self.name, [event, *arguments], offset=offset)

    def _join(self, socket: Socket, name: str | None) -> None:
        hub = self._server._engine.hub
        # It may find that the socket has died, or the last member of the room.
        hub.flush()
        if not socket.is_open:
            return
        rooms = self._recoverable if socket.is_recoverable else self._rooms
        room = rooms.get(name)
        if room is None:
            room = rooms[name] = Room()
        hub.join(socket._session, room)

    def _leave(self, socket: Socket, name: str | None) -> None:
        self._server._engine.hub.flush()
        rooms = self._recoverable if socket.is_recoverable else self._rooms
        room = rooms.get(name)
        if room is not None:
            self._server._engine.hub.leave(socket._session, room)
            if not room.members:
                del rooms[name]


class Socket:
    """A client in a namespace.

    `sid` is its public id, `address` the client's network address, `data` what the application keeps with it. A
    socket whose `is_recoverable` was set by the connect handler gets offsets with events, and its `pid` in the reply
    to its CONNECT.
    """

    __slots__ = (
        "_ack_number",
        "_acks",
        "_early",
        "_has_ended",
        "_inbox",
        "_is_holding",
        "_rooms",
        "_session",
        "connected",
        "data",
        "is_recoverable",
        "is_working",
        "namespace",
        "pid",
        "sid",
    )

    def __init__(self, namespace: Namespace, session: Session) -> None:
        self.namespace = namespace
        self.sid = secrets.token_urlsafe(15)
        self.data: Any = None
        self.pid: str | None = None
        self.is_recoverable = False
        self.connected = False
        self._session = session
        self._rooms: dict[str | None, None] = {}
        # What is emitted before the client is let in waits here.
        self._early: list[Parcel] | None = []
        self._inbox: deque[Packet] | None = None
        self.is_working = False
        self._is_holding = False
        self._has_ended = False
        self._acks: dict[int, asyncio.Future[list[Any]]] | None = None
        self._ack_number = 0

    @property
    def address(self) -> str:
        """The client's network address."""
        return self._session.address

    @property
    def rooms(self) -> set[str]:
        """The names of the rooms that the socket is in."""
        return {name for name in self._rooms if name is not None}

    def emit(self, event: str, *arguments: Any, offset: int | None = None) -> None:
        """Sends an event to this client; `offset` as in `Namespace.emit`."""
        _check_event(event)
        self._send(self._event(event, arguments, offset))

    def replay(self, event: str, *arguments: Any, offset: int | None = None) -> None:
        """Sends an event even before the client was let in, as recovery wants it: what was missed comes first."""
        _check_event(event)
        if not self._has_ended:
            self._session.send(self._event(event, arguments, offset))

    async def call(self, event: str, *arguments: Any, timeout: float = ACK_SECONDS) -> list[Any]:  # noqa: ASYNC109
        """Sends an event and returns what the client acknowledges it with.

        Raises `TimeoutError` if it does not within `timeout` seconds, and `Disconnected` if the connection ends.
        """
        _check_event(event)
        if self._has_ended:
            raise Disconnected("the client is gone")
        self._ack_number += 1
        number = self._ack_number
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        acks = self._acks = self._acks or {}
        acks[number] = future
        try:
            self._send(self._packet(PacketType.EVENT, [event, *arguments], number))
            async with asyncio.timeout(timeout):
                return await future
        finally:
            acks.pop(number, None)

    def join(self, room: str) -> None:
        """Enters a room; nothing happens once the client is gone.

        A client that is not let in yet gets nothing of its rooms before that, unless they are held for it.
        """
        if not self._has_ended and room not in self._rooms:
            self._rooms[room] = None
            if self._early is None or self._is_holding:
                self.namespace._join(self, room)

    def leave(self, room: str) -> None:
        """Leaves a room."""
        if room in self._rooms:
            del self._rooms[room]
            self.namespace._leave(self, room)

    def disconnect(self, *, close: bool = False) -> None:
        """Takes the client out of the namespace, by Socket.IO's DISCONNECT; `close` ends its whole connection."""
        connection = self._session.application
        if connection is not None:
            if self.connected:
                self._session.send(self._packet(PacketType.DISCONNECT))
            connection.leave(self, "server namespace disconnect")
            if close:
                self._session.close("forced close")

    def accept(self) -> None:
        """Lets the client in now, where a connect handler has more to do after that; else its end does it."""
        if self._early is None or self._has_ended:
            return
        self.connected = True
        self._rooms[None] = None
        reply = {"sid": self.sid} if self.pid is None else {"sid": self.sid, "pid": self.pid}
        self._session.send(self._packet(PacketType.CONNECT, reply))
        early, self._early = self._early, None
        for parcel in early:
            self._session.send(parcel)
        for room in self._rooms:
            self.namespace._join(self, room)

    def close(self) -> None:
        """Ends the client's whole connection, without DISCONNECT: it comes back by itself."""
        self._session.close("forced close", with_noop=True)

    def hold(self) -> None:
        """Keeps back what is emitted to rooms, until `release`; what is sent to this client alone still goes."""
        if not self._has_ended:
            self._is_holding = True
            self._session.engine.hub.hold(self._session)

    def release(self, after: int) -> None:
        """Lets what was kept back go, without what has an offset up to `after`."""
        if self._is_holding:
            self._is_holding = False
            if self._session.closed is None:
                self._session.engine.hub.release(self._session, after)

    async def drained(self) -> None:
        """Returns when the client has taken all that was sent, or is gone."""
        self._session.engine.hub.flush()
        await self._session.drained()

    @property
    def is_held(self) -> bool:
        """Whether there was a `hold` and no `release` yet."""
        return self._is_holding

    @property
    def is_open(self) -> bool:
        """Whether the client is still there, let in or about to be."""
        return not self._has_ended

    # What its connection calls

    def received(self, packet: Packet) -> None:
        """Handles a packet of the client, after those before it."""
        if packet.type == PacketType.ACK:
            future = (self._acks or {}).get(packet.ack_id or 0)
            if future is not None and not future.done():
                future.set_result(packet.data)
        elif self.is_working:
            self._inbox = self._inbox or deque()
            self._inbox.append(packet)
            if len(self._inbox) >= MAX_WAITING_EVENTS:
                self._session.pause()
        else:
            self._handle(packet)

    def ended(self, reason: str) -> None:
        """Leaves everything; the application hears of it if it had let the socket in."""
        self._has_ended = True
        rooms, self._rooms = list(self._rooms), {}
        for room in rooms:
            self.namespace._leave(self, room)
        # Nobody wants any more what was kept back for it; others of the connection are not to wait for their own.
        self.release(sys.maxsize)
        self._inbox, self._early = None, None
        for future in (self._acks or {}).values():
            if not future.done():
                future.set_exception(Disconnected(reason))
        if self.connected:
            self.connected = False
            handler = self.namespace._disconnect
            if handler is not None:
                self._start(lambda: handler(self, reason))

    def let_in(self, auth: dict[str, Any]) -> None:
        """Asks the connect handler; the client gets CONNECT or CONNECT_ERROR."""
        handler = self.namespace._connect
        self._work(lambda: None if handler is None else handler(self, auth), self._accepted, self._refused)

    def _accepted(self, _: object) -> None:
        self.accept()

    def _refused(self, error: Exception) -> None:
        if isinstance(error, Refuse):
            told = {"message": error.message} | ({} if error.data is None else {"data": error.data})
        else:
            _log.error("a connect handler failed", namespace=self.namespace.name, exc_info=error)
            told = {"message": "Internal error"}
        if not self.connected:
            self._session.send(self._packet(PacketType.CONNECT_ERROR, told))
        if self._session.application is not None:
            self._session.application.leave(self, "refused")

    def _handle(self, packet: Packet) -> None:
        name, *arguments = packet.data
        handler = self.namespace._events.get(str(name))
        if handler is None:
            return
        ack_id = packet.ack_id

        def answer(result: object) -> None:
            if ack_id is not None:
                self._send(self._packet(PacketType.ACK, _ack_arguments(result), ack_id))

        def complain(error: Exception) -> None:
            _log.error("an event handler failed", event_name=name, namespace=self.namespace.name, exc_info=error)

        self._work(lambda: handler(self, *arguments), answer, complain)

    def _work(
        self, call: Callable[[], Any], then: Callable[[Any], None], otherwise: Callable[[Exception], None]
    ) -> None:
        """Runs a handler; one that waits is waited for by a task, and what comes meanwhile by the inbox."""
        try:
            result = call()
            if inspect.isawaitable(result):
                self.is_working = True
                self.namespace._server._run(self._finish(result, then, otherwise))
            else:
                then(result)
        except Exception as error:  # noqa: BLE001 - `otherwise` tells of it
            otherwise(error)

    async def _finish(
        self, awaitable: Awaitable[Any], then: Callable[[Any], None], otherwise: Callable[[Exception], None]
    ) -> None:
        try:
            then(await awaitable)
        except Exception as error:  # noqa: BLE001 - `otherwise` tells of it
            otherwise(error)
        self.is_working = False
        if self._has_ended and self._session.application is not None:
            self._session.application.finished(self)
        while self._inbox and not self.is_working:
            packet = self._inbox.popleft()
            if len(self._inbox) <= MAX_WAITING_EVENTS // 2:
                self._session.resume()
            self._handle(packet)

    def _start(self, call: Callable[[], Awaitable[None] | None]) -> None:
        """Runs a handler that nobody waits for."""

        def complain(error: Exception) -> None:
            _log.error("a disconnect handler failed", namespace=self.namespace.name, exc_info=error)

        self._work(call, lambda _: None, complain)

    def _event(self, event: str, arguments: Sequence[Any], offset: int | None) -> Parcel:
        marked = (*arguments, str(offset)) if self.is_recoverable and offset is not None else arguments
        return self.namespace._parcel(event, marked, offset)

    def _packet(self, kind: PacketType, data: object = None, ack_id: int | None = None) -> Parcel:
        return _parcel(kind, self.namespace.name, data, ack_id)

    def _send(self, parcel: Parcel) -> None:
        if self._early is not None:
            self._early.append(parcel)
        elif self.connected:
            self._session.send(parcel)


class _Connection:
    """The sockets of one Engine.IO session, and the decoder of what it sends."""

    __slots__ = ("_decoder", "_late", "_left", "_server", "_session", "sockets")

    def __init__(self, server: Server, session: Session) -> None:
        self._server = server
        self._session = session
        self._decoder = Decoder()
        self.sockets: dict[str, Socket] = {}
        # Namespaces that the client left or was put out of: what it sent before it knew is no fault.
        self._left: set[str] | None = None
        # Sockets that left while a handler of theirs was at work: a client could start any number of handlers by them.
        self._late: set[Socket] | None = None

    def received(self, message: EnginePacket) -> None:
        """Decodes a message and passes its packet to the socket that it is for."""
        try:
            packet = self._decoder.feed(message)
            if packet is not None:
                self._dispatch(packet)
        except PacketError:
            self._session.close("parse error")

    def _dispatch(self, packet: Packet) -> None:
        socket = self.sockets.get(packet.namespace)
        if packet.type == PacketType.CONNECT and socket is None:
            self._connect(packet)
        elif packet.type == PacketType.DISCONNECT and socket is not None:
            self.leave(socket, "client namespace disconnect")
        elif packet.type in (PacketType.EVENT, PacketType.ACK) and socket is not None:
            socket.received(packet)
        elif packet.type == PacketType.CONNECT or packet.namespace not in (self._left or ()):
            raise PacketError("a packet that does not belong here")

    def _connect(self, packet: Packet) -> None:
        namespace = self._server._namespaces.get(packet.namespace)
        if namespace is None:
            error = {"message": "Invalid namespace"}
            self._session.send(_parcel(PacketType.CONNECT_ERROR, packet.namespace, error))
            return
        self._server._entered(self._session)
        socket = self.sockets[namespace.name] = Socket(namespace, self._session)
        socket.let_in(packet.data or {})

    def leave(self, socket: Socket, reason: str) -> None:
        """Ends one socket; a connection that is in no namespace any more has to enter one again in time."""
        name = socket.namespace.name
        if self.sockets.get(name) is socket:
            del self.sockets[name]
            self._left = {*(self._left or ()), name}
            if socket.is_working:
                self._late = self._late or set()
                self._late.add(socket)
                if len(self._late) >= MAX_WAITING_EVENTS:
                    self._session.pause()
            socket.ended(reason)
            if not self.sockets and self._session.closed is None:
                self._server._connecting.set(self._session, self._server._engine.now())
                self._server._watch_connecting()

    def finished(self, socket: Socket) -> None:
        """The handler of a socket that has left is done."""
        late = self._late or set()
        late.discard(socket)
        if len(late) <= MAX_WAITING_EVENTS // 2:
            self._session.resume()

    def ended(self, reason: str) -> None:
        """Ends all sockets, since the session has ended."""
        sockets, self.sockets = self.sockets, {}
        for socket in sockets.values():
            socket.ended(reason)


def _parcel(
    kind: PacketType, namespace: str, data: object = None, ack_id: int | None = None, offset: int | None = None
) -> Parcel:
    return Parcel.of_message(*socketio.encode_bytes(kind, namespace, data, ack_id), offset)


def _check_event(name: str) -> None:
    if name in RESERVED_EVENTS:
        raise ValueError(f"{name!r} is an event of Socket.IO itself")


def _ack_arguments(result: object) -> list[Any]:
    if result is None:
        return []
    return list(result) if isinstance(result, tuple) else [result]
