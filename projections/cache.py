"""A bounded cache that never keeps what was already out of date when it came."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps up to `size` answers of a query, the newest ones; None is an answer that it does not keep.

    A query may have read what a forgetting was about just before it: so an answer is kept only if nothing was
    forgotten while the query ran.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[K, V] = {}
        self._forgettings = 0

    def kept(self, key: K) -> V | None:
        """The kept answer for `key`, if there is one: whoever looks here first makes no query for nothing."""
        return self._kept.get(key)

    async def get(self, key: K, query: Callable[[], Awaitable[V | None]]) -> V | None:
        """The kept answer for `key`, or that of `query`."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        before = self._forgettings
        answer = await query()
        if answer is not None and before == self._forgettings:
            if len(self._kept) >= self._size:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = answer
        return answer

    def forget(self, unwanted: Callable[[V], bool]) -> None:
        """Drops the kept answers that are unwanted, and those under way."""
        self._forgettings += 1
        for key in [key for key, value in self._kept.items() if unwanted(value)]:
            del self._kept[key]
