"""The gateway (API reference, "Gateway"): sessions, which outlive their connections, and the connections.

`Session` and `Gateway` know no sockets, only `Line`s. Invariants: each event of a session has the next number; the
session keeps it, and sends it if it has a line. So after a resume the client has had every event once and in order,
or it is told to begin anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import zstandard
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from tests.standin.things import JSON
from tests.standin.world import Dispatch, Intents, World


class Op(IntEnum):
    """What a payload is (API reference, "Gateway Opcodes")."""

    DISPATCH = 0
    HEARTBEAT = 1
    IDENTIFY = 2
    PRESENCE_UPDATE = 3
    VOICE_STATE_UPDATE = 4
    RESUME = 6
    RECONNECT = 7
    REQUEST_GUILD_MEMBERS = 8
    INVALID_SESSION = 9
    HELLO = 10
    HEARTBEAT_ACK = 11


class Fatal(Exception):
    """Ends the connection with a code (API reference, "Gateway Close Event Codes")."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Line(Protocol):
    """The way to a client."""

    def send(self, payload: JSON) -> None:
        """Sends a payload; to one who has gone, nothing."""

    def end(self, code: int | None, reason: str = "") -> None:
        """Ends the connection with a code, or without a word (None)."""


@dataclass(eq=False)
class Session:
    """What a client has identified for.

    `resumes` and `heartbeats` count; `ended` sessions cannot be resumed. `line` is None while the client is away.
    """

    id: str
    bot_id: int
    intents: Intents
    shard: tuple[int, int]
    kept: deque[JSON]
    line: Line | None = None
    sequence: int = 0
    resumes: int = 0
    heartbeats: int = 0
    ended: bool = False

    @property
    def connected(self) -> bool:
        """Whether there is a client at it."""
        return self.line is not None

    def deliver(self, name: str, data: JSON) -> None:
        """Gives the session an event."""
        self.sequence += 1
        payload = {"op": Op.DISPATCH, "t": name, "s": self.sequence, "d": self._visible(name, data)}
        self.kept.append(payload)
        if self.line is not None:
            self.line.send(payload)

    def can_resume_from(self, sequence: int) -> bool:
        """Whether all that came after a number is kept."""
        oldest = self.kept[0]["s"] if self.kept else self.sequence + 1
        return not self.ended and oldest <= sequence + 1

    def resume(self, line: Line, sequence: int) -> None:
        """The client is back, and has had everything up to a number."""
        if self.line is not None:
            self.line.end(4000, "Session resumed elsewhere")
        self.line = line
        self.resumes += 1
        for payload in self.kept:
            if payload["s"] > sequence:
                line.send(payload)
        self.deliver("RESUMED", {"_trace": []})

    def cares(self, event: Dispatch) -> bool:
        """Whether an event is of its intents and its shard."""
        number, count = self.shard
        shard = 0 if event.guild_id is None else (event.guild_id >> 22) % count
        return not self.ended and shard == number and event.intent in self.intents

    def _visible(self, name: str, data: JSON) -> JSON:
        """Without the intent for it, others' words in a guild are kept from a bot that they do not mention."""
        if name not in ("MESSAGE_CREATE", "MESSAGE_UPDATE") or "guild_id" not in data:
            return data
        concerned = {data["author"]["id"], *(user["id"] for user in data["mentions"])}
        if Intents.MESSAGE_CONTENT in self.intents or str(self.bot_id) in concerned:
            return data
        return data | {"content": "", "embeds": [], "attachments": [], "components": []}


@dataclass(eq=False)
class Gateway:
    """All sessions. `url()` is where clients resume; `heartbeat` is in seconds; `kept_events` bounds each session."""

    world: World
    token: str
    url: Callable[[], str]
    heartbeat: float
    kept_events: int
    allowed: Intents
    sessions: list[Session] = field(default_factory=list)
    lines: set[Line] = field(default_factory=set)  # open ones, with a session or without

    def dispatch(self, event: Dispatch) -> None:
        """Tells the sessions of an event."""
        for session in self.sessions:
            if session.cares(event):
                session.deliver(event.name, event.data)

    def identify(self, line: Line, data: JSON) -> Session:
        """A new session; raises `Fatal`."""
        self._check_token(data)
        intents = Intents(data["intents"])
        if intents & _PRIVILEGED not in self.allowed:
            raise Fatal(4014, "Disallowed intent(s).")
        number, count = data.get("shard", (0, 1))
        if number >= count:
            raise Fatal(4010, "Invalid shard.")
        session = Session(
            secrets.token_hex(16), self.world.bot.id, intents, (number, count), deque(maxlen=self.kept_events), line
        )
        self.sessions.append(session)
        self._welcome(session)
        return session

    def _welcome(self, session: Session) -> None:
        everywhere = self.world.guilds.values()
        guilds = [guild for guild in everywhere if session.cares(Dispatch("", {}, Intents.NONE, guild.id))]
        session.deliver(
            "READY",
            {
                "v": 10,
                "user": self.world.bot.json() | {"verified": True, "mfa_enabled": False, "email": None, "flags": 0},
                "guilds": [{"id": str(guild.id), "unavailable": True} for guild in guilds],
                "session_id": session.id,
                "session_type": "normal",
                "resume_gateway_url": self.url(),
                "shard": list(session.shard),
                "application": {"id": str(self.world.bot.id), "flags": 1 << 18},
                "private_channels": [],
                "relationships": [],
                "_trace": [],
            },
        )
        if Intents.GUILDS in session.intents:
            for guild in guilds:
                session.deliver("GUILD_CREATE", self.world.guild_json(guild, session.intents))

    def resume(self, line: Line, data: JSON) -> Session | None:
        """The session that a client comes back to; None if it must begin anew. Raises `Fatal`."""
        self._check_token(data)
        for session in self.sessions:
            if session.id == data["session_id"] and session.can_resume_from(data["seq"]):
                session.resume(line, data["seq"])
                return session
        return None

    def _check_token(self, data: JSON) -> None:
        if data.get("token") != self.token:
            raise Fatal(4004, "Authentication failed.")

    def members(self, session: Session, data: JSON) -> None:
        """Answers a request for a guild's members, in one chunk."""
        wanted = {int(user) for user in _as_list(data.get("user_ids"))}
        prefix = data.get("query") or ""
        found = [
            self.world.member_json(user)
            for user in self.world.users.values()
            if (user.id in wanted if wanted else user.username.startswith(prefix))
        ]
        chunk = {"guild_id": str(data["guild_id"]), "chunk_index": 0, "chunk_count": 1, "nonce": data.get("nonce")}
        session.deliver("GUILD_MEMBERS_CHUNK", chunk | {"members": found[: data.get("limit") or None]})

    def forget(self, session: Session) -> None:
        """Nobody can resume it any more."""
        session.ended = True
        session.line = None


