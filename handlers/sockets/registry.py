"""The registered connections of this process, and how their ends get into the log."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import structlog

from chat.commands import Account
from chat.connections import Connections
from eventstore.backoff import Backoff
from eventstore.errors import LogUnavailable
from realtime.server import Socket

# Seconds that the last ends may take to be recorded when the server stops.
_LAST_SECONDS = 1.5

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Registration:
    """Whose a socket is: its account, the generation of the token that opened it, and its place in the log.

    `version` is that of the connection's stream when it was opened here, `position` where. One that `is_recovered`
    may register once more, as clients do that cannot tell.
    """

    account: Account
    token_generation: int
    connection_id: str
    version: int
    position: int
    is_recovered: bool = False


class Registry:
    """Who is registered at this process; `run` is the task that records their ends."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._by_account: defaultdict[int, dict[Socket, Registration]] = defaultdict(dict)
        self._by_connection: dict[str, Socket] = {}
        self._ended: list[tuple[Registration, str]] = []
        self._has_ended = asyncio.Event()
        self._recording = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._by_connection)

    def add(self, socket: Socket, registration: Registration) -> None:
        """A socket is registered."""
        socket.data = registration
        self._by_account[registration.account.account_id][socket] = registration
        self._by_connection[registration.connection_id] = socket

    def of(self, socket: Socket) -> Registration | None:
        """The registration of a socket, if it has one."""
        return socket.data if isinstance(socket.data, Registration) else None

    def sockets_of(self, account_id: int) -> list[tuple[Socket, Registration]]:
        """The registered sockets of an account."""
        return list(self._by_account.get(account_id, {}).items())

    def holder(self, connection_id: str) -> Socket | None:
        """The socket that has this connection here."""
        return self._by_connection.get(connection_id)

    def remove(self, socket: Socket, reason: str) -> None:
        """A socket has ended: that is to be recorded."""
        registration = self.of(socket)
        if registration is not None:
            self.forget(socket)
            self.record_end(registration, reason)

    def forget(self, socket: Socket) -> None:
        """Takes a socket out without a word: its end stands in the log already."""
        registration = self.of(socket)
        if registration is None:
            return
        socket.data = None
        account_id = registration.account.account_id
        self._by_account[account_id].pop(socket, None)
        if not self._by_account[account_id]:
            del self._by_account[account_id]
        if self._by_connection.get(registration.connection_id) is socket:
            del self._by_connection[registration.connection_id]

    def record_end(self, registration: Registration, reason: str) -> None:
        """Has an end recorded as soon as the log takes it."""
        self._ended.append((registration, reason))
        self._has_ended.set()

    async def run(self) -> None:
        """Records ends until cancelled; while the log cannot be reached they wait."""
        backoff = Backoff()
        while True:
            await self._has_ended.wait()
            await backoff.pause()
            try:
                await self._record()
            except LogUnavailable as error:
                _log.warning("ended connections could not be recorded yet", error=str(error))
            else:
                backoff.reset()

    async def finish(self) -> None:
        """Records what is left, at the server's stop; what cannot be is found at the next start."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._record()
        except (TimeoutError, LogUnavailable):
            _log.warning("ended connections were not recorded", count=len(self._ended))

    async def _record(self) -> None:
        async with self._recording:
            ended, self._ended = self._ended, []
            self._has_ended.clear()
            try:
                await self._close(ended)
            except BaseException:
                # Again, all of them: one that was recorded already is left out by its version.
                self._ended[:0] = ended
                self._has_ended.set()
                raise

    async def _close(self, ended: list[tuple[Registration, str]]) -> None:
        by_reason: defaultdict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for each, reason in ended:
            by_reason[reason].append((each.connection_id, each.account.account_id, each.version))
        for reason, closings in by_reason.items():
            await self._connections.close(closings, reason)
