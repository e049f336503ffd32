"""The auditors' stream: namespace `/log`, where events of the log come as they stand there, from any position on.

CONNECT takes `{"key": …, "since": position, "types": [names]}`; the last two may be left out, and mean from now on,
and all. Each event of the log is an event `event` with one object, as `minutebook tail` prints it.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

import msgspec
import structlog

from chat.refusals import Malformed
from eventstore.log import EventLog
from realtime.server import Refuse, Server, Socket

NAMESPACE = "/log"
EVENT = "event"
# How many events are sent before the auditor must have taken them.
_STEP = 16

_log = structlog.get_logger(__name__)


class Wanted(msgspec.Struct, frozen=True):
    """What an auditor asks for."""

    key: str
    since: int | None = None
    types: frozenset[str] = frozenset()


class AuditStream:
    """Streams the log to those who have the key; without a key nobody is let in."""

    def __init__(self, server: Server, log: EventLog, key: str | None) -> None:
        self._log = log
        self._key = key
        namespace = server.namespace(NAMESPACE)
        namespace.on_connect(self._connect)
        namespace.on_disconnect(self._disconnect)

    async def _connect(self, socket: Socket, auth: dict[str, Any], /) -> None:
        wanted = self._checked(auth)
        since = await self._log.head() if wanted.since is None else wanted.since
        socket.accept()
        if socket.connected:
            socket.data = asyncio.create_task(self._stream(socket, since, wanted.types), name="audit stream")

    def _checked(self, auth: dict[str, Any]) -> Wanted:
        key = auth.get("key")
        given = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else b""
        if self._key is None or not hmac.compare_digest(given, self._key.encode()):
            raise Refuse("Invalid audit key!")
        try:
            wanted = msgspec.convert(auth, Wanted)
        except msgspec.ValidationError as error:
            raise Refuse(str(Malformed("auth", str(error)))) from None
        if wanted.since is not None and not 0 <= wanted.since < 1 << 63:
            raise Refuse(str(Malformed("since", "is out of range")))
        return wanted

    async def _stream(self, socket: Socket, since: int, types: frozenset[str]) -> None:
        try:
            async for batch in self._log.follow(since):
                wanted = [event for event in batch if not types or event.type in types]
                for start in range(0, len(wanted), _STEP):
                    for event in wanted[start : start + _STEP]:
                        socket.emit(EVENT, event.shown())
                    # An auditor that reads slowly is read to slowly: nothing is kept for it but its place in the log.
                    await socket.drained()
        except Exception:  # noqa: BLE001 - told to the log
            # An auditor must not take an end of the stream for the end of the news.
            _log.exception("an auditor's stream ended")
            socket.close()

    def _disconnect(self, socket: Socket, reason: str, /) -> None:  # noqa: ARG002 - the protocol's
        if isinstance(socket.data, asyncio.Task):
            socket.data.cancel()
