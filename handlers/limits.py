"""Limits on how often somebody may do something: so many in a window of time, kept in memory for each process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

MAX_KEYS = 100_000


class TooMany(Exception):
    """A limit is reached; `retry_after` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class SlidingWindow:
    """At most `limit` takings of one key in any `seconds`; a limit of 0 lets everything through.

    It remembers the `MAX_KEYS` keys that were taken last.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._taken: OrderedDict[object, deque[float]] = OrderedDict()

    def take(self, key: object) -> float:
        """Takes one, and returns the moment by which it can be given back; raises `TooMany` if the window is full."""
        now = self._clock()
        if not self._limit:
            return now
        taken = self._taken.setdefault(key, deque())
        self._taken.move_to_end(key)
        while taken and taken[0] <= now - self._seconds:
            taken.popleft()
        if len(taken) >= self._limit:
            raise TooMany(taken[0] + self._seconds - now)
        taken.append(now)
        if len(self._taken) > MAX_KEYS:
            self._taken.popitem(last=False)
        return now

    def give_back(self, key: object, moment: float) -> None:
        """Undoes the taking of that moment: it turned out not to count."""
        taken = self._taken.get(key)
        if taken and moment in taken:
            taken.remove(moment)


class FailureLimit:
    """As many failures of one key as a window takes; what succeeds does not count.

    A try must be able to fail without being one too many, so that a thousand at once are not all let through. While
    others are under way whose outcome will tell, it waits for them; it is refused only for failures that happened.
    """

    def __init__(self, window: SlidingWindow) -> None:
        self._window = window
        self._under_way: dict[object, set[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def attempt(self, key: object, failure: type[Exception]) -> AsyncIterator[None]:
        """Around a try, which has failed if it raises `failure`; raises `TooMany` instead of beginning it."""
        moment = await self._turn(key)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        under_way = self._under_way.setdefault(key, set())
        under_way.add(ended)
        failed = False
        try:
            yield
        except failure:
            failed = True
            raise
        finally:
            if not failed:
                self._window.give_back(key, moment)
            under_way.discard(ended)
            if not under_way:
                self._under_way.pop(key, None)
            ended.set_result(None)

    async def _turn(self, key: object) -> float:
        while True:
            try:
                return self._window.take(key)
            except TooMany:
                under_way = self._under_way.get(key)
                if not under_way:
                    raise
                await asyncio.wait(list(under_way), return_when=asyncio.FIRST_COMPLETED)
