"""`minutebook tail`: the log's events as JSON, one a line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import click
import msgspec

from audit.command import Command
from audit.database import database
from audit.output import Output
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from settings import Settings

_PAGE = 1000
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class Wanted:
    """Which events are to be printed: those behind a position, and of all types and streams or of some."""

    since: int = 0
    types: frozenset[str] = frozenset()
    stream: str | None = None

    def __call__(self, event: RecordedEvent) -> bool:
        """Whether this one is."""
        return (
            event.position > self.since
            and (not self.types or event.type in self.types)
            and (self.stream is None or event.stream == self.stream)
        )


def line(event: RecordedEvent) -> bytes:
    """An event as a JSON object, with its data and metadata as they stand in the log; erased data is null."""
    return _encoder.encode(event.shown())


async def tail(conninfo: str, wanted: Wanted, write: Callable[[bytes], None], *, follow: bool) -> None:
    """Writes the wanted events as lines; with `follow`, goes on for ever with new ones."""
    async with EventLog(conninfo, writable=False, readers=2) as log:
        batches = log.follow(wanted.since) if follow else _up_to_now(log, wanted)
        async for batch in batches:
            text = b"".join(line(event) + b"\n" for event in batch if wanted(event))
            if text:
                write(text)


async def _up_to_now(log: EventLog, wanted: Wanted) -> AsyncIterator[list[RecordedEvent]]:
    """Pages of the log as it stands; of one stream only, by its own index, if that is all that is wanted."""
    place = 0 if wanted.stream is not None else wanted.since
    while True:
        if wanted.stream is not None:
            page = await log.read_stream(wanted.stream, place, _PAGE)
        else:
            page = await log.read(place, _PAGE)
        if not page:
            return
        yield page
        place = page[-1].version if wanted.stream is not None else page[-1].position


def _tail(
    settings: Settings, out: Output, since: int, follow: bool, types: tuple[str, ...], stream: str | None
) -> None:
    """Print the log, one JSON object a line.

    Works beside a running server, and without one.
    """
    with database(settings) as conninfo:
        asyncio.run(tail(conninfo, Wanted(since, frozenset(types), stream), out.write, follow=follow))


COMMAND = Command(
    "tail",
    _tail,
    (
        click.Option(["--since"], type=click.IntRange(min=0), default=0, help="Only events behind this position."),
        click.Option(["--follow", "-f"], is_flag=True, help="Go on with new events until interrupted."),
        click.Option(["--type", "types"], multiple=True, help="Only events of this type; may be given several times."),
        click.Option(["--stream"], help="Only events of this stream."),
    ),
    examples=("tail --follow --type MessageSent",),
)
