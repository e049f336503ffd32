"""Ours: the log with everything on, as the server runs it.

Versions are checked, every event is salted and hashed, all projections run inside the append, other processes are
notified, and the message takes the way of `chat.commands`: a stream of its own, expected to be new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import projections
from bench.appenders import ACCOUNT_ID, CHANNEL_ID, TEXT, Appender
from bench.closed_loop import run_tasks
from bench.load import Load, Measured
from bench.rounds import OURS
from chat.events import MessageSent
from eventstore.events import Context, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog
from eventstore.migrate import migrate


def _prepare(conninfo: str) -> None:
    migrate(conninfo, [projections.MIGRATIONS])


def _measure(conninfo: str, load: Load, ready: Callable[[], None]) -> Measured:
    return asyncio.run(_measure_log(conninfo, load, ready))


async def _measure_log(conninfo: str, load: Load, ready: Callable[[], None]) -> Measured:
    async with EventLog(conninfo, projections.ALL) as log:

        async def append() -> None:
            sent = MessageSent(CHANNEL_ID, ACCOUNT_ID, TEXT)
            write = StreamWrite(f"message-{new_id()}", [sent.recorded_form()])
            await log.append(write, context=Context(ACCOUNT_ID, new_id()))

        await log.listening()
        ready()
        return await run_tasks(append, load)


APPENDER = Appender(OURS, _prepare, _measure)
