"""`minutebook history` and `minutebook trace`: all that happened to one thing."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import click
import msgspec

from audit.command import LOG_SETTINGS, Command, CommandFailed
from audit.database import database
from audit.lines import gist, metadata
from audit.names import Names
from audit.output import Output
from audit.tail import Wanted, as_json, for_people, tail
from chat.commands import whole_stream
from chat.names import channel_name, safe_name
from chat.sources import SourceSeal
from eventstore.erasure import ERASED
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from eventstore.merkle import rfc3339
from projections.accounts import Accounts
from projections.channels import Channels
from settings import Settings

_SENT = ("MessageSent", "DirectMessageSent")
_REQUESTED = "DiscordMessageRequested"
_WORDS = {
    "MessageSent": "sent",
    "DirectMessageSent": "sent",
    "MessageEdited": "edited",
    "MessageDeleted": "deleted",
    _REQUESTED: "requested",
    "DiscordMessageDelivered": "delivered",
    "DiscordMessageFailed": "failed",
    "DiscordMessageReceived": "received",
    "DiscordMessageWithdrawn": "withdrawn",
    ERASED: "erased",
}
COLUMNS = ("what", "position", "recorded_at", "actor_name", "request_id", "source_address", "details")
# Shown in the place of an address, which only the server's secret opens.
SEALED = "(sealed)"


# history


async def stream_of_account(log: EventLog, name: str) -> str:
    """The stream of an account, by its name of today or its id."""
    found = await Accounts(log.reader).by_name(safe_name(name))
    if found is None and not name.isdecimal():
        raise CommandFailed(f"there is no account {name}")
    return f"account-{name if found is None else found.account_id}"


async def stream_of_channel(log: EventLog, name: str) -> str:
    """The stream of a channel, which is called by a digest of the name: found by the channel's id, its position."""
    found = await Channels(log.reader).by_name(safe_name(channel_name(name)))
    made = None if found is None else await log.event_at(found.channel_id)
    if made is None:
        raise CommandFailed(f"there is no channel {name}")
    return made.stream


async def stream_of_message(log: EventLog, message_id: str) -> str:
    """The stream of a message."""
    return (await sent(log, message_id)).stream


KINDS: dict[str, Callable[[EventLog, str], Awaitable[str]]] = {
    "account": stream_of_account,
    "channel": stream_of_channel,
    "message": stream_of_message,
}


def _history(settings: Settings, out: Output, stream: str, name: str | None) -> None:
    """Show all events of one stream.

    \b
    history STREAM         by the stream's name, as `tail` shows it
    history account NAME   by the name or id of an account
    history channel NAME   by the name of a channel
    history message ID     by the id of a message

    The JSON is that of `tail`.
    """
    if name is not None and stream not in KINDS:
        raise click.UsageError(f"`history {stream} {name}`: known by name are {', '.join(KINDS)}")

    async def run(conninfo: str) -> None:
        async with EventLog(conninfo, writable=False, readers=2) as log:
            found = stream if name is None else await KINDS[stream](log, name)
            if not await log.read_stream(found, limit=1):
                raise CommandFailed(f"there is no stream {found}")
            show = as_json(out.lines) if out.is_json else for_people(log, out)
            await tail(log, Wanted(stream=found), show, follow=False)

    with database(settings) as conninfo:
        asyncio.run(run(conninfo))


HISTORY = Command(
    "history",
    _history,
    (click.Argument(["stream"]), click.Argument(["name"], required=False)),
    examples=("history account-1000", "history account alice", "history channel den"),
)


# trace


async def sent(log: EventLog, message_id: str) -> RecordedEvent:
    """The event by which a message was sent, or a text to Discord was requested; raises `CommandFailed`."""
    position = int(message_id) if re.fullmatch("[0-9]{1,18}", message_id) else 0
    event = await log.event_at(position)
    if event is None:
        raise CommandFailed(f"there is no message {message_id}")
    if event.type not in (*_SENT, _REQUESTED):
        raise CommandFailed(f"there is no message {message_id}: event {message_id} is of the type {event.type}")
    return event


async def life(log: EventLog, message_id: str) -> list[RecordedEvent]:
    """All that happened to a message, in order: the events of its stream, and those that erased any of them."""
    events = await whole_stream(log, (await sent(log, message_id)).stream)
    erasures = [erasure for event in events for erasure in await log.erasures_of(event.position)]
    found = {event.position: event for event in (*events, *erasures)}
    return [found[position] for position in sorted(found)]


class Tracer:
    """Says of events what a trace says; addresses are opened by the seal of the server's secret, if there is one."""

    def __init__(self, names: Names, seal: SourceSeal | None) -> None:
        self._names = names
        self._seal = seal

    async def record(self, event: RecordedEvent) -> dict[str, Any]:
        """An event as a row: what happened, when, by whom, in which request and from where."""
        caused = metadata(event)
        body = event.body()
        return {
            "what": what(event.type),
            "position": event.position,
            "recorded_at": rfc3339(event.recorded_at),
            "type": event.type,
            "stream": event.stream,
            "actor": caused.actor,
            "actor_name": None if caused.actor is None else await self._names.account(caused.actor),
            "request_id": caused.correlation_id,
            "source_address": self._address(body.get("source")),
            "details": "(erased)" if event.data is None else await gist(body, self._names),
            "data": None if event.data is None else msgspec.Raw(event.data),
        }

    def _address(self, sealed: str | None) -> str | None:
        if sealed is None:
            return None
        return (self._seal.open(sealed) if self._seal is not None else None) or SEALED


def what(event_type: str) -> str:
    """What an event did to a message, in a word or a few: for types that have none here, their name taken apart."""
    return _WORDS.get(event_type) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", event_type).lower()


async def trace(log: EventLog, message_id: str, seal: SourceSeal | None) -> AsyncIterator[dict[str, Any]]:
    """The rows of a message's life."""
    tracer = Tracer(Names(log.reader), seal)
    for event in await life(log, message_id):
        yield await tracer.record(event)


def _trace(settings: Settings, out: Output, message_id: str) -> None:
    """Show the life of one message: sent, deleted, erased and whatever else, by whom, by which request, from where.

    It is given by its id, or by the id of its delivery to Discord: a text that is only delivered has no other.

    The address from which a request came stands sealed in the log; it is shown where the server's secret is at hand.
    """

    async def run(conninfo: str) -> list[dict[str, Any]]:
        async with EventLog(conninfo, writable=False, readers=2) as log:
            return [row async for row in trace(log, message_id, _seal(settings))]

    with database(settings) as conninfo:
        rows = asyncio.run(run(conninfo))
    out.rows(rows, COLUMNS)


def _seal(settings: Settings) -> SourceSeal | None:
    """The seal of the secret that the setting gives, or else the data folder holds."""
    if settings.secret is not None:
        return SourceSeal(settings.secret.encode())
    file = settings.data_dir / "secret"
    # Auditors may well see the log, and not what the server keeps to itself.
    return SourceSeal(file.read_bytes().strip()) if os.access(file, os.R_OK) else None


TRACE = Command(
    "trace",
    _trace,
    (click.Argument(["message_id"], metavar="MESSAGE_ID"),),
    examples=("trace 1207",),
    settings=LOG_SETTINGS | {"secret"},
)
