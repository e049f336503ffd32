"""Connections: their opening and closing are events, so who is online is a read model like any other.

A connection has a stream of its own. It is opened at the version that its opener has seen, and closed at the version
of that opening: so of several nodes that deal with one connection one goes ahead, and the others learn of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from chat import rules
from chat.commands import Account, until_settled, whole_stream
from chat.events import ConnectionClosed, ConnectionOpened, RestartRequested, decode
from chat.names import DeviceDigests
from eventstore.errors import WrongVersion
from eventstore.events import Context, RecordedEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog

NODE_LOST = "node lost"
_BATCH = 500
# What comes from a client may be anything; no other text is part of a stream's name.
_CONNECTION_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class OpenConnection(msgspec.Struct, frozen=True):
    """A connection that stands open: whose it is, and the version of its stream."""

    connection_id: str
    account_id: int
    version: int


class ConnectionHistory(msgspec.Struct, frozen=True):
    """What became of a connection: who opened it last, where, by which token, at which position; and when it closed.

    `began` is the position of its first opening, `version` that of its stream, `closed_at` None while it stands open.
    """

    account_id: int
    token_generation: int
    node_id: str
    began: int
    opened: int
    version: int
    closed_at: datetime | None


class ConnectionModels(Protocol):
    """What the commands about connections ask the read models."""

    async def is_verified(self, account_id: int) -> bool:
        """Whether the account has registered a connection before."""

    async def account_of_device(self, digest: str) -> int | None:
        """The first account that this device verified."""

    async def open_connections(self, node_id: str) -> list[OpenConnection]:
        """The connections that a node has open."""


class Connections:
    """The commands about registered connections, given on behalf of the node `node_id`."""

    def __init__(self, log: EventLog, models: ConnectionModels, secret: bytes, node_id: str) -> None:
        self._log = log
        self._models = models
        self._devices = DeviceDigests(secret)
        self._node_id = node_id

    async def open(
        self,
        account: Account,
        token_generation: int,
        connection_id: str,
        correlation_id: str,
        *,
        device: str | None = None,
        version: int = 0,
    ) -> int:
        """Opens a connection, a new one or (`version` of its history) one that was there before; returns the position.

        The account's first connection verifies it; `device` is what the client calls its device, nothing if empty.
        Raises `WrongVersion` if somebody else used the connection's id meanwhile, `Malformed`, and `LogUnavailable`.
        """
        stream = _stream(connection_id)
        rules.check_device(device or "")
        digest = self._devices.digest(device) if device else None
        opened = ConnectionOpened(account.account_id, self._node_id, token_generation)
        opening = StreamWrite(stream, [opened.recorded_form()], expected_version=version)
        context = Context(account.account_id, correlation_id)

        async def attempt() -> int | WrongVersion:
            try:
                verifying = await self._verification(account, digest)
                return (await self._log.append(opening, *verifying, context=context)).first_position
            except WrongVersion as error:
                # Another of the account's connections, or of the device's, may have been the first one meanwhile.
                if error.stream != stream:
                    raise
                return error

        outcome = await until_settled(attempt)
        if isinstance(outcome, WrongVersion):
            raise outcome
        return outcome

    async def close(self, closings: Sequence[tuple[str, int, int]], reason: str) -> None:
        """Closes connections, each given by its id, its account's and its stream's version, in batches.

        One that somebody else closed or opened again meanwhile is left as it is. Raises `LogUnavailable`; then those of
        the batches before are closed, and of the others nobody knows.
        """
        # An end that was noticed in two places is one.
        await self._close([OpenConnection(*closing) for closing in dict.fromkeys(closings)], reason)

    async def history(self, connection_id: str) -> ConnectionHistory | None:
        """What became of the connection of this id; None if there never was one."""
        if not _CONNECTION_ID.fullmatch(connection_id):
            return None
        found: ConnectionHistory | None = None
        for event in await whole_stream(self._log, _stream(connection_id)):
            found = _after(found, event)
        return found

    async def sweep(self, dead_nodes: Iterable[str]) -> int:
        """Closes what these nodes, which are no more, left open; returns how many connections that were."""
        closed = 0
        for node_id in dead_nodes:
            closed += await self._close(await self._models.open_connections(node_id), NODE_LOST)
        return closed

    async def request_restart(self, reconnect_in: int) -> None:
        """Asks all nodes to end and to come back, clients to try again in `reconnect_in` seconds."""
        stream = f"restart-{new_id()}"
        requested = RestartRequested(reconnect_in)
        await self._log.append(StreamWrite(stream, [requested.recorded_form()]), context=Context(None, stream))

    async def _verification(self, account: Account, digest: str | None) -> list[StreamWrite]:
        """What verifies the account, if it is not verified yet."""
        if await self._models.is_verified(account.account_id):
            return []
        known = None if digest is None else await self._models.account_of_device(digest)
        verified, claimed = rules.verify(account.account_id, digest, verified_by_device=known)
        writes = [StreamWrite(f"verification-{account.account_id}", [verified.recorded_form()])]
        if claimed is not None:
            writes.append(StreamWrite(f"device-{digest}", [claimed.recorded_form()]))
        return writes

    async def _close(self, connections: Sequence[OpenConnection], reason: str) -> int:
        closed = 0
        for start in range(0, len(connections), _BATCH):
            closed += await self._close_batch(connections[start : start + _BATCH], reason)
        return closed

    async def _close_batch(self, connections: Sequence[OpenConnection], reason: str) -> int:
        writes = [_closing(connection, reason) for connection in connections]
        context = Context(None, f"closing-{new_id()}")
        try:
            await self._log.append(*writes, context=context)
        except WrongVersion:
            return await self._close_each(writes, context)
        return len(writes)

    async def _close_each(self, writes: Sequence[StreamWrite], context: Context) -> int:
        """Closes those that nobody else has dealt with; the log commits appends that wait together as one."""
        outcomes = await asyncio.gather(
            *(self._log.append(write, context=context) for write in writes), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, WrongVersion):
                raise outcome
        return sum(not isinstance(outcome, BaseException) for outcome in outcomes)


def _closing(connection: OpenConnection, reason: str) -> StreamWrite:
    closed = ConnectionClosed(connection.account_id, reason)
    return StreamWrite(_stream(connection.connection_id), [closed.recorded_form()], connection.version)


def _stream(connection_id: str) -> str:
    return f"connection-{connection_id}"


def _after(before: ConnectionHistory | None, recorded: RecordedEvent) -> ConnectionHistory | None:
    """What a connection's history is after one more event."""
    match decode(recorded):
        case ConnectionOpened(account_id=account_id, node_id=node_id, token_generation=generation):
            began = recorded.position if before is None else before.began
            return ConnectionHistory(account_id, generation, node_id, began, recorded.position, recorded.version, None)
        case ConnectionClosed() if before is not None:
            return msgspec.structs.replace(before, version=recorded.version, closed_at=recorded.recorded_at)
        case _:
            return before
