"""Messages in channels, as they were last edited, without those that were deleted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from chat.commands import Channel
from chat.names import ANNOUNCE, ERASED_NAME
from eventstore.erasure import named_positions
from eventstore.projection import Change, Projection, Source, number, text
from eventstore.reader import Reader
from eventstore.statements import Statement, inline
from projections.accounts import accounts
from projections.channels import channels, members
from projections.schema import MOMENT, metadata, told

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("message_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("channel_id", sa.BigInteger, nullable=False),
    sa.Column("sender_id", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("sent_at", MOMENT, nullable=False),
    # Where in the log it got this text; null: where it was sent.
    sa.Column("edited", sa.BigInteger),
    # Both read backwards from their end: the newest messages of a channel, or of a sender, are one index range.
    sa.Index(None, "channel_id", "message_id"),
    sa.Index(None, "sender_id", "message_id"),
)


def deleted_ids(source: Source) -> sa.Select[int]:
    """The ids of the messages of either kind that the source's events delete."""
    # One null (erased data) would make NOT IN true of nothing.
    return sa.select(number(source, "message_id")).where(told(source, "MessageDeleted"))


def _sent(source: Source) -> sa.Insert:
    rows = sa.select(
        source.c.position,
        number(source, "channel_id"),
        number(source, "sender_id"),
        text(source, "text"),
        source.c.recorded_at,
    ).where(
        told(source, "MessageSent"),
        # Sent and deleted in one range: never to be seen. NOT IN is computed once for the range, as a hash.
        source.c.position.not_in(deleted_ids(source)),
    )
    return sa.insert(messages).from_select(["message_id", "channel_id", "sender_id", "text", "sent_at"], rows)


def _edited(source: Source) -> sa.Update:
    message_id = number(source, "message_id")
    last = (
        sa.select(message_id.label("message_id"), text(source, "text").label("text"), source.c.position)
        # Two changes of one append may not touch the same row. The message itself comes by an earlier append, since
        # whoever edits it knows its id.
        .where(
            told(source, "MessageEdited"),
            message_id.not_in(deleted_ids(source)),
            message_id.not_in(named_positions(source)),
        )
        .ext(distinct_on(message_id))
        .order_by(message_id, source.c.position.desc())
        .subquery("last")
    )
    before = messages.c.edited
    return (
        sa.update(messages)
        # Whatever the order of the ranges, the last edit stays.
        .where(messages.c.message_id == last.c.message_id, sa.or_(before.is_(None), before < last.c.position))
        .values(text=last.c.text, edited=last.c.position)
    )


def _deleted(source: Source) -> sa.Delete:
    return sa.delete(messages).where(messages.c.message_id.in_(deleted_ids(source)))


def _erased(source: Source) -> sa.Delete:
    return sa.delete(messages).where(messages.c.message_id.in_(named_positions(source)))


projection = Projection(
    name="messages",
    tables=(messages,),
    changes=(
        Change(frozenset({"MessageSent"}), _sent),
        Change(frozenset({"MessageEdited"}), _edited),
        Change(frozenset({"MessageDeleted"}), _deleted),
        Change(frozenset({"Erased"}), _erased),
    ),
    # A message is sent once, and deleted or erased for ever. Its edits are erased with it, never alone.
    unordered=True,
)


class Message(msgspec.Struct, frozen=True):
    """A message as its readers see it, with `channel_id` and `sender_id` for those who check rights."""

    message_id: int
    sender: str
    text: str
    channel: str
    sent_at: datetime
    channel_id: int
    sender_id: int


def username(account_id: sa.ColumnElement[int]) -> sa.ScalarSelect[str]:
    """The name of an account, looked up row by row; of one that was erased, what no account can be called.

    A join would leave it to the planner's guess of the rows whether all accounts are read for fifty messages.
    """
    before, behind = map(inline, ERASED_NAME)
    erased = sa.func.concat(before, accounts.c.account_id, behind)
    name = sa.func.coalesce(accounts.c.username, erased)
    return sa.select(name).where(accounts.c.account_id == account_id).scalar_subquery()


_CHANNEL = sa.select(channels.c.name).where(channels.c.channel_id == messages.c.channel_id).scalar_subquery()


def _read(channel: sa.ColumnElement[str]) -> sa.Select[Any]:
    return sa.select(
        messages.c.message_id,
        username(messages.c.sender_id),
        messages.c.text,
        channel,
        messages.c.sent_at,
        messages.c.channel_id,
        messages.c.sender_id,
    )


def range_of(column: sa.Column[int], value: str) -> sa.ColumnElement[bool]:
    """The condition that `column` is `:value`, as a range: for an index of the column and the message's id.

    An equality would let the planner walk all messages backwards by their ids until it has met enough of the right
    ones, which for somebody who writes rarely is the whole table.
    """
    wanted = sa.bindparam(value, type_=sa.BigInteger)
    return column.between(wanted, wanted)