_PRIVILEGED = Intents.GUILD_MEMBERS | Intents.GUILD_PRESENCES | Intents.MESSAGE_CONTENT


def _as_list(value: object) -> list[str]:
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


class Plain:
    """No compression: a text for each payload."""

    def __call__(self, text: str) -> str | bytes:
        return text


class ZlibStream:
    """One zlib stream for the connection, flushed after each payload (API reference, "Transport Compression")."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj()

    def __call__(self, text: str) -> str | bytes:
        return self._stream.compress(text.encode()) + self._stream.flush(zlib.Z_SYNC_FLUSH)


class ZstdStream:
    """One zstd stream for the connection, flushed after each payload."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor().compressobj()

    def __call__(self, text: str) -> str | bytes:
        return self._stream.compress(text.encode()) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


COMPRESSIONS: dict[str, Callable[[], Callable[[str], str | bytes]]] = {
    "": Plain,
    "zlib-stream": ZlibStream,
    "zstd-stream": ZstdStream,
}


class Connection(WebSocketHandler):
    """A client's connection; at first nobody's, and a session's once it has identified or resumed."""

    def initialize(self, gateway: Gateway) -> None:
        """Called by Tornado with what the route says."""
        self._gateway = gateway
        self._session: Session | None = None
        self._ended_by_us = False
        self._encode = COMPRESSIONS[self.get_query_argument("compress", "")]()

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Says hello."""
        self._gateway.lines.add(self)
        self.send({"op": Op.HELLO, "d": {"heartbeat_interval": int(self._gateway.heartbeat * 1000), "_trace": []}})

    def on_message(self, message: str | bytes) -> None:
        """Does what the client asks."""
        try:
            self._receive(_parsed(message))
        except Fatal as fatal:
            self.end(fatal.code, fatal.reason)

    def on_close(self) -> None:
        """A client that ends its connection by 1000 or 1001 does not want its session any longer."""
        self._gateway.lines.discard(self)
        session = self._session
        if session is None or session.line is not self:
            return
        session.line = None
        if self.close_code in (1000, 1001) and not self._ended_by_us:
            self._gateway.forget(session)

    def _receive(self, payload: JSON) -> None:
        op: int = payload["op"]
        data: JSON = payload.get("d") or {}
        if op == Op.HEARTBEAT:
            self._beat()
        elif op == Op.IDENTIFY:
            self._identify(data)
        elif op == Op.RESUME:
            self._resume(data)
        elif self._session is None:
            raise Fatal(4003, "Not authenticated.")
        elif op == Op.REQUEST_GUILD_MEMBERS:
            self._gateway.members(self._session, data)
        elif op not in (Op.PRESENCE_UPDATE, Op.VOICE_STATE_UPDATE):
            raise Fatal(4001, "Unknown opcode.")

    def _beat(self) -> None:
        if self._session is not None:
            self._session.heartbeats += 1
        self.send({"op": Op.HEARTBEAT_ACK})

    def _identify(self, data: JSON) -> None:
        if self._session is not None:
            raise Fatal(4005, "Already authenticated.")
        self._session = self._gateway.identify(self, data)

    def _resume(self, data: JSON) -> None:
        self._session = self._gateway.resume(self, data)
        if self._session is None:
            self.send({"op": Op.INVALID_SESSION, "d": False})

    def send(self, payload: JSON) -> None:
        """Sends a payload; a session sends again what did not arrive."""
        text = self._encode(json.dumps(payload))
        with contextlib.suppress(WebSocketClosedError):
            self.write_message(text, binary=isinstance(text, bytes)).add_done_callback(_seen)

    def end(self, code: int | None, reason: str = "") -> None:
        """Ends the connection with a code, or without a word (None)."""
        self._ended_by_us = True
        if self._session is not None and self._session.line is self:
            self._session.line = None
        if code is not None:
            self.close(code, reason)
        elif self.ws_connection is not None and self.ws_connection.stream is not None:
            self.ws_connection.stream.close()


def _seen(written: asyncio.Future[None]) -> None:
    """Takes note of how a write ended: one that failed is made good by the session, when its client resumes."""
    if not written.cancelled():
        written.exception()


def _parsed(message: str | bytes) -> JSON:
    try:
        payload = json.loads(message)
    except ValueError:
        raise Fatal(4002, "Error while decoding payload.") from None
    if not isinstance(payload, dict) or "op" not in payload:
        raise Fatal(4002, "Error while decoding payload.")
    return payload
