"""The writer: all appends of a process, committed in batches by one connection.

Invariants:
* A batch is one transaction and one statement (`eventstore.append`). While it is being committed the next one gathers.
* A caller hears of its append only after the commit; one that failed with `LogUnavailable` may have been committed.
* Appends of one process are committed in the order in which they were handed in.
* One bad append fails alone: when a batch fails for a reason of its content, its appends are repeated one by one.
* While there is no connection, appends fail at once; the writer reconnects with backoff.
* Committed events are handed to `on_commit` before any caller hears of them, so caches are never behind an answer.
* `on_backend` is told by which backend commits are made from now on; None: by none, and the last may be unknown here.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec
import structlog

from eventstore import canonical, wire
from eventstore.append import AppendStatements
from eventstore.backoff import Backoff
from eventstore.connection import Connection, Row, UniqueViolated
from eventstore.errors import InvalidEvent, LogError, LogUnavailable, WrongVersion
from eventstore.events import Appended, Context, RecordedEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.merkle import NAME_PATTERN, SALT_BYTES
from eventstore.projection import Projection

MAX_BATCH_EVENTS = 500
MAX_BATCH_BYTES = 1 << 20
# From twice as many callers on, two batches take turns.
OVERLAP = 24
# What is being committed when the log is closed may take so long to end.
CLOSE_SECONDS = 1.5
_RACES = 20

_log = structlog.get_logger(__name__)
_valid_name = NAME_PATTERN.fullmatch

_VERSIONS = (
    "SELECT s, coalesce((SELECT version FROM events WHERE stream = s ORDER BY version DESC LIMIT 1), 0) "
    "FROM unnest($1::text[]) AS s"
)
_ARBITERS = {"events_stream_version_key", "commands_pkey"}
_COMMAND = "SELECT first_position, last_position FROM commands WHERE command_id = $1"


class _Metadata(msgspec.Struct, omit_defaults=True, gc=False):
    # The fields stand in the order of their names, as canonical JSON wants them.
    actor: int | None
    command_id: str | msgspec.UnsetType
    correlation_id: str
    event_id: str
    schema: int


class _Taken(LogError):
    """A version or a command id of the batch is there already."""


# An event as a row of the batch: stream, version, type, data, metadata, the way `RecordedEvent` goes on.
_Row = tuple[str, int, str, bytes, bytes]


class _Pending:
    """An append that waits for its commit.

    `needs_versions` tells whether a stream's version must be looked up: it is taken as it is, or it must be there
    already. A stream that must be new needs no look: the unique pair (stream, version) tells when it is not.
    """

    __slots__ = ("bytes", "command_id", "future", "needs_versions", "rows", "writes")

    def __init__(self, writes: Sequence[StreamWrite], context: Context, command_id: str | None) -> None:
        self.writes = writes
        self.command_id = command_id
        self.future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self.rows: list[_Row] = []
        self.bytes = 0
        self.needs_versions = False
        for write in writes:
            stream, version = write.stream, write.expected_version
            _check_name("stream", stream)
            if version != 0:
                self.needs_versions = True
                version = version or 0
            if not write.events:
                raise InvalidEvent(f"a write needs at least one event, and that to {stream} has none")
            for event in write.events:
                version += 1
                _check_type(event.type)
                metadata = _metadata(context, command_id, event.schema)
                self.rows.append((stream, version, event.type, event.data, metadata))
                self.bytes += len(event.data) + len(metadata)
        if not self.rows:
            raise InvalidEvent("an append needs at least one event")

    def settle(self, current: dict[str, int]) -> None:
        """Gives each event its version, from where the streams stand now; `current` moves on with them.

        Raises `WrongVersion`, and then leaves `current` as it was.
        """
        after = dict(current)
        versions: list[int] = []
        for write in self.writes:
            version = after.get(write.stream, 0)
            if write.expected_version is not None and write.expected_version != version:
                raise WrongVersion(write.stream, write.expected_version)
            versions.extend(range(version + 1, version + 1 + len(write.events)))
            after[write.stream] = version + len(write.events)
        self.rows = [(row[0], version, *row[2:]) for row, version in zip(self.rows, versions, strict=True)]
        current.update(after)

    def fail(self, error: LogError) -> None:
        """Tells the caller, if it still waits."""
        if not self.future.done():
            self.future.set_exception(error)

    def succeed(self, outcome: Appended) -> None:
        """Tells the caller, if it still waits."""
        if not self.future.done():
            self.future.set_result(outcome)


def _check_name(what: str, name: str) -> None:
    if not _valid_name(name):
        raise InvalidEvent(f"a {what} is named by 1 to 200 characters of A-Z a-z 0-9 _ . : / -, not {name!r}")


# There are few types, and each of them comes again and again.
@lru_cache(1024)
def _check_type(name: str) -> None:
    _check_name("type", name)


def _metadata(context: Context, command_id: str | None, schema: int) -> bytes:
    return canonical.encode(
        _Metadata(context.actor, command_id or msgspec.UNSET, context.correlation_id, new_id(), schema)
    )


class Writer:
    """Commits appends in batches over a connection of its own; `run` is its task."""

    def __init__(
        self,
        conninfo: str,
        projections: Sequence[Projection],
        on_commit: Callable[[list[RecordedEvent]], None],
        on_backend: Callable[[int | None], None],
    ) -> None:
        self._conninfo = conninfo
        self._statements = AppendStatements(projections)
        self._on_commit = on_commit
        self._on_backend = on_backend
        self._queue: deque[_Pending] = deque()
        self._in_flight: list[_Pending] = []
        self._last_size = 0
        self._arrived = asyncio.Event()
        self._connection: Connection | None = None
        self._closing = False

    def append(
        self, writes: Sequence[StreamWrite], context: Context, command_id: str | None = None
    ) -> asyncio.Future[Appended]:
        """Appends the writes together or not at all; the future tells once they are committed.

        It is told `WrongVersion`, `LogUnavailable`, or `LogError` for what the database refuses. Raises `InvalidEvent`
        and `LogUnavailable` where that is plain at once.
        """
        pending = _Pending(writes, context, command_id)
        if not self.connected:
            raise LogUnavailable("the log cannot be reached")
        self._queue.append(pending)
        self._arrived.set()
        return pending.future

    @property
    def connected(self) -> bool:
        """Whether appends are being taken."""
        return self._connection is not None and not self._connection.broken.done() and not self._closing

    async def connect(self) -> None:
        """Opens the connection; raises `LogUnavailable` when the database cannot be reached."""
        self._connection = await Connection.open(self._conninfo)
        self._connection.broken.add_done_callback(lambda _: self._arrived.set())
        self._on_backend(self._connection.backend)

    async def run(self) -> None:
        """Commits what arrives, and reconnects when the connection breaks; runs until cancelled."""
        backoff = Backoff()
        while True:
            connection = self._connection or await self._reconnect(backoff)
            await self._arrived.wait()
            if self._closing and not self._queue:
                return
            if connection.broken.done():
                await self._lose(LogUnavailable(connection.broken.result()))
                continue
            await self._commit_next()
            if len(self._queue) < OVERLAP:
                # Callers that just heard of their commit come back within this turn: their next appends go along.
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Takes no more appends, waits for those that it has, and closes the connection; `run` must still run."""
        self._closing = True
        waiting = [pending.future for pending in (*self._in_flight, *self._queue)]
        if waiting and self._connection is not None:
            await asyncio.wait(waiting, timeout=CLOSE_SECONDS)
        await self._disconnect(LogUnavailable("the log was closed"))

    async def _reconnect(self, backoff: Backoff) -> Connection:
        while True:
            await backoff.pause()
            try:
                await self.connect()
            except LogUnavailable as error:
                _log.warning("the log's writer cannot connect", error=str(error))
            if self._connection is not None:
                backoff.reset()
                _log.info("the log's writer is connected again")
                return self._connection

    async def _lose(self, error: LogUnavailable) -> None:
        _log.warning("the log's writer lost its connection", error=str(error))
        await self._disconnect(error)

    async def _commit_next(self) -> None:
        self._in_flight = self._take()
        try:
            await self._commit_all(self._in_flight)
        except LogUnavailable as error:
            await self._lose(error)
        except BaseException:
            await self._disconnect(LogUnavailable("the log's writer stopped"))
            raise
        finally:
            self._in_flight = []

    async def _commit_all(self, batch: Sequence[_Pending]) -> None:
        try:
            await self._settle(batch)
            await self._commit([pending for pending in batch if not pending.future.done()])
        except LogUnavailable:
            raise
        except LogError:
            for pending in batch:
                await self._commit_alone(pending)

    def _take(self) -> list[_Pending]:
        batch: list[_Pending] = []
        events = size = 0
        # Where many wait, a batch takes half of those that are about (the last batch's callers come back while this
        # one is committed): so the database works on one half while this process prepares the other.
        about = len(self._queue) + self._last_size
        most = (about + 1) // 2 if about >= 2 * OVERLAP else about
        while self._queue and len(batch) < most:
            pending = self._queue[0]
            events += len(pending.rows)
            size += pending.bytes
            if batch and (events > MAX_BATCH_EVENTS or size > MAX_BATCH_BYTES):
                break
            batch.append(self._queue.popleft())
        self._last_size = len(batch)
        if not self._queue:
            self._arrived.clear()
        return batch

    async def _settle(self, batch: Sequence[_Pending]) -> None:
        """Looks up the versions of those streams that need it; an append that expected another one fails here."""
        streams = {write.stream for pending in batch if pending.needs_versions for write in pending.writes}
        if not streams:
            return
        current = await self._versions(streams)
        for pending in batch:
            if any(write.stream in current for write in pending.writes):
                try:
                    pending.settle(current)
                except WrongVersion as error:
                    if pending.command_id is not None:
                        raise  # It may be the repeat of a command, which is found when it is alone.
                    pending.fail(error)

    async def _versions(self, streams: set[str]) -> dict[str, int]:
        rows = await self._fetch(_VERSIONS, [wire.text_array([stream.encode() for stream in streams])])
        return dict(rows)

    async def _commit(self, batch: Sequence[_Pending]) -> None:
        """Commits the batch as one transaction; raises `_Taken` if any version or command id in it was taken."""
        if not batch:
            return
        rows = [row for pending in batch for row in pending.rows]
        streams, versions, types, data, metadata = zip(*rows, strict=True)
        with_commands = any(pending.command_id is not None for pending in batch)
        statement = self._statements.for_batch(frozenset(types), with_commands=with_commands)
        values: dict[str, object] = {
            "streams": wire.text_array([name.encode() for name in streams]),
            "versions": wire.bigint_array(versions),
            "types": wire.text_array([name.encode() for name in types]),
            "data": wire.text_array(data),
            "metadata": wire.text_array(metadata),
            "salts": wire.bytea_array(_salts(len(rows))),
            "size": len(rows),
        }
        if with_commands:
            values |= _command_values(batch)
        [(base, recorded_at, *_)] = await self._fetch(statement.text, statement.bind(values))
        # First the caches, then the callers.
        self._on_commit([RecordedEvent(base + i, *row, recorded_at) for i, row in enumerate(rows, start=1)])
        for pending in batch:
            first, base = base + 1, base + len(pending.rows)
            pending.succeed(Appended(first, base))

    async def _commit_alone(self, pending: _Pending) -> None:
        """Commits one append with every look taken, and tells its caller how it went."""
        try:
            for _ in range(_RACES):
                if pending.future.done() or await self._repeats(pending):
                    return
                try:
                    await self._settle_alone(pending)
                    if not pending.future.done():
                        await self._commit([pending])
                    return
                except _Taken:
                    continue
            # The connection is well, so only this append fails.
            pending.fail(LogUnavailable("too many others write to the same stream"))
        except LogUnavailable:
            raise
        except LogError as error:
            pending.fail(error)

    async def _settle_alone(self, pending: _Pending) -> None:
        try:
            pending.settle(await self._versions({write.stream for write in pending.writes}))
        except WrongVersion:
            # Its command may have been committed elsewhere since we looked.
            if pending.command_id is None or not await self._repeats(pending):
                raise

    async def _repeats(self, pending: _Pending) -> bool:
        """Whether the append's command is known already; then its caller gets the first outcome."""
        if pending.command_id is None:
            return False
        known = await self._fetch(_COMMAND, [pending.command_id.encode()])
        for first, last in known:
            pending.succeed(Appended(first, last, repeated=True))
        return bool(known)

    async def _fetch(self, text: str, parameters: Sequence[bytes]) -> list[Row]:
        if self._connection is None:
            raise LogUnavailable("the log cannot be reached")
        try:
            return await self._connection.fetch(text, parameters)
        except UniqueViolated as error:
            if error.constraint in _ARBITERS:
                raise _Taken(str(error)) from error
            raise

    async def _disconnect(self, reason: LogUnavailable) -> None:
        connection, self._connection = self._connection, None
        self._on_backend(None)
        for pending in (*self._in_flight, *self._queue):
            pending.fail(reason)
        self._queue.clear()
        self._arrived.clear()
        if connection is not None:
            await connection.close()


def _salts(count: int) -> list[bytes]:
    random = os.urandom(SALT_BYTES * count)
    return [random[i : i + SALT_BYTES] for i in range(0, len(random), SALT_BYTES)]


def _command_values(batch: Sequence[_Pending]) -> dict[str, object]:
    ids: list[bytes] = []
    firsts: list[int] = []
    lasts: list[int] = []
    ordinal = 0
    for pending in batch:
        first, ordinal = ordinal + 1, ordinal + len(pending.rows)
        if pending.command_id is not None:
            ids.append(pending.command_id.encode())
            firsts.append(first)
            lasts.append(ordinal)
    return {
        "command_ids": wire.text_array(ids),
        "command_firsts": wire.bigint_array(firsts),
        "command_lasts": wire.bigint_array(lasts),
    }
