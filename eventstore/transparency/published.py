"""What of a log is given out: its checkpoints, its tiles, and proofs of single events."""

from __future__ import annotations

import sqlalchemy as sa

from eventstore import merkle
from eventstore.errors import LogError
from eventstore.statements import Statement
from eventstore.tables import events
from eventstore.transparency.checkpoints import Checkpoints
from eventstore.transparency.proofs import Opening, Proof
from eventstore.transparency.tiles import Session, Tiles, Tree, leaves_through


class NotCovered(LogError):
    """No checkpoint covers the event yet; one will in a while."""


class NothingToProve(LogError):
    """There is no such event, or its data was erased; the message says which."""


class Published:
    """A log as others may follow it and check it."""

    def __init__(self, session: Session) -> None:
        self.checkpoints = Checkpoints(session)
        self._session = session
        self._tiles = Tiles(session)
        self._tree = Tree(session)

    async def hash_tile(self, level: int, index: int, width: int) -> bytes | None:
        """The hashes of a tile, None as long as no checkpoint covers them."""
        if not await self._covers(level, index, width):
            return None
        return await self._tiles.hash_tile(level, index, width)

    async def entries(self, index: int, width: int) -> bytes | None:
        """The entries of a bundle, None as long as no checkpoint covers them."""
        if not await self._covers(0, index, width):
            return None
        return await self._tiles.entries(index, width)

    async def prove(self, position: int) -> tuple[Proof, Opening]:
        """The proof of an event, for ever the same, and its opening; raises `NothingToProve`, `NotCovered`."""
        opening = await self.opening(position)
        signed = await self.checkpoints.covering(position)
        if signed is None:
            raise NotCovered(f"no checkpoint covers the event at {position} yet")
        hashes = await self._tree.inclusion_proof(position - 1, signed.size)
        return Proof(position - 1, tuple(hashes), signed.note), opening

    async def opening(self, position: int) -> Opening:
        """An event with all that its leaf hash is made of; raises `NothingToProve`."""
        rows = await self._session.fetch(_OPENING, position=position)
        if not rows:
            raise NothingToProve(f"there is no event at {position}")
        stream, version, kind, metadata, recorded_at, data, salt = rows[0]
        if data is None:
            raise NothingToProve(f"the event at {position} was erased: nobody can tell any more what it said")
        return Opening(position, stream, version, kind, metadata, merkle.rfc3339(recorded_at), data, bytes(salt).hex())

    async def _covers(self, level: int, index: int, width: int) -> bool:
        return await self.checkpoints.covers(leaves_through(level, index, width))


_c = events.c
_OPENING = Statement(
    sa.select(_c.stream, _c.version, _c.type, _c.metadata, _c.recorded_at, _c.data, _c.salt).where(
        _c.position == sa.bindparam("position", type_=sa.BigInteger)
    )
)
