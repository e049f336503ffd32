"""The Engine.IO server: its sessions, their heartbeats and their ends, apart from how requests reach it.

One timer serves all sessions: everybody is given the same times, so deadlines come in the order in which they were
set, and the engine only ever waits for the first of them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from realtime import websocket
from realtime.engineio import (
    CLOSE,
    NOOP,
    PING,
    POLLING,
    PROBE,
    PROBE_ANSWER,
    UPGRADE,
    WEBSOCKET,
    Deadlines,
    Heartbeat,
    Packet,
    ProtocolError,
    Received,
    encode_payload,
    open_packet,
    receive,
)
from realtime.hub import Hub, Outlet, Parcel
from realtime.links import Link
from realtime.websocket import Control, FrameParser, Message, Opcode, WebSocketError

# Seconds that an upgrade may take, and that a client may take to see that its connection was closed.
UPGRADE_SECONDS = 10.0
LINGER_SECONDS = 1.5
# Seconds that a client has to poll once more when the server closes.
POLL_AGAIN_SECONDS = 1.0
# Packets in the answer to one poll: python-engineio refuses more, and its connection with them.
PACKETS_A_POLL = 16
# Deadlines that come within this time, in seconds, are dealt with together; it is less where heartbeats are fast.
_GRANULARITY = 0.02
_HEARTBEAT_SHARE = 0.01

_PING = Parcel([PING])


@dataclass(frozen=True)
class Limits:
    """What every client is told or held to: times in seconds, sizes in bytes."""

    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    max_payload: int = 1_000_000
    max_backlog: int = 1 << 20


@dataclass
class Statistics:
    """Counts since the start: `closed` by reason."""

    opened: int = 0
    closed: Counter[str] = field(default_factory=Counter)


class WebSocketOutlet(Outlet):
    """The part of a connection that reads WebSocket messages from its link; a session's or a probe's."""

    __slots__ = ("_parser", "engine")

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self._parser: FrameParser | None = None

    def read_from(self, link: Link, parser: FrameParser) -> None:
        """Takes over a link from here on."""
        self.link = link
        self._parser = parser
        self.go_direct()
        link.start_reading(self.bytes_received)

    def bytes_received(self, data: bytes) -> None:
        """Parses and handles what came; nothing is the end."""
        if not data:
            self.given_up("transport close")
            return
        if self._parser is not None:
            try:
                messages = self._parser.feed(data)
            except WebSocketError as error:
                self.say_goodbye("parse error", error.reply)
            else:
                self.messages_received(messages)

    def messages_received(self, messages: list[Message]) -> None:
        """Handles messages in order, until one ends the connection or hands it over."""
        try:
            for index, message in enumerate(messages):
                if self._parser is None:
                    self.messages_left(messages[index:])
                    return
                if isinstance(message, Control):
                    self._control(message)
                else:
                    self.packet_received(message)
        except ProtocolError:
            self.say_goodbye("parse error", websocket.close_frame(websocket.POLICY))

    def messages_left(self, messages: list[Message]) -> None:
        """Messages that came together with the one that ended the connection: nobody reads them."""

    def _control(self, message: Control) -> None:
        if message.opcode == Opcode.PING:
            self.engine.hub.send(self, Parcel((), frames=websocket.frame(Opcode.PONG, message.payload)))
        elif message.opcode == Opcode.CLOSE:
            self.say_goodbye("transport close", websocket.frame(Opcode.CLOSE, message.payload[:2]))

    def say_goodbye(self, reason: str, last_words: bytes) -> None:
        """Sends a close frame, and closes once the client has seen it."""
        raise NotImplementedError

    def packet_received(self, packet: Packet) -> None:
        """Handles a packet; raises `ProtocolError`."""
        raise NotImplementedError


class Session(WebSocketOutlet):
    """One Engine.IO session: a client, whichever transport carries it now.

    It ends in one of three ways: `close` says goodbye, so that what was sent still arrives; `end` drops everything at
    once; `given_up` is how the hub asks for that. However it ends, the application hears of it once, by the reason.
    """

    __slots__ = ("_poll", "_probe", "_resumed", "address", "application", "closed", "is_paused", "is_posting", "sid")

    def __init__(self, engine: Engine, sid: str, address: str) -> None:
        super().__init__(engine)
        self.sid = sid
        self.address = address
        # What the application keeps with the session.
        self.application: Any = None
        self.closed: str | None = None
        self.is_paused = False
        # Whether a request with packets is under way: there may be one at a time.
        self.is_posting = False
        self._resumed: asyncio.Future[None] | None = None
        self._poll: asyncio.Future[str] | None = None
        self._probe: Probe | None = None

    @property
    def transport(self) -> str:
        """The transport that carries the session now."""
        return POLLING if self.link is None else WEBSOCKET

    @property
    def is_awaited(self) -> bool:
        """Whether something waits for the client's next poll, or for the application to let it go."""
        return bool(self.held) or (self.link is None and bool(self.packets) and self._poll is None)

    def send(self, parcel: Parcel) -> None:
        """Sends, at the end of this turn of the loop; nothing happens once the session is closed."""
        if self.closed is None:
            self.engine.hub.send(self, parcel)

    def packet_received(self, packet: Packet) -> None:
        """Handles a packet of the session's own transport; raises `ProtocolError`."""
        kind, content = receive(packet)
        if kind is Received.MESSAGE:
            self.engine.on_message(self, content)
        elif kind is Received.PONG:
            self.engine.heartbeat.answered(self, self.engine.now())
        elif kind is Received.CLOSE:
            self.close("transport close", with_noop=True)

    def close(self, reason: str, *, with_noop: bool = False, code: int = websocket.NORMAL) -> None:
        """Ends the session: what was sent still goes; a waiting poll is answered, a WebSocket gets a close frame.

        A poll's answer ends with a close packet, or with a noop if the client asked for the end or is to come back.
        """
        if self.link is None:
            self.engine.hub.flush()
            if self.closed is None and self._poll is not None:
                self.packets[PACKETS_A_POLL - 1 :] = [NOOP if with_noop else CLOSE]
                self._answer_poll()
            self.end(reason)
        else:
            self.say_goodbye(reason, websocket.close_frame(code))

    def say_goodbye(self, reason: str, last_words: bytes) -> None:
        if self.closed is None and self.link is not None:
            self.send(Parcel((), frames=last_words))
            self._end(reason)
            self.engine.linger(self)

    def given_up(self, reason: str) -> None:
        """Ends the session at once: nothing more can or should reach the client."""
        self.end(reason)

    def end(self, reason: str) -> None:
        """Ends the session, and drops what still waits."""
        if self.closed is None:
            self._end(reason)
        # Again for one that lingered: now it is over.
        self.engine.forget(self)
        self._release_poll()

    def _end(self, reason: str) -> None:
        self.closed = reason
        self._parser = None
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.given_up(reason)
        self.resume()
        self.engine.ended(self, reason)

    def settle(self) -> None:
        super().settle()
        if self.closed is not None and self.link is not None:
            # The last words have gone.
            self.link.end()

    def bytes_received(self, data: bytes) -> None:
        if self.closed is None or not data:
            super().bytes_received(data)

    # Back-pressure: an application that does not keep up lets its clients wait.

    def pause(self) -> None:
        """Takes nothing more from the client until `resume`."""
        if not self.is_paused and self.closed is None:
            self.is_paused = True
            if self.link is not None:
                self.link.stop_reading()

    def resume(self) -> None:
        """Goes on after a `pause`."""
        if self.is_paused:
            self.is_paused = False
            if self.link is not None:
                self.link.start_reading(self.bytes_received)
            if self._resumed is not None:
                self._resumed.set_result(None)
                self._resumed = None

    async def resumed(self) -> None:
        """Returns when nothing keeps the client from sending more."""
        if self.is_paused:
            self._resumed = self._resumed or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._resumed)

    # Polling

    def poll(self) -> asyncio.Future[str]:
        """The body of the answer to a poll, once there is one; a second poll at a time closes the session.

        Raises `ProtocolError` to the second; its session is closed then, and the first poll told.
        """
        if self._poll is not None:
            self.close("transport error")
            raise ProtocolError("a session polls by one request at a time")
        if self.closed is not None:
            raise ProtocolError("the session has ended")
        self.engine.hub.flush()
        poll: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._poll = poll
        if self._probe is not None and not self.packets:
            # The client upgrades, and waits for its poll to end.
            self.packets.append(NOOP)
        self.parcels_wait()
        return poll

    def poll_abandoned(self) -> None:
        """The client went away from a request: what it held, or was to get, is lost, so the session must end."""
        self._poll = None
        self.end("transport error")

    def payload_received(self, packets: list[Packet]) -> None:
        """Handles the packets of a POST; raises `ProtocolError` once a bad one has closed the session."""
        try:
            for packet in packets:
                if self.closed is not None:
                    return
                self.packet_received(packet)
        except ProtocolError:
            self.close("parse error")
            raise

    def parcels_wait(self) -> None:
        if self._poll is not None and self.packets:
            self._answer_poll()

    def _answer_poll(self) -> None:
        packets, self.packets = self.packets[:PACKETS_A_POLL], self.packets[PACKETS_A_POLL:]
        poll, self._poll = self._poll, None
        self.took(self.waiting - sum(map(len, self.packets)))
        if poll is not None and not poll.done():
            poll.set_result(encode_payload(packets))

    def _release_poll(self) -> None:
        poll, self._poll = self._poll, None
        if poll is not None and not poll.done():
            poll.set_result(CLOSE)

    # The upgrade from polling

    def probe_begins(self, probe: Probe) -> bool:
        """Whether the session can be upgraded by this probe: it polls, and no other one is on its way."""
        if self.link is not None or self._probe is not None or self.closed is not None:
            return False
        self._probe = probe
        return True

    def probed(self) -> None:
        """The client has seen that the new transport works; a waiting poll is ended, since it waits for that."""
        if self._poll is not None and not self.packets:
            self.packets.append(NOOP)
        self.parcels_wait()

    def probe_failed(self, probe: Probe) -> None:
        """The upgrade comes to nothing; the session goes on polling."""
        if self._probe is probe:
            self._probe = None

    def upgrade(self, link: Link, parser: FrameParser) -> None:
        """Goes on by WebSocket, first with what waited for the next poll."""
        self.engine.hub.flush()
        if self.closed is not None:
            # By this flush. The link is in no array yet.
            link.close()
            return
        self._probe = None
        self.probed()
        waiting, self.packets = self.packets, []
        self.took(self.waiting)
        self.read_from(link, parser)
        if waiting:
            self.send(Parcel(waiting))
            self.engine.hub.flush()
        if self.is_paused:
            link.stop_reading()


