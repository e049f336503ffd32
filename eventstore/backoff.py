"""Waiting longer after each failure, with jitter, so that many who lost one database do not return at once."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Pauses of 0, then about `first`, twice that and so on up to `most` seconds."""

    def __init__(self, first: float = 0.05, most: float = 2.0) -> None:
        self._first = first
        self._most = most
        self._next = 0.0

    async def pause(self) -> None:
        """Waits as long as the failures since the last `reset` ask for."""
        delay = self._next
        self._next = min(self._most, max(self._first, delay * 2))
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Forgets the failures: the next pause is none."""
        self._next = 0.0
