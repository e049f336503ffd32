"""`minutebook tail`: the log's events, as lines for people or as JSON, one a line."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import click
import msgspec

from audit.command import Command
from audit.database import database
from audit.lines import line
from audit.names import Names
from audit.output import Output
from audit.places import MOMENTS, Place, place, position_of
from eventstore.erasure import ERASED
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from settings import Settings

_PAGE = 1000
_encoder = msgspec.json.Encoder()

Show = Callable[[Sequence[RecordedEvent]], Awaitable[None]]


@dataclass(frozen=True)
class Wanted:
    """Which events are to be shown: those behind a position, and of all types, streams and contents or of some."""

    since: int = 0
    types: frozenset[str] = frozenset()
    stream: str | None = None
    pattern: re.Pattern[str] | None = None

    def __call__(self, event: RecordedEvent) -> bool:
        """Whether this one is."""
        return (
            event.position > self.since
            and (not self.types or event.type in self.types)
            and (self.stream is None or event.stream == self.stream)
            and (self.pattern is None or self._matches(self.pattern, event.data))
        )

    @staticmethod
    def _matches(pattern: re.Pattern[str], data: bytes | None) -> bool:
        return data is not None and pattern.search(data.decode()) is not None


async def tail(log: EventLog, wanted: Wanted, show: Show, *, follow: bool) -> None:
    """Shows the wanted events; with `follow`, goes on for ever with new ones."""
    async for batch in log.follow(wanted.since) if follow else _up_to_now(log, wanted):
        events = [event for event in batch if wanted(event)]
        if events:
            await show(events)


def as_json(write: Callable[[bytes], None]) -> Show:
    """Shows events as JSON objects, with data and metadata as they stand in the log; erased data is null."""

    async def show(events: Sequence[RecordedEvent]) -> None:
        write(b"".join(_encoder.encode(event.shown()) + b"\n" for event in events))

    return show


def for_people(log: EventLog, out: Output) -> Show:
    """Shows events as coloured lines."""
    names = Names(log.reader)

    async def show(events: Sequence[RecordedEvent]) -> None:
        if any(event.type == ERASED for event in events):
            names.forget()
        for event in events:
            out.text(await line(event, names))

    return show


async def _up_to_now(log: EventLog, wanted: Wanted) -> AsyncIterator[list[RecordedEvent]]:
    """Pages of the log as it stands; of one stream only, by its own index, if that is all that is wanted."""
    reached = 0 if wanted.stream is not None else wanted.since
    while True:
        if wanted.stream is not None:
            page = await log.read_stream(wanted.stream, reached, _PAGE)
        else:
            page = await log.read(reached, _PAGE)
        if not page:
            return
        yield page
        reached = page[-1].version if wanted.stream is not None else page[-1].position


def _tail(
    settings: Settings,
    out: Output,
    since: Place,
    follow: bool,
    types: tuple[str, ...],
    stream: str | None,
    grep: re.Pattern[str] | None,
) -> None:
    """Print the log, a line for each event: JSON objects, or on a terminal what people read.

    Works beside a running server, and without one.
    """

    async def run(conninfo: str) -> None:
        async with EventLog(conninfo, writable=False, readers=2) as log:
            wanted = Wanted(await position_of(log, since), frozenset(types), stream, grep)
            show = as_json(out.lines) if out.is_json else for_people(log, out)
            await tail(log, wanted, show, follow=follow)

    with database(settings) as conninfo:
        asyncio.run(run(conninfo))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise click.BadParameter(f"{text!r} is no regular expression: {error}") from None


COMMAND = Command(
    "tail",
    _tail,
    (
        click.Option(
            ["--since"],
            type=place,
            metavar="POSITION|TIME",
            default="0",
            help=f"Only events behind this position, or this time: {MOMENTS}.",
        ),
        click.Option(["--follow", "-f"], is_flag=True, help="Go on with new events until interrupted."),
        click.Option(["--type", "types"], multiple=True, help="Only events of this type; may be given several times."),
        click.Option(["--stream"], help="Only events of this stream."),
        click.Option(
            ["--grep"],
            type=_pattern,
            metavar="REGEX",
            help="Only events in whose data, as the JSON text that the log has, this is found (Python's regular "
            "expressions; (?i) first for any case). Erased data never is.",
        ),
    ),
    examples=("tail --follow --type MessageSent", "tail --since 10m", "tail --since 2026-11-22 --grep '(?i)secret'"),
)