class Probe(WebSocketOutlet):
    """A WebSocket that wants to take over a polling session, until it does or gives up."""

    __slots__ = ("_session",)

    def __init__(self, engine: Engine, session: Session) -> None:
        super().__init__(engine)
        self._session = session

    def packet_received(self, packet: Packet) -> None:
        if packet == PROBE:
            self.engine.hub.send(self, Parcel([PROBE_ANSWER]))
            self.engine.hub.flush()
            self._session.probed()
        elif packet == UPGRADE:
            self._hand_over()
        else:
            raise ProtocolError("a probe sends its ping and the upgrade only")

    def messages_left(self, messages: list[Message]) -> None:
        # What came together with the upgrade is the session's.
        self._session.messages_received(messages)

    def _hand_over(self) -> None:
        if self.backlog is not None:
            # What waits here, and the watch over its descriptor, would outlive the probe.
            raise ProtocolError("a probe's client takes what it is sent before it upgrades")
        link, parser = self.link, self._parser
        self.link, self._parser = None, None
        self.go_direct()
        self.engine.forget(self)
        if link is not None and parser is not None:
            link.stop_reading()
            self._session.upgrade(link, parser)

    def say_goodbye(self, reason: str, last_words: bytes) -> None:
        self.engine.hub.send(self, Parcel((), frames=last_words))
        self.given_up(reason)

    def given_up(self, reason: str) -> None:  # noqa: ARG002 - a probe's end has no other consequence
        self._parser = None
        self._session.probe_failed(self)
        self.engine.forget(self)


