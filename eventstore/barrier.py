"""The read barrier: whether this process has heard of everything that was committed when somebody asked.

It is Raft's read index (https://raft.github.io/raft.pdf, section 8) for a log in a database: the last position is read
there, and what is kept in memory may be shown once the feed has published the log up to that position.

Invariants:
* The position is read by a statement that is sent after the question. Questions that come while such a statement is
  under way share the next one and never that one, whose snapshot may be older than they are.
* So N questions at once cost two statements of one row, the first one's and that of all others; while there are always
  some, the statements follow each other in one task.
* Whoever is told "yes" asked before the statement was sent, and is told after the feed reached what it found.
* A statement that hangs, as on a connection that broke without a word, is given up after a short time: those
  whom it was for are told "no", and the next statement goes out by another connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Protocol

from eventstore.errors import LogError, LogUnavailable

# How long an answer waits for the feed: far longer than a notification and the page behind it take, and short beside
# what people notice.
WAIT_SECONDS = 0.05
# How long it waits for the position itself: longer than a busy database takes for it.
HEAD_SECONDS = 0.5

_Waiter = asyncio.Future[bool]


class Published(Protocol):
    """How far a feed has published the log."""

    last: int

    async def reached(self, position: int, seconds: float) -> bool:
        """Whether everything up to `position` is published within `seconds`."""


class ReadBarrier:
    """Tells whether the feed is where the log was; `read_head` reads the log's last position."""

    def __init__(self, read_head: Callable[[], Awaitable[int]], feed: Published) -> None:
        self._read_head = read_head
        self._feed = feed
        self._waiting: list[_Waiter] = []
        self._is_reading = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def caught_up(self) -> bool:
        """Whether all that was committed anywhere before this call is published here; waits for it a short time.

        Raises `LogUnavailable` when the database cannot be reached.
        """
        if not self._is_reading:
            return await self._caught_up_alone()
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return await waiter

    async def close(self) -> None:
        """Fails those who share an answer; whoever asks alone hears it from the one who reads."""
        _fail(self._waiting, _closed())
        self._waiting = []
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _caught_up_alone(self) -> bool:
        """The same for whoever finds nobody else: without a task, which costs as much as all the rest."""
        self._is_reading = True
        try:
            head = await self._head()
        finally:
            self._read_on()
        return head is not None and (self._feed.last >= head or await self._feed.reached(head, WAIT_SECONDS))

    async def _head(self) -> int | None:
        """The log's last position; None if it is not told in time."""
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                return await self._read_head()
        except TimeoutError:
            return None

    def _read_on(self) -> None:
        """Reads for those who came meanwhile, if anybody did."""
        self._is_reading = bool(self._waiting)
        if self._is_reading:
            self._run(self._read(), self._ended)

    async def _read(self) -> None:
        """Reads the position as long as somebody asks, for all of those who asked before it is sent."""
        while asking := self._waiting:
            self._waiting = []
            try:
                head = await self._head()
            except LogError as error:
                _fail(asking, error)
            except BaseException:
                _fail(asking, _closed())
                raise
            else:
                self._answer(asking, head)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            _fail(self._waiting, _closed())
            self._waiting = []
        # Some may have come between its last look and now.
        self._read_on()

    def _answer(self, asking: Sequence[_Waiter], head: int | None) -> None:
        if head is None or self._feed.last >= head:
            _tell(asking, is_published=head is not None)
        else:
            # Those who ask meanwhile need not wait for that, too.
            self._run(self._wait(asking, head), lambda _: _fail(asking, _closed()))

    async def _wait(self, asking: Sequence[_Waiter], head: int) -> None:
        _tell(asking, is_published=await self._feed.reached(head, WAIT_SECONDS))

    def _run(self, work: Coroutine[None, None, None], ended: Callable[[asyncio.Task[None]], None]) -> None:
        task = asyncio.create_task(work, name="read barrier")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not at the end of the work, which may be cancelled before it begins.
        task.add_done_callback(ended)


def _closed() -> LogUnavailable:
    return LogUnavailable("the log was closed")


def _tell(waiting: Sequence[_Waiter], *, is_published: bool) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(is_published)


def _fail(waiting: Sequence[_Waiter], error: LogError) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_exception(error)
