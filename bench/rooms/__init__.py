"""The servers that `bench.fanout` compares, each with one room that every connection is in, and the load on them.

A server is a program that is told what to do by lines on its standard input, and answers each with a line of JSON.
Its first line, without being asked, is {"port": it listens there}. It understands

    burst EVENTS PER_TURN        emits so many events to the room, PER_TURN of them in each turn of its event loop, the
                                 next ones in the next turn; answers {"began_ns"} after the last one
    paced PER_SECOND EVENTS      emits events one by one at that rate; answers the same
    collect                      collects garbage, so that its memory is what its connections hold; answers {}
    connections                  answers {"open": how many connections it has}

and ends with its input. An event is named "event" and has one argument, {"mark", "text"}: its number since the command
and the moment of sending, as `mark` makes it, and a text that makes it about 200 bytes long. A paced event that is late
because the server is busy has the moment when it was due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

TEXT = (
    "So we settled on the second draft, with the changes of Monday, and the minutes go out tonight. "
    "Who takes them round to the others?"
)
TEXT_VARIABLE = "BENCH_TEXT"  # the environment's name for it


def mark(number: int, moment_ns: int) -> str:
    """What the load finds an event by: its number, and when it was sent on the machine's monotonic clock."""
    return f"#{number:08}@{moment_ns:020}"


@dataclass(frozen=True)
class Command:
    """How a server's program is started."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A server: `prepare` installs what it needs and returns how to start it, or says why it cannot take part."""

    name: str
    prepare: Callable[[], Command | str]
