"""Checkpoints: what the log is at a size, signed, so that it can never be another (C2SP tlog-checkpoint).

Invariants of the checkpointer:
* It works off the write path, on a connection of its own, and holds an advisory lock: one process at a time signs.
* All checkpoints of a log are signed by one key: the first that signs is kept in `log_key`, another signs nothing.
* A checkpoint is signed only if its tree is proven to begin with that of the last one: whatever happens to the other
  tables, the log never signs two that contradict each other.
* What was signed is kept before anybody sees it, and for ever.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import sqlalchemy as sa
import structlog

from eventstore.connection import Connection, Row
from eventstore.errors import LogError, LogUnavailable
from eventstore.statements import Statement
from eventstore.tables import checkpoints, log_head, log_key
from eventstore.transparency import tree
from eventstore.transparency.notes import BadNote, SigningKey, VerifierKey, decode_base64, encode_base64, open_note
from eventstore.transparency.tiles import Session, Tree, extend

_LOCK = 0x6D696E75_7467
# How long somebody who wants a checkpoint at once waits while another process makes one.
_WAIT_SECONDS = 20.0
_LOOK_SECONDS = 0.05
_RETRY_SECONDS = 1.0
_PAGE = 1000
_LARGEST = 2**63 - 1
_SIZE = re.compile("0|[1-9][0-9]{0,18}")

_log = structlog.get_logger(__name__)


class ForeignKey(LogError):
    """This log's checkpoints are signed by another key than ours."""


class Fork(LogError):
    """The log is not what its own last checkpoint says: nothing more may be signed."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says: which log it is of, how many leaves its tree has, and the root hash of that."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{encode_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What a note's text says; raises `BadNote`. Lines beyond the third are passed over."""
        lines = text.split("\n")
        try:
            origin, size, root = lines[0], lines[1], decode_base64(lines[2])
        except (IndexError, ValueError):
            raise BadNote("this is no checkpoint") from None
        if not origin or not _SIZE.fullmatch(size) or len(root) != len(tree.EMPTY_ROOT) or "" in lines[:-1]:
            raise BadNote("this is no checkpoint")
        return cls(origin, int(size), root)

    @classmethod
    def open(cls, note: str, key: VerifierKey) -> Self:
        """What a checkpoint says that the log of this key has signed; raises `BadNote`."""
        checkpoint = cls.parse(open_note(note, [key]))
        if checkpoint.origin != key.name:
            raise BadNote("the checkpoint is of another log than the key")
        return checkpoint


@dataclass(frozen=True)
class SignedCheckpoint:
    """A checkpoint as it is kept: its size, the note, and when it was signed."""

    size: int
    note: str
    signed_at: datetime


class Checkpoints:
    """The checkpoints that were signed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known_size = 0

    async def newest(self) -> SignedCheckpoint | None:
        """The largest, None if there is none yet."""
        return self._one(await self._session.fetch(_NEWEST))

    async def covering(self, position: int) -> SignedCheckpoint | None:
        """The first whose tree has the event at this position, None if there is none yet."""
        return self._one(await self._session.fetch(_COVERING, position=position))

    async def covers(self, size: int) -> bool:
        """Whether any covers the first `size` leaves; what is once covered needs no look any more."""
        return size <= self._known_size or (size <= _LARGEST and await self.covering(size) is not None)

    async def all(self) -> AsyncIterator[SignedCheckpoint]:
        """All of them, from the smallest to the largest."""
        place = 0
        while rows := await self._session.fetch(_AFTER, after=place, limit=_PAGE):
            for row in rows:
                yield SignedCheckpoint(*row)
            place = rows[-1][0]

    async def verifier_key(self) -> VerifierKey | None:
        """By which key they are signed, None before the first one is."""
        rows = await self._session.fetch(_KEY)
        return VerifierKey.parse(rows[0][0]) if rows else None

    def _one(self, rows: list[Row]) -> SignedCheckpoint | None:
        if not rows:
            return None
        self._known_size = max(self._known_size, rows[0][0])
        return SignedCheckpoint(*rows[0])


class Checkpointer:
    """Signs checkpoints while the log grows: one in `interval` seconds at most, whichever of its processes does it."""

    def __init__(self, conninfo: str, key: SigningKey, interval: float) -> None:
        self._conninfo = conninfo
        self._key = key
        self._interval = interval
        self._said_foreign = False

    async def run(self) -> None:
        """Signs until cancelled. An unreachable database is waited for; while the log is a fork, says so each time."""
        while True:
            pause = self._interval
            try:
                pause = await self._turn()
            except LogUnavailable as error:
                _log.warning("no checkpoint could be signed", error=str(error))
                pause = min(_RETRY_SECONDS, self._interval)
            except ForeignKey as error:
                if not self._said_foreign:
                    _log.warning("this process signs no checkpoints", reason=str(error))
                self._said_foreign = True
            except LogError as error:
                _log.error("no checkpoint was signed", error=str(error))
            await asyncio.sleep(pause)

    async def sign_now(self) -> SignedCheckpoint:
        """A checkpoint of the whole log, a new one unless the last one is that.

        Raises `ForeignKey`, `Fork`, `LogUnavailable`, and `LogError` of an empty log and if others sign all the time.
        """
        async with _connected(self._conninfo) as session:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    while not await session.lock():  # noqa: ASYNC110 - the one who has it is another process
                        await asyncio.sleep(_LOOK_SECONDS)
            except TimeoutError:
                raise LogError("another process is signing a checkpoint, try again") from None
            await self._claim(session)
            signed = await self._sign(session)
        if signed is None:
            raise LogError("the log is empty: there is nothing to sign")
        return signed

    async def _turn(self) -> float:
        """Signs if it is time to; the seconds until the next look."""
        async with _connected(self._conninfo) as session:
            if not await session.lock():
                return self._interval
            await self._claim(session)
            age = await session.fetch(_AGE)
            # One that is of the future tells of a clock that was set back, and would be waited for as long.
            if age and 0 <= age[0][0] < self._interval * 1000:
                return self._interval - float(age[0][0]) / 1000
            await self._sign(session)
            return self._interval

    async def _sign(self, session: Session) -> SignedCheckpoint | None:
        size = (await session.fetch(_HEAD))[0][0]
        last = await Checkpoints(session).newest()
        if size == (last.size if last else 0):
            return last
        if last is not None and size < last.size:
            raise Fork(f"the log ends at {size}, but a checkpoint of {last.size} events was signed")
        await extend(session, size)
        root = await Tree(session).root(size)
        if last is not None:
            await self._check_extends(session, Checkpoint.open(last.note, self._key.verifier_key), size, root)
        note = self._key.sign(Checkpoint(self._key.name, size, root).text())
        [(signed_at,)] = await session.fetch(_KEEP, size=size, note=note)
        _log.debug("signed a checkpoint", size=size)
        return SignedCheckpoint(size, note, signed_at)

    async def _claim(self, session: Session) -> None:
        """Makes our key the log's if it has none; raises `ForeignKey` if it has another."""
        ours = str(self._key.verifier_key)
        found = await session.fetch(_KEY)
        if not found:
            await session.fetch(_CLAIM, verifier_key=ours)
        elif found[0][0] != ours:
            raise ForeignKey("the log's checkpoints are signed by another key: give this one to all of its servers")

    async def _check_extends(self, session: Session, last: Checkpoint, size: int, root: bytes) -> None:
        proof = await Tree(session).consistency_proof(last.size, size)
        if not tree.verify_consistency(last.size, size, proof, last.root, root):
            raise Fork(
                f"the first {last.size} events are not those of the checkpoint that was signed: run `minutebook verify`"
            )


