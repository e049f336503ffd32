"""Places in the log as people name them on the command line: a position, or a moment."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click

from audit.command import CommandFailed
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from eventstore.merkle import rfc3339

# A place is a position, or a moment, which stands for the last position that was recorded by then.
Place = int | datetime

MOMENTS = "RFC 3339, `2026-11-22 14:00` (UTC), or how long ago: 90s, 10m, 2h, 3d"

_T = TypeVar("_T")
_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# No log grows this long, and Postgres has no larger number.
_MOST = 2**63 - 1


def parse_moment(text: str, now: datetime) -> datetime:
    """The moment that a text names: RFC 3339 (section 5.6), the same without its zone (UTC), a day, or `10m` ago.

    Raises `ValueError`, whose message says what would have been understood.
    """
    ago = _AGO.fullmatch(text)
    try:
        if ago:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        told = datetime.fromisoformat(text)
        return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time: give {MOMENTS}") from None


def parse_place(text: str, now: datetime) -> Place:
    """The place that a text names: a position in digits, or a moment. Raises `ValueError`."""
    if text.isascii() and text.isdigit():
        if int(text) > _MOST:
            raise ValueError(f"{text} is no position of any log")
        return int(text)
    return parse_moment(text, now)


def place(text: str) -> Place:
    """`parse_place` as the type of an option or argument: what names no place is wrong usage."""
    return _of_now(parse_place, text)


def moment(text: str) -> datetime:
    """`parse_moment` as the type of an option or argument."""
    return _of_now(parse_moment, text)


def _of_now(parse: Callable[[str, datetime], _T], text: str) -> _T:
    try:
        return parse(text, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


POSITION = click.IntRange(min=0, max=_MOST)


async def position_of(log: EventLog, named: Place) -> int:
    """The position that a place stands for, 0 for a moment before the first event; it may be one that is to come."""
    return await log.position_at(named) if isinstance(named, datetime) else named


async def standing(log: EventLog, named: Place) -> int:
    """As `position_of`, for those who need what was there then.

    Raises `CommandFailed` for a position behind the end of the log, and for a moment before its beginning.
    """
    position = await position_of(log, named)
    head = await log.head()
    if position > head:
        raise CommandFailed(f"the log has no position {position} yet: it ends at {head}")
    if position == 0 and isinstance(named, datetime):
        first = await log.event_at(1)
        raise CommandFailed(f"nothing was recorded by {rfc3339(named)}: {_beginning(first)}")
    return position


def _beginning(first: RecordedEvent | None) -> str:
    return "the log is empty" if first is None else f"the log begins at {rfc3339(first.recorded_at)}"
