"""The server for the Engine.IO suite: it echoes."""

from __future__ import annotations

from dataclasses import dataclass, field

from tornado.web import Application

from realtime import transport
from realtime.engine import Engine, Limits, Session
from realtime.engineio import MESSAGE, Packet
from realtime.hub import Parcel

# What the suites expect to be told.
LIMITS = Limits(ping_interval=0.3, ping_timeout=0.2, max_payload=1_000_000)
PATH = "/engine.io/"


@dataclass
class Echo:
    """An engine that sends every message back, and notes what it hears, who opens and who closes."""

    limits: Limits = LIMITS
    heard: list[Packet] = field(default_factory=list)
    opened: list[Session] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = Engine(self.limits, self.opened.append, self._answer, self._note_end)

    def _answer(self, session: Session, message: Packet) -> None:
        self.heard.append(message)
        session.send(Parcel([MESSAGE + message if isinstance(message, str) else message]))

    def _note_end(self, _session: Session, reason: str) -> None:
        self.closed.append(reason)

    def application(self) -> Application:
        """It, served at the path of the suite."""
        return Application(transport.routes(PATH, self.engine, cors_origin="*"))
