"""A cache of queries' results that never answers older than what was committed when it was asked.

Each result belongs to a topic, by which it is dropped when an event changes what the topic is about.

Invariants:
* An entry is in the cache before its query's statement is sent, and leaves it when an event of its topic is published
  here. So whoever finds one, with its result or under way, finds what tells of every event that was published here up
  to then: of an event that was published before the entry came, since it was committed before the statement was sent;
  of a later one, or else the entry would have gone.
* Who finds an entry first passes the read barrier, and then looks again: by then everything that was committed anywhere
  when they asked is published here, and the second look finds only what tells of it.
* Who finds nothing asks the database by a statement that is sent after they asked, which needs no barrier.
* An entry that went while its query ran answers those who had joined it, and nobody else.
* A query that takes long, as on a connection that broke without a word, keeps waiting only who asked it: those who had
  joined ask anew.
* What changes without an event, such as tables that a rebuild swaps in, shows once a result's time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable

Topic = tuple[str, int]

SIZE = 16 << 20
LARGEST = 256 << 10
SECONDS = 2.0
# How long those who joined a query wait for it: longer than a busy database takes.
PATIENCE = 1.0
# What an entry takes besides its result, about: an empty one is not free.
_OVERHEAD = 650


class _Entry:
    """A result, or those who wait for it."""

    __slots__ = ("result", "until", "waiting")

    def __init__(self, until: float) -> None:
        self.until = until
        self.result: bytes | None = None
        self.waiting: list[asyncio.Future[bytes | None]] = []

    @property
    def size(self) -> int:
        """The bytes that it takes."""
        return _OVERHEAD + len(self.result or b"")

    async def joined(self) -> bytes | None:
        """The result once it is there; None if it does not come, or not in time."""
        waiter: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        return await waiter

    def settle(self, result: bytes | None) -> None:
        """Tells those who joined."""
        self.result = result
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(result)
        self.waiting.clear()

    def fail(self, error: Exception) -> None:
        """Tells those who joined that it went wrong."""
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_exception(error)


class ResultCache:
    """Keeps results of up to `size` bytes all in all, each for up to `seconds`; the topic that was asked for least
    recently goes first.

    `caught_up` is the read barrier: whether everything that was committed before the call was told to `drop`. A result
    of more than `largest` bytes is not kept.
    """

    def __init__(
        self,
        caught_up: Callable[[], Awaitable[bool]],
        *,
        size: int = SIZE,
        largest: int = LARGEST,
        seconds: float = SECONDS,
        patience: float = PATIENCE,
    ) -> None:
        self._caught_up = caught_up
        self._size = size
        self._largest = largest
        self._seconds = seconds
        self._patience = patience
        # The topics in the order in which they were asked for, each with its entries by their details.
        self._topics: dict[Topic, dict[Hashable, _Entry]] = {}
        self.bytes = 0

    async def get(self, topic: Topic, detail: Hashable, query: Callable[[], Awaitable[bytes]]) -> bytes:
        """The result of `query`, which asks the database, or a kept one that is no older; raises what it raises.

        `detail` tells the topic's queries from each other.
        """
        entry = self._found(topic, detail)
        if entry is not None:
            if not await self._caught_up():
                return await query()
            entry = self._found(topic, detail)
        if entry is None:
            return await self._asked(topic, detail, query)
        result = entry.result
        if result is None:
            result = await entry.joined()
        # Nobody's query may hang, and nobody give up, for others: the first one to come here asks for all.
        return await self.get(topic, detail, query) if result is None else result

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to forget."""
        return not self._topics

    def drop(self, topic: Topic) -> None:
        """Forgets the topic's results, and those under way."""
        for entry in self._topics.pop(topic, {}).values():
            self.bytes -= entry.size

    def clear(self) -> None:
        """Forgets everything."""
        self._topics.clear()
        self.bytes = 0

    def _found(self, topic: Topic, detail: Hashable) -> _Entry | None:
        """The entry, unless its time is over."""
        entries = self._topics.get(topic)
        entry = None if entries is None else entries.get(detail)
        if entry is None or entries is None:
            return None
        if entry.until < asyncio.get_running_loop().time():
            self._remove(topic, detail, entry)
            return None
        del self._topics[topic]
        self._topics[topic] = entries
        return entry

    async def _asked(self, topic: Topic, detail: Hashable, query: Callable[[], Awaitable[bytes]]) -> bytes:
        loop = asyncio.get_running_loop()
        entry = _Entry(loop.time() + self._seconds)
        self._put(topic, detail, entry)
        giving_up = loop.call_later(self._patience, self._give_up, topic, detail, entry)
        try:
            result = await query()
        except BaseException as error:
            self._remove(topic, detail, entry)
            if isinstance(error, Exception):
                entry.fail(error)
            else:
                entry.settle(None)
            raise
        finally:
            giving_up.cancel()
        self._keep(topic, detail, entry, result)
        return result

    def _give_up(self, topic: Topic, detail: Hashable, entry: _Entry) -> None:
        """Lets nobody else wait for this entry's query."""
        self._remove(topic, detail, entry)
        entry.settle(None)

    def _keep(self, topic: Topic, detail: Hashable, entry: _Entry, result: bytes) -> None:
        is_there = self._remove(topic, detail, entry)
        entry.settle(result)
        if is_there and len(result) <= self._largest:
            self._put(topic, detail, entry)
            while self.bytes > self._size:
                self.drop(next(iter(self._topics)))

    def _put(self, topic: Topic, detail: Hashable, entry: _Entry) -> None:
        entries = self._topics.pop(topic, {})
        entries[detail] = entry
        self._topics[topic] = entries
        self.bytes += entry.size

    def _remove(self, topic: Topic, detail: Hashable, entry: _Entry) -> bool:
        """Takes this entry out; whether it was there."""
        entries = self._topics.get(topic, {})
        if entries.get(detail) is not entry:
            return False
        del entries[detail]
        self.bytes -= entry.size
        if not entries:
            del self._topics[topic]
        return True
