"""The stores that `bench.append` compares: each appends one chat message, and returns after its commit.

All of them do the same around it: a fresh stream for each message, about 200 bytes of JSON data encoded for each
call, and metadata with the actor, the request's id and the event's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.worker import Measure

TEXT = (
    "So we settled on the second draft, with the changes of Monday, and whoever has objections raises them before "
    "the next meeting; the minutes go out tonight."
)
CHANNEL_ID = 1
ACCOUNT_ID = 1000
POOL = 10


@dataclass(frozen=True)
class Appender:
    """A contestant: how its tables are made, and how it is measured; both take the database's connection string."""

    name: str
    prepare: Callable[[str], None]
    measure: Measure[str]
    packages: tuple[str, ...] = ()
