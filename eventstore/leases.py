"""Leases: how the nodes that work on one log know which of them are alive.

Invariants:
* A node renews its lease every `RENEW_SECONDS`; one that has not for `LEASE_SECONDS` counts as dead, whatever it does.
* Only the database's clock decides, so the nodes' clocks may differ.
* A node that was away for too long (stopped, cut off) is told at its next renewal that its lease had lapsed: others may
  have dealt with what it held as with a dead node's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert

from eventstore.errors import LogUnavailable
from eventstore.reader import Reader
from eventstore.statements import Statement
from eventstore.tables import node_leases

RENEW_SECONDS = 5.0
LEASE_SECONDS = 20.0
# After an outage a node must be heard of before the others have looked for it twice.
_RETRY_SECONDS = 1.0

_log = structlog.get_logger(__name__)

_ago = sa.func.clock_timestamp() - sa.literal_column(f"interval '{LEASE_SECONDS} seconds'")
_node = node_leases.c.node_id == sa.bindparam("node_id", type_=sa.Text)


def _renewal() -> Statement:
    """Renews the lease of `:node_id`, and answers whether it was held until now."""
    held = sa.select(node_leases.c.node_id).where(_node, node_leases.c.renewed_at >= _ago).exists()
    upsert = insert(node_leases).values(
        node_id=sa.bindparam("node_id", type_=sa.Text), renewed_at=sa.func.clock_timestamp()
    )
    return Statement(
        upsert.on_conflict_do_update(
            index_elements=[node_leases.c.node_id], set_={"renewed_at": upsert.excluded.renewed_at}
        ).returning(held)
    )


_RENEW = _renewal()
_EXPIRED = Statement(
    sa.select(node_leases.c.node_id).where(node_leases.c.renewed_at < _ago).order_by(node_leases.c.node_id)
)
_ALIVE = Statement(
    sa.select(node_leases.c.node_id).where(node_leases.c.renewed_at >= _ago).order_by(node_leases.c.node_id)
)
_DROP = Statement(sa.delete(node_leases).where(_node, node_leases.c.renewed_at < _ago))
_RELEASE = Statement(sa.delete(node_leases).where(_node))


class Leases:
    """The lease of the node `node_id`, and what is known of the others'.

    It has a connection of its own, so that a busy log does not make a node look dead.
    """

    def __init__(self, conninfo: str, node_id: str) -> None:
        self._reader = Reader(conninfo, size=1)
        self._node_id = node_id
        self._taken = False

    async def run(self) -> None:
        """Renews the lease until cancelled; an unreachable database is waited for."""
        while True:
            try:
                await self.renew()
            except LogUnavailable as error:
                _log.warning("the node's lease could not be renewed", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                await asyncio.sleep(RENEW_SECONDS)

    async def renew(self) -> bool:
        """Takes the lease, or renews it; returns whether it had lapsed. Raises `LogUnavailable`."""
        [(held,)] = await self._reader.fetch(_RENEW, node_id=self._node_id)
        lapsed = self._taken and not held
        self._taken = True
        if lapsed:
            _log.warning("the node's lease had lapsed", node_id=self._node_id)
        return lapsed

    async def expired(self) -> list[str]:
        """The nodes whose leases have lapsed."""
        return [node_id for (node_id,) in await self._reader.fetch(_EXPIRED)]

    async def alive(self) -> list[str]:
        """The nodes that hold their leases."""
        return [node_id for (node_id,) in await self._reader.fetch(_ALIVE)]

    async def drop(self, node_ids: Iterable[str]) -> None:
        """Forgets nodes whose leases have lapsed; one that has come back since is left alone."""
        for node_id in node_ids:
            await self._reader.fetch(_DROP, node_id=node_id)

    async def release(self) -> None:
        """Gives the lease back, at an orderly stop."""
        await self._reader.fetch(_RELEASE, node_id=self._node_id)
        self._taken = False

    async def close(self) -> None:
        """Closes the connection; the lease stays until it lapses."""
        await self._reader.__aexit__(None, None, None)
