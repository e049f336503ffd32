"""Engine.IO 4 without I/O: packets, polling payloads, the handshake, and the heartbeat's deadlines.

A packet on the wire, and in this module, is text whose first character is its type, or bytes:

    0{"sid":…}   open       4hello   message of text
    1            close      bytes    message of bytes; in a polling payload "b" and its base64
    2            ping       5        upgrade
    3            pong       6        noop

Source: the Engine.IO protocol, version 4 (https://socket.io/docs/v4/engine-io-protocol/).
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from enum import Enum, auto
from typing import Generic, TypeVar
from urllib.parse import parse_qsl

import msgspec

PROTOCOL = "4"
SEPARATOR = "\x1e"

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = "0123456"
PROBE = PING + "probe"
PROBE_ANSWER = PONG + "probe"

POLLING = "polling"
WEBSOCKET = "websocket"

Packet = str | bytes


class ProtocolError(Exception):
    """The peer broke the protocol: its connection is to be closed."""


class HandshakeRefused(Exception):
    """A request cannot be served; `status` and `body` are the answer, as the reference server gives it."""

    _MESSAGES = (
        "Transport unknown",
        "Session ID unknown",
        "Bad handshake method",
        "Bad request",
        "Forbidden",
        "Unsupported protocol version",
    )
    UNKNOWN_TRANSPORT, UNKNOWN_SID, BAD_METHOD, BAD_REQUEST, FORBIDDEN, UNSUPPORTED_PROTOCOL = range(6)

    def __init__(self, code: int) -> None:
        super().__init__(self._MESSAGES[code])
        self.status = 403 if code == self.FORBIDDEN else 400
        self.body = msgspec.json.encode({"code": code, "message": self._MESSAGES[code]})


class Received(Enum):
    """What a packet of the client means to its session."""

    MESSAGE = auto()
    PONG = auto()
    CLOSE = auto()
    NOTHING = auto()


def check_handshake(query: Mapping[str, str], method: str, *, is_upgrade: bool) -> None:
    """Refuses a request that opens a session in a wrong way; raises `HandshakeRefused`.

    The order of the checks is the reference server's, since it decides which error a client is told.
    """
    transport = check_transport(query)
    if method != "GET":
        raise HandshakeRefused(HandshakeRefused.BAD_METHOD)
    if transport == WEBSOCKET and not is_upgrade:
        raise HandshakeRefused(HandshakeRefused.BAD_REQUEST)
    if query.get("EIO") != PROTOCOL:
        raise HandshakeRefused(HandshakeRefused.UNSUPPORTED_PROTOCOL)


def check_transport(query: Mapping[str, str]) -> str:
    """The transport that a request names; raises `HandshakeRefused`."""
    transport = query.get("transport", "")
    if transport not in (POLLING, WEBSOCKET):
        raise HandshakeRefused(HandshakeRefused.UNKNOWN_TRANSPORT)
    return transport


def session_asked_for(target: str, path: str) -> str | None:
    """The session that a request is about by its target, for an engine at a path; None if it is about none."""
    place, _, query = target.partition("?")
    if place.rstrip("/") != path.rstrip("/"):
        return None
    # As everywhere, the last one counts.
    return dict(parse_qsl(query, keep_blank_values=True)).get("sid") or None


def open_packet(sid: str, upgrades: Sequence[str], ping_interval: float, ping_timeout: float, max_payload: int) -> str:
    """The first packet of a session: what the client must know. Times come in seconds and are told in milliseconds."""
    handshake = {
        "sid": sid,
        "upgrades": upgrades,
        "pingInterval": round(1000 * ping_interval),
        "pingTimeout": round(1000 * ping_timeout),
        "maxPayload": max_payload,
    }
    return OPEN + msgspec.json.encode(handshake).decode()


def receive(packet: Packet) -> tuple[Received, Packet]:
    """What a packet means that came by the session's transport, and a message's content; raises `ProtocolError`."""
    if isinstance(packet, bytes):
        return Received.MESSAGE, packet
    kind = packet[:1]
    if kind == MESSAGE:
        return Received.MESSAGE, packet[1:]
    if kind == PONG:
        return Received.PONG, ""
    if kind == CLOSE:
        return Received.CLOSE, ""
    if kind in (UPGRADE, NOOP) and kind:
        return Received.NOTHING, ""
    # Pings and the handshake are the server's to send.
    raise ProtocolError(f"a client does not send packets of type {kind!r}")


def encode_payload(packets: Sequence[Packet]) -> str:
    """Packets as the body of a polling request or answer."""
    return SEPARATOR.join(
        "b" + base64.b64encode(packet).decode() if isinstance(packet, bytes) else packet for packet in packets
    )


def decode_payload(payload: str) -> list[Packet]:
    """The packets of a polling body; raises `ProtocolError`."""
    return [_decode_part(part) for part in payload.split(SEPARATOR)]


def _decode_part(part: str) -> Packet:
    if not part.startswith("b"):
        return part
    try:
        return base64.b64decode(part[1:], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"a binary packet is not base64: {error}") from None


K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Who must have done something by when, if all are given the same number of seconds.

    Since all get the same time, deadlines come in the order in which they were set: one look at the first tells
    whether any has passed, and nobody needs a timer of his own.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadlines: OrderedDict[K, float] = OrderedDict()

    def set(self, key: K, now: float) -> None:
        """Gives `key` the full time from now on."""
        self._deadlines[key] = now + self._seconds
        self._deadlines.move_to_end(key)

    def discard(self, key: K) -> None:
        """Forgets `key`."""
        self._deadlines.pop(key, None)

    def passed(self, key: K, now: float) -> bool:
        """Whether the deadline of `key` has passed, looked at more closely than by the next `due`."""
        return self._deadlines.get(key, now) < now

    def due(self, now: float) -> dict[K, float]:
        """Those whose deadline has come, and when it did, the first one first; they are forgotten."""
        found: dict[K, float] = {}
        while self._deadlines and next(iter(self._deadlines.values())) <= now:
            key, moment = self._deadlines.popitem(last=False)
            found[key] = moment
        return found

    @property
    def next(self) -> float | None:
        """The first deadline; None if there is none."""
        return next(iter(self._deadlines.values()), None)

    def __len__(self) -> int:
        return len(self._deadlines)


class Heartbeat(Generic[K]):
    """Who is to be pinged when, and whose answer is overdue. Times in seconds by any one clock.

    The server pings `interval` after the opening and after each answer, and gives up `timeout` after a ping.
    """

    def __init__(self, interval: float, timeout: float) -> None:
        self._timeout = timeout
        self._to_ping: Deadlines[K] = Deadlines(interval)
        self._to_answer: Deadlines[K] = Deadlines(timeout)

    def opened(self, key: K, now: float) -> None:
        """A session begins, or its client has answered."""
        self._to_answer.discard(key)
        self._to_ping.set(key, now)

    answered = opened

    def closed(self, key: K) -> None:
        """A session has ended."""
        self._to_ping.discard(key)
        self._to_answer.discard(key)

    def overdue(self, key: K, now: float) -> bool:
        """Whether the session's time to answer has passed."""
        return self._to_answer.passed(key, now)

    def due(self, now: float) -> tuple[list[K], list[K]]:
        """Those to be pinged now, and those that did not answer.

        The time to answer runs from when the ping was due, if it is not late by so much that little would be left: a
        process that was stopped for a while must not end everybody when it goes on.
        """
        overdue = list(self._to_answer.due(now))
        to_ping = self._to_ping.due(now)
        for key, moment in to_ping.items():
            self._to_answer.set(key, max(moment, now - self._timeout / 2))
        return list(to_ping), overdue

    @property
    def next(self) -> float | None:
        """When there will be something to do; None if nobody is there."""
        return min(
            (moment for moment in (self._to_ping.next, self._to_answer.next) if moment is not None), default=None
        )
