"""Identifiers for events and streams: UUIDs of version 7 (RFC 9562), whose order is about that of their making.

Their nearness in time keeps the insertions into an index of them at its right end.
"""

from __future__ import annotations

import os
import time


def new_id() -> str:
    """A fresh UUID of version 7 in its usual text form."""
    milliseconds = time.time_ns() // 1_000_000
    random = os.urandom(10).hex()
    # The version, 7, takes four bits, the variant, binary 10, two; the random digits that they displace are dropped.
    variant = "89ab"[int(random[3], 16) & 3]
    time_text = f"{milliseconds:012x}"
    return f"{time_text[:8]}-{time_text[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"
