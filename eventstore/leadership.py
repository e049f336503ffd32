"""Leadership: of all processes that work on one database, one at a time does a certain work.

Invariants:
* The leader holds an advisory lock of the session of a connection of its own, which carries nothing else. The lock is
  gone when that connection is, so a leader that dies needs nobody to say so.
* The leader looks after its connection all the time. Once it is lost the work is cancelled, and whoever has the lock
  next begins anew, at the latest `LOOK_SECONDS` after the database has let go of it.
* Of a machine that is gone without a word the database learns by keep-alives, later than a leader that was merely cut
  off learns of it by itself. Still, two may work for a moment; what they do must bear it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import sqlalchemy as sa
import structlog

from eventstore.backoff import Backoff
from eventstore.connection import Connection
from eventstore.errors import LogUnavailable
from eventstore.statements import Statement, inline

LOOK_SECONDS = 0.5
# Together less than what the keep-alives take to find out that the other side is gone: 5 s, and three more of 2 s.
CHECK_SECONDS = 1.0
ANSWER_SECONDS = 4.0

_log = structlog.get_logger(__name__)

_TRY_LOCK = Statement(sa.select(sa.func.pg_try_advisory_lock(sa.bindparam("key", type_=sa.BigInteger))))
_LOOK = Statement(sa.select(sa.literal_column("1", sa.BigInteger)))
# Without effect on a Unix socket, whose other side cannot go without a word.
_KEEP_ALIVE = Statement(
    sa.select(
        *(
            sa.func.set_config(inline(f"tcp_keepalives_{name}"), inline(value), sa.false())
            for name, value in (("idle", "5"), ("interval", "2"), ("count", "3"))
        )
    )
)

Work = Callable[[], Coroutine[Any, Any, None]]


class Leadership:
    """The leadership in one kind of work, which all processes know by the same `key` (64 bits) and `name`."""

    def __init__(self, conninfo: str, key: int, name: str) -> None:
        self._conninfo = conninfo
        self._key = key
        self._name = name

    async def run(self, work: Work) -> None:
        """Waits for the leadership and does the work; again and again if it loses it, until the work ends by itself.

        An unreachable database is waited for. Raises what the work raises.
        """
        backoff = Backoff()
        is_told = False
        while True:
            await backoff.pause()
            try:
                connection = await Connection.open(self._conninfo)
                try:
                    await self._wait(connection)
                    backoff.reset()
                    is_told = False
                    await self._lead(connection, work)
                    return
                finally:
                    await connection.close()
            except LogUnavailable as error:
                if not is_told:
                    _log.warning(f"{self._name}: not led from here", error=str(error))
                is_told = True

    async def _wait(self, connection: Connection) -> None:
        """Returns once this process leads."""
        await connection.fetch(_KEEP_ALIVE.text, _KEEP_ALIVE.bind({}))
        waits = False
        # Asked again and again: a statement that waits would keep its snapshot, and the database from cleaning up.
        while (await connection.fetch(_TRY_LOCK.text, _TRY_LOCK.bind({"key": self._key})))[0] != (True,):
            if not waits:
                _log.info(f"{self._name}: another process leads, this one stands by")
            waits = True
            await asyncio.sleep(LOOK_SECONDS)
        _log.info(f"{self._name}: led from here")

    async def _lead(self, connection: Connection, work: Work) -> None:
        """Works until the work ends; raises `LogUnavailable` when the leadership is lost, after the work has ended."""
        working = asyncio.create_task(work(), name=self._name)
        watching = asyncio.create_task(_watch(connection), name=f"{self._name}: its leadership")
        try:
            await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, working):
                task.cancel()
            results = await asyncio.gather(working, watching, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


async def _watch(connection: Connection) -> None:
    """Raises `LogUnavailable` when the connection is lost, or does not answer."""
    while True:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await connection.fetch(_LOOK.text, _LOOK.bind({}))
        except TimeoutError:
            raise LogUnavailable("the database does not answer the leader") from None
        await asyncio.wait([connection.broken], timeout=CHECK_SECONDS)
