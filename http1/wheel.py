"""One timer for the deadlines of all connections.

A connection says until when something must have happened by setting its `deadline`, which costs an assignment; it may
do so several times in each request. The wheel looks at it when the deadline that it knew of has come, and then most
often finds a later one.

Invariant: a connection stands in the slot of its deadline or of an earlier one; `hasten` is there for those that
come closer.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol


class Timed(Protocol):
    """What the wheel keeps: the moment by the loop's clock (or `math.inf`), and the slot, which is the wheel's own."""

    deadline: float
    slot: int

    def expired(self) -> None:
        """The deadline has passed. Whoever goes on sets a new one."""


class Wheel:
    """Deadlines, kept within a `tick` of seconds."""

    # Slots ahead after which one without a deadline is looked at again.
    _FAR = 64

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, set[Timed]] = {}
        self._now = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: Timed) -> None:
        """Begins to watch."""
        if self._timer is None:
            self._now = int(asyncio.get_running_loop().time() / self._tick)
            self._schedule()
        self._put(item)

    def discard(self, item: Timed) -> None:
        """Ends watching, if it was watched."""
        items = self._slots.get(item.slot)
        if items is not None:
            items.discard(item)
            if not items:
                del self._slots[item.slot]

    def hasten(self, item: Timed) -> None:
        """Looks at the item in time for its deadline, which may have come closer."""
        # Most come no closer, which one look tells.
        if item.deadline < item.slot * self._tick and self._slot_for(item) < item.slot:
            self.discard(item)
            self._put(item)

    def close(self) -> None:
        """Watches nobody any more."""
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _put(self, item: Timed) -> None:
        item.slot = self._slot_for(item)
        self._slots.setdefault(item.slot, set()).add(item)

    def _slot_for(self, item: Timed) -> int:
        far = self._now + self._FAR
        return far if item.deadline == math.inf else min(far, max(self._now, int(item.deadline / self._tick)) + 1)

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_at((self._now + 1) * self._tick, self._turn)

    def _turn(self) -> None:
        self._timer = None
        moment = asyncio.get_running_loop().time()
        # A loop that was kept busy comes late, and more than one slot may be due.
        last = max(self._now + 1, int(moment / self._tick))
        due = [item for slot in range(self._now + 1, last + 1) for item in self._slots.pop(slot, ())]
        self._now = last
        if self._slots or due:
            self._schedule()
        for item in due:
            self._put(item)
            if item.deadline <= moment:
                item.expired()
