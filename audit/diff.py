"""`minutebook diff`: what changed in the read models between two positions of the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import click
from rich.text import Text

import projections
from audit.command import Command
from audit.database import database
from audit.lines import DIGESTS, clock, gist, short
from audit.names import Names
from audit.output import Output, visible
from audit.places import Place, place, standing
from eventstore.comparison import Difference
from eventstore.log import EventLog
from eventstore.travel import Interval
from settings import Settings

_COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def sign(difference: Difference) -> str:
    """`+` for a row that was not there before, `-` for one that is no more, `~` for one that changed."""
    if difference.before is None:
        return "+"
    return "-" if difference.after is None else "~"


async def record(difference: Difference, names: Names) -> dict[str, Any]:
    """A difference as JSON has it: both rows without digests, and the names of the ids in them."""
    row = difference.after or difference.before or {}
    named = {key: await names.of(key, value) for key, value in row.items()}
    return {
        "change": sign(difference),
        "table": str(difference.table),
        "key": _shown(difference.key),
        "before": _shown(difference.before),
        "after": _shown(difference.after),
        "names": {str(key): name for key, name in named.items() if name is not None},
    }


async def line(difference: Difference, names: Names) -> Text:
    """A difference as a coloured line: the row, or of one that changed its key and what became of which column."""
    row = difference.after or difference.before or {}
    if difference.changed:
        told = " ".join([await gist(difference.key, names), *_changes(difference)])
    else:
        told = await gist(row, names)
    return Text(f"{sign(difference)} {difference.table}  {visible(told)}", _COLOURS[sign(difference)])


def _changes(difference: Difference) -> list[str]:
    before, after = difference.before or {}, difference.after or {}
    columns = [name for name in difference.changed if name not in DIGESTS]
    return [f"{name}: {short(before[name])} → {short(after[name])}" for name in columns]


def _shown(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    # The columns' names are SQLAlchemy's own kind of text.
    return None if row is None else {str(key): value for key, value in row.items() if key not in DIGESTS}


async def compare(conninfo: str, out: Output, first: Place, last: Place) -> int:
    """Shows the differences, and returns how many there are."""
    async with EventLog(conninfo, writable=False, readers=1) as log:
        before, after = [await standing(log, each) for each in (first, last)]
        times = [event.recorded_at if (event := await log.event_at(each)) else None for each in (before, after)]
    async with Interval(conninfo, projections.ALL) as interval:
        with out.progress("reading") as progress:
            await interval.go_to(before, after, progress)
        ends = [
            f"position {each}{'' if time is None else f' ({clock(time)})'}"
            for each, time in zip((before, after), times, strict=True)
        ]
        out.text(Text(f"from {ends[0]} to {ends[1]}", "dim"))
        # Whichever is the later one knows more names.
        names = Names(interval.before if before > after else interval.after)
        return await _show(out, interval.differences(), names)


async def _show(out: Output, differences: AsyncIterator[Difference], names: Names) -> int:
    count = 0
    async for difference in differences:
        count += 1
        if out.is_json:
            out.line(await record(difference, names))
        else:
            out.text(await line(difference, names))
    return count


def _diff(settings: Settings, out: Output, first: Place, last: Place) -> None:
    """Show what changed in the read models between two positions or times.

    \b
    +  a row that was not there before
    -  one that is there no more
    ~  one that changed

    The two may be given in either order. What was erased since is gone at both.
    """
    with database(settings) as conninfo:
        if not asyncio.run(compare(conninfo, out, first, last)):
            out.text("nothing changed")


COMMAND = Command(
    "diff",
    _diff,
    (
        click.Argument(["first"], type=place, metavar="FIRST"),
        click.Argument(["last"], type=place, metavar="LAST"),
    ),
    examples=("diff 1200 1300", "diff 2h 10m", "diff 0 2026-11-22"),
)