class Engine:
    """All sessions of one server. `on_open`, `on_message` and `on_close` are the application's; none may raise.

    Session ids begin with `prefix`, by which servers beside each other can tell whose they are.
    """

    def __init__(
        self,
        limits: Limits,
        on_open: Callable[[Session], None],
        on_message: Callable[[Session, Packet], None],
        on_close: Callable[[Session, str], None],
        prefix: str = "",
    ) -> None:
        self.limits = limits
        self._prefix = prefix
        self.hub = Hub(limits.max_backlog)
        self.statistics = Statistics()
        self.sessions: dict[str, Session] = {}
        self.heartbeat: Heartbeat[Session] = Heartbeat(limits.ping_interval, limits.ping_timeout)
        self.on_open = on_open
        self.on_message = on_message
        self.on_close = on_close
        self.is_closing = False
        self._probes: Deadlines[Probe] = Deadlines(UPGRADE_SECONDS)
        self._lingering: Deadlines[Session] = Deadlines(LINGER_SECONDS)
        self._granularity = min(_GRANULARITY, limits.ping_interval * _HEARTBEAT_SHARE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """The loop's clock, in seconds."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop.time()

    def open_polling(self, address: str) -> Session:
        """A new session that polls; its first poll gets the handshake."""
        session = self._open(address)
        self.hub.send(session, self._handshake(session, [WEBSOCKET]))
        self.on_open(session)
        return session

    def open_websocket(self, link: Link, address: str, early: bytes) -> Session:
        """A new session by WebSocket; `early` is what its client sent before it knew that it is open."""
        session = self._open(address)
        session.read_from(link, FrameParser(self.limits.max_payload))
        self.hub.send(session, self._handshake(session, []))
        self.hub.flush()
        self.on_open(session)
        if early:
            session.bytes_received(early)
        return session

    def open_probe(self, session: Session, link: Link, early: bytes) -> None:
        """A WebSocket of a session that polls; one that cannot be upgraded closes it."""
        probe = Probe(self, session)
        probe.read_from(link, FrameParser(self.limits.max_payload))
        if not session.probe_begins(probe):
            probe.say_goodbye("no upgrade", websocket.close_frame(websocket.POLICY))
            return
        self._probes.set(probe, self.now())
        self._schedule()
        if early:
            probe.bytes_received(early)

    def session(self, sid: str) -> Session | None:
        """The session of this id, if its client has answered in time."""
        session = self.sessions.get(sid)
        # A client's clock may be ahead of ours by what a request takes.
        if session is not None and self.heartbeat.overdue(session, self.now() + self._granularity):
            session.end("ping timeout")
            return None
        return session

    def _open(self, address: str) -> Session:
        session = Session(self, self._prefix + secrets.token_urlsafe(15), address)
        self.sessions[session.sid] = session
        self.statistics.opened += 1
        self.heartbeat.opened(session, self.now())
        self._schedule()
        return session

    def _handshake(self, session: Session, upgrades: list[str]) -> Parcel:
        limits = self.limits
        packet = open_packet(session.sid, upgrades, limits.ping_interval, limits.ping_timeout, limits.max_payload)
        return Parcel([packet])

    def ended(self, session: Session, reason: str) -> None:
        """A session has ended: nobody finds it any more."""
        del self.sessions[session.sid]
        self.statistics.closed[reason] += 1
        self.heartbeat.closed(session)
        self.on_close(session, reason)

    def linger(self, session: Session) -> None:
        """Keeps the socket of a session that has ended open until its client has seen the close frame, but not long.

        To close it at once, with something unread in it, would make the system throw away what was just sent.
        """
        self.hub.flush()
        for room in list(session.rooms):
            self.hub.leave(session, room)
        if session.link is None:
            return
        if not session.waiting:
            session.link.end()
        self._lingering.set(session, self.now())
        self._schedule()

    def forget(self, outlet: Outlet) -> None:
        """Closes an outlet's socket and drops what waits for it."""
        if isinstance(outlet, Probe):
            self._probes.discard(outlet)
        elif isinstance(outlet, Session):
            self._lingering.discard(outlet)
        self.hub.drop(outlet)

    async def close(self) -> None:
        """Ends all sessions and their transports; refuses new ones."""
        self.is_closing = True
        await self.polled()
        for session in list(self.sessions.values()):
            # Not by a close packet: after one, python-engineio does not come back.
            session.close("server shutting down", with_noop=True, code=websocket.GOING_AWAY)
        await self._until(lambda: not len(self._lingering), LINGER_SECONDS + 0.5)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def polled(self) -> None:
        """Returns when what was sent is under way to those who poll and those who are held, or after a moment."""
        self.hub.flush()
        # A client between two polls is about to come, and who is held is about to be let go.
        await self._until(lambda: not any(session.is_awaited for session in self.sessions.values()), POLL_AGAIN_SECONDS)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = self.now() + seconds
        while not condition() and self.now() < deadline:  # noqa: ASYNC110 - many things can make it true
            await asyncio.sleep(self._granularity)

    def _schedule(self) -> None:
        """Sees to it that the clock is looked at when the first deadline comes."""
        moments = (self.heartbeat.next, self._probes.next, self._lingering.next)
        first = min((moment for moment in moments if moment is not None), default=None)
        if first is None:
            return
        moment = max(first, self.now()) + self._granularity
        if self._timer is not None:
            if self._timer.when() <= moment:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(moment, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.now()
        to_ping, overdue = self.heartbeat.due(now)
        for session in to_ping:
            session.send(_PING)
        for session in overdue:
            session.end("ping timeout")
        for probe in self._probes.due(now):
            probe.say_goodbye("upgrade timeout", websocket.close_frame(websocket.POLICY))
        for session in self._lingering.due(now):
            session.end(session.closed or "")
        self._schedule()
