"""Limits on how often somebody may do something: so many in a window of time, kept in memory for each process."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

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
