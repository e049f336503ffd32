"""`minutebook asof`: what readers would have been shown at a position of the log, or at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import click
from rich.text import Text

from audit.command import Command, CommandFailed
from audit.database import database
from audit.lines import clock
from audit.names import erased
from audit.output import Output, Record
from audit.places import MOMENTS, POSITION, Place, moment, standing
from chat.commands import Account, Channel
from chat.names import BOT_ID, channel_name, safe_name
from eventstore.log import EventLog
from eventstore.merkle import rfc3339
from eventstore.projection import Projection
from eventstore.travel import Past
from projections import accounts, channels, dms, messages, moderation, presence, verification
from projections.accounts import Accounts
from projections.channels import Channels
from projections.dms import DirectMessage, DirectMessages
from projections.messages import Message, Messages
from projections.moderation import Moderations
from projections.presence import Presence
from projections.verification import Verification
from settings import Settings

LIMIT = 100
_PAGE = 1000
_STATUS = {-1: "no", 0: "multiaccount", 1: "yes"}
T = TypeVar("T", Message, DirectMessage)


@dataclass(frozen=True)
class Asked:
    """What is asked of the past: about whom or which channel, and how many messages at most; None for all."""

    name: str
    limit: int | None
    at: datetime | None


Answer = Callable[[Past, Asked], AsyncIterator[Record]]


@dataclass(frozen=True)
class Question:
    """What can be asked: of which read models, how it is answered, and whom or what its name names, if it takes one."""

    models: Sequence[Projection]
    answer: Answer
    about: str | None = None
    is_record: bool = False


async def _channels(past: Past, _asked: Asked) -> AsyncIterator[Record]:
    for channel, members in await Channels(past).all():
        yield {"channel_id": channel.channel_id, "name": channel.name, "members": members}


async def _members(past: Past, asked: Asked) -> AsyncIterator[Record]:
    channel = await _channel(past, asked.name)
    for member in await Channels(past).members(channel.channel_id):
        name = _name(member.account_id, member.username)
        yield {"account_id": member.account_id, "username": name, "since_position": member.since}


async def _messages(past: Past, asked: Asked) -> AsyncIterator[Record]:
    channel = await _channel(past, asked.name)
    models = Messages(past)
    found = _found(
        asked.limit,
        lambda count: models.newest_in_channel(channel, count),
        lambda after: models.in_channel(channel, after, _PAGE),
    )
    async for message in found:
        yield {
            "message_id": message.message_id,
            "sent_at": rfc3339(message.sent_at),
            "sender": message.sender,
            "text": message.text,
        }


async def _dms(past: Past, asked: Asked) -> AsyncIterator[Record]:
    account = await _account(past, asked.name)
    models = DirectMessages(past)
    found = _found(
        asked.limit,
        lambda count: models.newest_of_account(account.account_id, count),
        lambda after: models.of_account(account.account_id, after, _PAGE),
    )
    async for message in found:
        yield {
            "message_id": message.message_id,
            "sent_at": rfc3339(message.sent_at),
            "sender": message.sender,
            "recipient": message.recipient,
            "text": message.text,
        }


async def _online(past: Past, _asked: Asked) -> AsyncIterator[Record]:
    bot = await Accounts(past).by_id(BOT_ID)
    if bot is not None:
        # The bot always is, without a connection.
        yield {"account_id": BOT_ID, "username": bot.username, "connections": 0, "since_position": None}
    for each in await Presence(past).online():
        name = _name(each.account_id, each.username)
        yield {
            "account_id": each.account_id,
            "username": name,
            "connections": each.connections,
            "since_position": each.since,
        }


async def _account_as_of(past: Past, asked: Asked) -> AsyncIterator[Record]:
    account = await _account(past, asked.name)
    restrictions = await Moderations(past).restrictions(account.account_id)
    until = restrictions.silenced_until
    silenced = until is not None and asked.at is not None and until > asked.at
    yield {
        "account_id": account.account_id,
        "username": account.username,
        "online": await Presence(past).is_online(account.account_id),
        "banned": restrictions.is_banned,
        "silenced_until": rfc3339(until) if until is not None and silenced else None,
        "verified": _STATUS[await Verification(past).status(account.account_id)],
        "channels": [channel.name for channel in await Channels(past).of_account(account.account_id)],
    }


_PEOPLE = accounts.projection
_WITH_MESSAGES = (_PEOPLE, channels.projection, messages.projection)
_OF_ACCOUNT = (
    _PEOPLE,
    channels.projection,
    presence.projection,
    moderation.projection,
    verification.projection,
)
QUESTIONS: Mapping[str, Question] = {
    "channels": Question((channels.projection,), _channels),
    "members": Question((_PEOPLE, channels.projection), _members, about="CHANNEL"),
    "messages": Question(_WITH_MESSAGES, _messages, about="CHANNEL"),
    "dms": Question((_PEOPLE, dms.projection), _dms, about="USER"),
    "online": Question((_PEOPLE, presence.projection), _online),
    "account": Question(_OF_ACCOUNT, _account_as_of, about="USER", is_record=True),
}


async def _found(
    limit: int | None,
    newest: Callable[[int], Awaitable[list[T]]],
    behind: Callable[[int], Awaitable[list[T]]],
) -> AsyncIterator[T]:
    """The newest messages, or all of them page by page; oldest first."""
    if limit is not None:
        for message in await newest(limit):
            yield message
        return
    after = 0
    while page := await behind(after):
        for message in page:
            yield message
        after = page[-1].message_id


async def _channel(past: Past, name: str) -> Channel:
    found = await Channels(past).by_name(safe_name(channel_name(name)))
    if found is None:
        raise CommandFailed(f"there was no channel {name} at position {past.position}")
    return found


async def _account(past: Past, name: str) -> Account:
    """The account of this name, or else of this id: those that were erased have no name any more."""
    models = Accounts(past)
    found = await models.by_name(safe_name(name))
    if found is None and name.isascii() and name.isdigit() and len(name) < 19:
        found = await models.by_id(int(name)) or await _erased(models, int(name))
    if found is None:
        raise CommandFailed(f"there was no account {name} at position {past.position}")
    return found


async def _erased(models: Accounts, account_id: int) -> Account | None:
    return Account(account_id, erased(account_id)) if await models.is_known(account_id) else None


def _name(account_id: int, username: str | None) -> str:
    return erased(account_id) if username is None else username


async def ask(
    conninfo: str, out: Output, question: Question, name: str, then: Place, *, limit: int | None = LIMIT
) -> None:
    """Makes the past that a question needs, and shows the answer."""
    async with EventLog(conninfo, writable=False, readers=1) as log:
        position = await standing(log, then)
        event = await log.event_at(position)
    at = None if event is None else event.recorded_at
    async with Past(conninfo, question.models) as past:
        with out.progress("reading") as progress:
            await past.go_to(position, progress)
        title = f"as of position {position}" + ("" if at is None else f", recorded at {clock(at)}")
        await _show(out, question, question.answer(past, Asked(name, limit, at)), title)


async def _show(out: Output, question: Question, rows: AsyncIterator[Record], title: str) -> None:
    out.text(Text(title, "dim"))
    count = 0
    async for page in _pages(rows):
        if question.is_record and not out.is_json:
            out.record(page[0])
        else:
            out.rows(page)
        count += len(page)
    if not count:
        out.text("none")


async def _pages(rows: AsyncIterator[Record]) -> AsyncIterator[list[Record]]:
    page: list[Record] = []
    async for row in rows:
        page.append(row)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _as_of(
    settings: Settings,
    out: Output,
    question: str,
    name: str | None,
    position: int | None,
    time: datetime | None,
    limit: int,
    all_of_them: bool,
) -> None:
    """Show what readers would have been shown at a position or a time.

    \b
    channels          all channels
    members CHANNEL   who is in a channel
    messages CHANNEL  a channel's newest messages
    dms USER          the newest direct messages from and to somebody
    online            who is connected
    account USER      one account, by its name of then or its id

    Messages that were deleted later are shown, since they still stood; what was erased is gone at every position.
    A time stands for the last event that was recorded at or before it.
    """
    asked = QUESTIONS[question]
    if (asked.about is None) != (name is None):
        raise click.UsageError(f"`asof {question}` takes {f'a {asked.about}' if asked.about else 'no name'}")
    if (position is None) == (time is None):
        raise click.UsageError("give either --position or --time")
    then: Place | None = time if position is None else position
    assert then is not None  # noqa: S101 - one of the two was given
    with database(settings) as conninfo:
        asyncio.run(ask(conninfo, out, asked, name or "", then, limit=None if all_of_them else limit))


COMMAND = Command(
    "asof",
    _as_of,
    (
        click.Argument(["question"], type=click.Choice(list(QUESTIONS))),
        click.Argument(["name"], required=False),
        click.Option(["--position"], type=POSITION, help="After the event at this position."),
        click.Option(["--time"], type=moment, metavar="TIME", help=f"At this time: {MOMENTS}."),
        click.Option(
            ["--limit"], type=click.IntRange(1, 1_000_000), default=LIMIT, show_default=True, help="How many messages."
        ),
        click.Option(["--all", "all_of_them"], is_flag=True, help="All messages."),
    ),
    examples=(
        "asof messages den --time '2026-11-22 14:00'",
        "asof members den --position 1200",
        "asof online --time 2h",
    ),
)