class _Session:
    """One connection, so that the lock it holds is held as long as its statements are answered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._locked = False

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """All rows of the statement."""
        return await self._connection.fetch(statement.text, statement.bind(values))

    async def lock(self) -> bool:
        """Takes the right to sign, if nobody has it."""
        [(self._locked,)] = await self.fetch(_TRY_LOCK, key=_LOCK)
        return self._locked

    async def close(self) -> None:
        """Lets go of the lock, and closes the connection."""
        # The database would let go of it too, but only some time after we have gone.
        try:
            if self._locked and not self._connection.broken.done():
                await self.fetch(_UNLOCK, key=_LOCK)
        finally:
            await self._connection.close()


@asynccontextmanager
async def _connected(conninfo: str) -> AsyncIterator[_Session]:
    session = _Session(await Connection.open(conninfo))
    try:
        yield session
    finally:
        await session.close()


def _bigint(name: str) -> sa.BindParameter[int]:
    return sa.bindparam(name, type_=sa.BigInteger)


def _text(name: str) -> sa.BindParameter[str]:
    return sa.bindparam(name, type_=sa.Text)


_ONE = sa.literal_column("1", sa.BigInteger)
_THOUSAND = sa.literal_column("1000", sa.BigInteger)
_c = checkpoints.c
_ROWS = sa.select(_c.size, _c.note, _c.signed_at)
_NEWEST = Statement(_ROWS.order_by(_c.size.desc()).limit(_ONE))
_COVERING = Statement(_ROWS.where(_c.size >= _bigint("position")).order_by(_c.size).limit(_ONE))
_AFTER = Statement(_ROWS.where(_c.size > _bigint("after")).order_by(_c.size).limit(_bigint("limit")))
_KEY = Statement(sa.select(log_key.c.verifier_key))
_CLAIM = Statement(sa.insert(log_key).values(verifier_key=_text("verifier_key")))
_HEAD = Statement(sa.select(log_head.c.position))
_KEEP = Statement(
    sa.insert(checkpoints)
    .values(size=_bigint("size"), note=_text("note"), signed_at=sa.func.clock_timestamp())
    .returning(_c.signed_at)
)
# In whole milliseconds, by the database's clock: those of the processes may differ.
_MILLISECONDS = sa.extract("epoch", sa.func.clock_timestamp() - _c.signed_at) * _THOUSAND
_AGE = Statement(sa.select(sa.cast(_MILLISECONDS, sa.BigInteger)).order_by(_c.size.desc()).limit(_ONE))
_TRY_LOCK = Statement(sa.select(sa.func.pg_try_advisory_lock(_bigint("key"))))
_UNLOCK = Statement(sa.select(sa.func.pg_advisory_unlock(_bigint("key"))))
