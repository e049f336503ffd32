"""The nodes that work on one log: nobody stays online at a node that is no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from chat.connections import Connections
from eventstore.errors import LogUnavailable
from eventstore.leases import RENEW_SECONDS, Leases

_log = structlog.get_logger(__name__)


async def close_ghosts(node_id: str, connections: Connections) -> None:
    """Closes what this node left open when it was here last; to be called before it opens anything."""
    closed = await connections.sweep([node_id])
    if closed:
        _log.info("connections of this node's last life were closed", count=closed)


async def watch_others(leases: Leases, connections: Connections, nodes: Callable[[], Awaitable[Iterable[str]]]) -> None:
    """Closes, for ever, what nodes left open that hold no lease any more; `nodes` tells those with open connections.

    A node must be missed at two looks in a row: when the database was away for longer than a lease lasts, nobody could
    renew his, and whoever is back first must not take the others for dead.
    """
    missed: set[str] = set()
    while True:
        try:
            missed_now = await _missed(leases, nodes)
            await _close_lost(leases, connections, missed & missed_now)
            missed = missed_now
        except LogUnavailable as error:
            missed = set()
            _log.warning("nobody could look after lost nodes", error=str(error))
        await asyncio.sleep(RENEW_SECONDS)


async def _missed(leases: Leases, nodes: Callable[[], Awaitable[Iterable[str]]]) -> set[str]:
    # In this order: this node is none of them, and another one takes its lease before it opens anything.
    await leases.renew()
    return set(await nodes()).difference(await leases.alive())


async def _close_lost(leases: Leases, connections: Connections, lost: set[str]) -> None:
    if lost:
        closed = await connections.sweep(sorted(lost))
        _log.warning("nodes were lost, and their connections closed", nodes=sorted(lost), count=closed)
    await leases.drop(await leases.expired())
