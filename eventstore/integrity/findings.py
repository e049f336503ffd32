"""What an inspection of the log finds amiss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: with the events from `position` to `through`, both included, or with none in particular.

    `check` is the name of the check that found it (`docs/auditing.md` lists them), `what` one line for people.
    """

    position: int | None
    through: int | None
    check: str
    what: str


def runs(positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Rising positions as runs without gaps, each by its first and its last."""
    first = last = None
    for position in positions:
        if first is None or last is None:
            first = position
        elif position != last + 1:
            yield first, last
            first = position
        last = position
    if first is not None and last is not None:
        yield first, last
