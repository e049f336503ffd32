"""A bounded cache that never keeps what was already out of date when it came."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps up to `size` answers of a query, the newest ones; None is an answer that it does not keep.

    `subject` tells what an answer is about, by which answers can be forgotten without a look at all of them. A query
    may have read what a forgetting was about just before it: so an answer is kept only if nothing was forgotten while
    the query ran.
    """

    def __init__(self, size: int, subject: Callable[[V], Hashable] | None = None) -> None:
        self._size = size
        self._subject = subject
        self._kept: dict[K, V] = {}
        # The keys of what is kept about each subject.
        self._about: dict[Hashable, set[K]] = {}
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
            self._keep(key, answer)
        return answer

    def forget(self, subject: Hashable) -> None:
        """Drops the kept answers about `subject`, and all those under way."""
        self._forgettings += 1
        for key in self._about.pop(subject, ()):
            del self._kept[key]

    def clear(self) -> None:
        """Drops all answers, those under way among them."""
        self._forgettings += 1
        self._kept.clear()
        self._about.clear()

    def _keep(self, key: K, answer: V) -> None:
        # Somebody else may have asked the same meanwhile.
        self._drop(key)
        if len(self._kept) >= self._size:
            self._drop(next(iter(self._kept)))
        self._kept[key] = answer
        if self._subject is not None:
            self._about.setdefault(self._subject(answer), set()).add(key)

    def _drop(self, key: K) -> None:
        answer = self._kept.pop(key, None)
        if answer is None or self._subject is None:
            return
        subject = self._subject(answer)
        keys = self._about[subject]
        keys.remove(key)
        if not keys:
            del self._about[subject]
