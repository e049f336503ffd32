"""The feed: one process's view of the log as it grows, in order and without gaps.

Invariants:
* `last` is a position; everything up to it has been published here, everything published was in log order.
* The process's own commits are published at once when they follow `last` directly; otherwise somebody else's events lie
  between, and they wait here until the table was read up to them.
* NOTIFY is only the wake-up, a poll is its fall-back, the table tells: a lost notification costs time, never events.
* Followers keep nothing here but their place. The newest events stay in a bounded window; a follower that falls behind
  it reads from the table until it is back, so nobody's slowness costs anybody else memory.
* What an event erases is erased in the window before that event is in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import psycopg
import structlog

from eventstore.append import CHANNEL
from eventstore.backoff import Backoff
from eventstore.erasure import ERASED
from eventstore.errors import LogUnavailable
from eventstore.events import RecordedEvent

PAGE = 1000
WINDOW = 10_000
POLL_SECONDS = 2.0
# So many own commits wait for others' events before them to be read; further ones are read from the table, too.
MOST_AHEAD = 100
# Between two looks at the table: what others commit all the time is read in fewer of them, and heard of so much later.
PAUSE_SECONDS = 0.005
# After so long, whoever waits for a position has the table read without a notification.
WAKE_SECONDS = 0.005

_log = structlog.get_logger(__name__)

ReadPage = Callable[[int, int], Awaitable[list[RecordedEvent]]]
Subscriber = Callable[[Sequence[RecordedEvent]], None]


class Feed:
    """Publishes the log's events to this process; `run` is its task.

    `read_page(after, limit)` reads the table. `poll_seconds` bounds how late another process's events can be when
    notifications are lost.
    """

    def __init__(self, conninfo: str, read_page: ReadPage, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._conninfo = conninfo
        self._read_page = read_page
        self._poll_seconds = poll_seconds
        self._window: deque[list[RecordedEvent]] = deque()
        self._window_size = 0
        self._subscribers: list[Subscriber] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._woken = asyncio.Event()
        self._own_backend: int | None = None
        # Own commits behind others' events that are still to be read, in order.
        self._ahead: deque[list[RecordedEvent]] = deque()
        # The furthest position that is known to be for the table to tell.
        self._known = 0
        self.last = 0
        self.listening = asyncio.Event()

    def start_at(self, position: int) -> None:
        """Places the feed before anything is published: events up to `position` are for the table to tell."""
        self.last = position

    def subscribe(self, subscriber: Subscriber) -> None:
        """Calls `subscriber` with every batch as soon as this process knows of it.

        Its own commits come before their appenders hear of them, which may be before other processes' earlier events;
        then they come again in their place. A subscriber must be quick and must not raise.
        """
        self._subscribers.append(subscriber)

    def commits_by(self, backend: int | None) -> None:
        """Says which backend this process's commits come by: they are offered, so its notifications are no news.

        None: by none. What it committed last may not have been offered, so the table is looked at.
        """
        self._own_backend = backend
        if backend is None:
            self._doubt()

    def offer(self, events: list[RecordedEvent]) -> None:
        """Takes what this process has just committed."""
        if events[0].position <= self.last + 1:
            self._publish(events)
        else:
            self._tell_subscribers(events)
            if len(self._ahead) < MOST_AHEAD:
                self._ahead.append(events)
                self._woken.set()
            else:
                self._is_known(events[-1].position)

    async def follow(self, after: int) -> AsyncIterator[list[RecordedEvent]]:
        """Batches of events behind position `after`, in order, for ever: from the table first, then live."""
        while True:
            if after >= self.last:
                await self._news()
                continue
            batch = self._from_window(after) or await self._read_patiently(after)
            if batch:
                after = batch[-1].position
                yield batch

    async def reached(self, position: int, seconds: float) -> bool:
        """Whether everything up to `position` is published within `seconds`; False at once while nobody listens.

        What is published by then was already told to all subscribers. It does not depend on notifications.
        """
        if self.last >= position:
            return True
        if not self.listening.is_set():
            return False
        # A notification may be lost, or the listener gone without knowing it yet. Not at once: most often one is under
        # way, or the process's own commit is just about to be offered, and nothing need be read.
        waking = asyncio.get_running_loop().call_later(WAKE_SECONDS, self._is_known, position)
        try:
            async with asyncio.timeout(seconds):
                while self.last < position:
                    await self._news()
        except TimeoutError:
            return False
        finally:
            waking.cancel()
        return True

    async def run(self) -> None:
        """Listens for other processes' commits until cancelled, and reconnects with backoff."""
        backoff = Backoff()
        while True:
            await backoff.pause()
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._conninfo, autocommit=True, connect_timeout=5
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    await self._listen(connection, backoff)
            except (psycopg.OperationalError, LogUnavailable) as error:
                _log.warning("the log's listener lost its connection", error=str(error))
            finally:
                self.listening.clear()

    async def _listen(self, connection: psycopg.AsyncConnection[Any], backoff: Backoff) -> None:
        broken: list[psycopg.OperationalError] = []

        def readable() -> None:
            try:
                self._is_known(self._furthest_notified(connection))
            except psycopg.OperationalError as error:
                # At once: libpq has closed the socket, and the next one that is opened may get its number.
                loop.remove_reader(descriptor)
                broken.append(error)
                self._woken.set()

        loop = asyncio.get_running_loop()
        descriptor = connection.fileno()
        loop.add_reader(descriptor, readable)
        try:
            # What was committed before LISTEN took effect was notified to nobody here.
            self._doubt()
            while not broken:
                await self._wait_for_wake_up()
                await self._catch_up()
                self.listening.set()
                backoff.reset()
                await asyncio.sleep(PAUSE_SECONDS)
            raise broken[0]
        finally:
            if not broken:
                loop.remove_reader(descriptor)

    def _furthest_notified(self, connection: psycopg.AsyncConnection[Any]) -> int:
        # The process's own commits are notified here too, thousands a second, and often before they are offered; so
        # this reads them off the connection without psycopg's generators and wakes nobody for them.
        connection.pgconn.consume_input()
        furthest = 0
        while notification := connection.pgconn.notifies():
            if notification.be_pid != self._own_backend:
                furthest = max(furthest, int(notification.extra))
        return furthest

    async def _wait_for_wake_up(self) -> None:
        try:
            async with asyncio.timeout(self._poll_seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    def _doubt(self) -> None:
        """Has the table looked at as far as it goes: there may be more than is known."""
        self._ahead.clear()
        self._woken.set()

    def _is_known(self, position: int) -> None:
        """Everything up to a position is committed, and the table is to tell it."""
        self._known = max(self._known, position)
        if position > self.last:
            self._woken.set()

    async def _catch_up(self) -> None:
        """Reads what others have committed: up to the own commits that wait behind it, or as far as there is any."""
        while True:
            gap = self._ahead[0][0].position - self.last - 1 if self._ahead else PAGE
            page = await self._read_page(self.last, min(gap, PAGE))
            if page:
                self._publish(page)
            while self._ahead and self._ahead[0][0].position <= self.last + 1:
                self._publish(self._ahead.popleft())
            if not page or (not self._ahead and self._known <= self.last and len(page) < PAGE):
                return

    async def _read_patiently(self, after: int) -> list[RecordedEvent]:
        """A page of the table; empty, after a pause, when the database is away."""
        try:
            return await self._read_page(after, PAGE)
        except LogUnavailable:
            await asyncio.sleep(0.2)
            return []

    def _publish(self, events: list[RecordedEvent]) -> None:
        fresh = [event for event in events if event.position > self.last] if events[0].position <= self.last else events
        if not fresh:
            return
        self.last = fresh[-1].position
        for event in fresh:
            if event.type == ERASED:
                self._empty(frozenset(event.body()["positions"]))
        self._window.append(fresh)
        self._window_size += len(fresh)
        while self._window_size - len(self._window[0]) >= WINDOW:
            self._window_size -= len(self._window.popleft())
        self._tell_subscribers(fresh)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _empty(self, positions: frozenset[int]) -> None:
        self._window = deque(
            [msgspec.structs.replace(event, data=None) if event.position in positions else event for event in batch]
            for batch in self._window
        )

    def _tell_subscribers(self, events: Sequence[RecordedEvent]) -> None:
        for subscriber in self._subscribers:
            subscriber(events)

    async def _news(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _from_window(self, after: int) -> list[RecordedEvent]:
        """The events behind `after`, if the window still reaches back to them, else nothing."""
        found: list[list[RecordedEvent]] = []
        for batch in reversed(self._window):
            found.append(batch)
            first = batch[0].position
            if first <= after + 1:
                batches = reversed(found)
                return [event for batch in batches for event in batch if event.position > after]
        return []
