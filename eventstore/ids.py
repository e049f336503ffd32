"""Identifiers for events and streams: UUIDs of version 7 (RFC 9562), whose order is about that of their making.

Their nearness in time keeps the insertions into an index of them at its right end.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache

# Drawn ahead, since to ask the system for each costs more than all the rest. To take one from a list's end is atomic,
# so threads never share one; a child drops its parent's.
_DRAWN_AT_ONCE = 256
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)
# The variant, binary 10, takes two bits of its digit; those that it displaces are dropped.
_VARIANTS = str.maketrans("0123456789abcdef", "89ab" * 4)


def new_id() -> str:
    """A fresh UUID of version 7 in its usual text form."""
    while True:
        try:
            return _time_part(time.time_ns() // 1_000_000) + _drawn.pop()
        except IndexError:
            _draw()


@lru_cache(1)
def _time_part(milliseconds: int) -> str:
    digits = f"{milliseconds:012x}"
    return f"{digits[:8]}-{digits[8:]}-"


def _draw() -> None:
    """Draws what stands behind the time: the version, 7, and random digits, one of which tells the variant."""
    digits = os.urandom(10 * _DRAWN_AT_ONCE).hex()
    variants = digits.translate(_VARIANTS)
    _drawn.extend(
        f"7{digits[i : i + 3]}-{variants[i + 3]}{digits[i + 4 : i + 7]}-{digits[i + 7 : i + 19]}"
        for i in range(0, len(digits), 20)
    )