def _newest(read: sa.Select[Any], column: sa.Column[int], value: str) -> Statement:
    """The newest `:count` messages whose `column` is `:value`, newest first."""
    return Statement(
        read.where(range_of(column, value))
        .order_by(column.desc(), messages.c.message_id.desc())
        .limit(sa.bindparam("count", type_=sa.BigInteger))
    )


# Who asks for a channel knows its name.
_OF_CHANNEL = _newest(_read(sa.bindparam("name", type_=sa.Text)), messages.c.channel_id, "channel_id")
_OF_SENDER = _newest(_read(_CHANNEL), messages.c.sender_id, "sender_id")
_BY_ID = Statement(_read(_CHANNEL).where(messages.c.message_id == sa.bindparam("message_id", type_=sa.BigInteger)))


def _missed() -> Statement:
    """The messages behind `:after` up to `:through` in all channels that the account reads, oldest first.

    Of each channel an index range, from where the account came to it; the oldest of all lie within the oldest of each.
    """
    bounds = {name: sa.bindparam(name, type_=sa.BigInteger) for name in ("account_id", "after", "through", "limit")}
    joined = sa.select(members.c.channel_id, members.c.since).where(members.c.account_id == bounds["account_id"])
    announced = sa.select(channels.c.channel_id, sa.literal_column("0", sa.BigInteger)).where(
        channels.c.safe_name == inline(ANNOUNCE)
    )
    read = sa.union_all(joined, announced).subquery("read")
    of_channel = (
        sa.select(messages)
        .where(
            messages.c.channel_id == read.c.channel_id,
            messages.c.message_id > sa.func.greatest(read.c.since, bounds["after"]),
            messages.c.message_id <= bounds["through"],
        )
        .order_by(messages.c.channel_id, messages.c.message_id)
        .limit(bounds["limit"])
        .lateral("of_channel")
    )
    missed = (
        sa.select(of_channel)
        .select_from(read.join(of_channel, sa.true()))
        .order_by(of_channel.c.message_id)
        .limit(bounds["limit"])
        .subquery("missed")
    )
    channel = sa.select(channels.c.name).where(channels.c.channel_id == missed.c.channel_id).scalar_subquery()
    c = missed.c
    columns = (c.message_id, username(c.sender_id), c.text, channel, c.sent_at, c.channel_id, c.sender_id)
    return Statement(sa.select(*columns).order_by(c.message_id))


_MISSED = _missed()
_PAGE_OF_CHANNEL = Statement(
    _read(sa.bindparam("name", type_=sa.Text))
    .where(
        range_of(messages.c.channel_id, "channel_id"),
        messages.c.message_id > sa.bindparam("after", type_=sa.BigInteger),
    )
    .order_by(messages.c.channel_id, messages.c.message_id)
    .limit(sa.bindparam("limit", type_=sa.BigInteger))
)


class Messages:
    """The queries about messages in channels."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def newest_in_channel(self, channel: Channel, count: int) -> list[Message]:
        """The newest `count` messages of a channel, oldest first."""
        rows = await self._reader.fetch(_OF_CHANNEL, name=channel.name, channel_id=channel.channel_id, count=count)
        return [Message(*row) for row in reversed(rows)]

    async def newest_of_sender(self, sender_id: int, count: int) -> list[Message]:
        """The newest `count` messages that somebody sent to channels, oldest first."""
        rows = await self._reader.fetch(_OF_SENDER, sender_id=sender_id, count=count)
        return [Message(*row) for row in reversed(rows)]

    async def missed(self, account_id: int, after: int, through: int, limit: int) -> list[Message]:
        """The oldest `limit` messages behind `after` up to `through` that the account can read, oldest first.

        Those of its channels since it came to them, and the announcements.
        """
        bounds = {"account_id": account_id, "after": after, "through": through, "limit": limit}
        return [Message(*row) for row in await self._reader.fetch(_MISSED, **bounds)]

    async def by_id(self, message_id: int) -> Message | None:
        """The message of this id, unless it was deleted."""
        row = await self._reader.fetch_one(_BY_ID, message_id=message_id)
        return None if row is None else Message(*row)

    async def in_channel(self, channel: Channel, after: int, limit: int) -> list[Message]:
        """The oldest `limit` messages of a channel behind `after`, oldest first."""
        bounds = {"channel_id": channel.channel_id, "after": after, "limit": limit}
        return [Message(*row) for row in await self._reader.fetch(_PAGE_OF_CHANNEL, name=channel.name, **bounds)]
