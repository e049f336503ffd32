"""Channels and who is in them."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from chat.commands import Channel
from eventstore.projection import Change, Projection, Source, number, text
from eventstore.reader import Reader
from eventstore.statements import Statement
from eventstore.tables import NAME
from projections.accounts import accounts
from projections.schema import metadata, told

channels = sa.Table(
    "channels",
    metadata,
    sa.Column("channel_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("safe_name", NAME, nullable=False, unique=True),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("channel_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("account_id", sa.BigInteger, primary_key=True, autoincrement=False),
    # Where in the log the membership began: the order in which an account's channels are listed.
    sa.Column("since", sa.BigInteger, nullable=False),
    sa.Index(None, "account_id", "since"),
)


def _created(source: Source) -> sa.Insert:
    rows = sa.select(source.c.position, text(source, "name"), text(source, "safe_name")).where(
        told(source, "ChannelCreated")
    )
    return sa.insert(channels).from_select(["channel_id", "name", "safe_name"], rows)


def _creator_joined(source: Source) -> sa.Insert:
    creator = number(source, "creator_id")
    rows = sa.select(source.c.position, creator, source.c.position).where(
        told(source, "ChannelCreated"), creator.is_not(None)
    )
    return sa.insert(members).from_select(["channel_id", "account_id", "since"], rows)


def _added(source: Source) -> sa.Insert:
    rows = sa.select(number(source, "channel_id"), number(source, "account_id"), source.c.position).where(
        told(source, "MemberAdded")
    )
    return sa.insert(members).from_select(["channel_id", "account_id", "since"], rows)


projection = Projection(
    name="channels",
    tables=(channels, members),
    changes=(
        Change(frozenset({"ChannelCreated"}), _created),
        Change(frozenset({"ChannelCreated"}), _creator_joined),
        Change(frozenset({"MemberAdded"}), _added),
    ),
)

_BY_NAME = Statement(
    sa.select(channels.c.channel_id, channels.c.name).where(channels.c.safe_name == sa.bindparam("safe", type_=sa.Text))
)
_BY_ID = Statement(
    sa.select(channels.c.channel_id, channels.c.name).where(
        channels.c.channel_id == sa.bindparam("channel_id", type_=sa.BigInteger)
    )
)
_MEMBERSHIP = Statement(
    sa.select(members.c.since)
    .where(members.c.channel_id == sa.bindparam("channel_id", type_=sa.BigInteger))
    .where(members.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger))
)
_OF_ACCOUNT = Statement(
    sa.select(channels.c.channel_id, channels.c.name, members.c.since)
    .join_from(members, channels, members.c.channel_id == channels.c.channel_id)
    .where(members.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger))
    .order_by(members.c.since)
)
_ALL = Statement(
    sa.select(channels.c.channel_id, channels.c.name, sa.func.count(members.c.account_id))
    .join_from(channels, members, members.c.channel_id == channels.c.channel_id, isouter=True)
    .group_by(channels.c.channel_id)
    .order_by(channels.c.channel_id)
)
_MEMBERS = Statement(
    sa.select(members.c.account_id, accounts.c.username, members.c.since)
    .join_from(members, accounts, accounts.c.account_id == members.c.account_id, isouter=True)
    .where(members.c.channel_id == sa.bindparam("channel_id", type_=sa.BigInteger))
    .order_by(members.c.since)
)


class Member(msgspec.Struct, frozen=True):
    """A member of a channel, and the position at which the membership began; erased ones have no name."""

    account_id: int
    username: str | None
    since: int


class Channels:
    """The queries about channels and their members."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def by_name(self, safe: str) -> Channel | None:
        """The channel of this safe name."""
        row = await self._reader.fetch_one(_BY_NAME, safe=safe)
        return None if row is None else Channel(*row)

    async def by_id(self, channel_id: int) -> Channel | None:
        """The channel of this id."""
        row = await self._reader.fetch_one(_BY_ID, channel_id=channel_id)
        return None if row is None else Channel(*row)

    async def is_member(self, channel_id: int, account_id: int) -> bool:
        """Whether the account is a member of the channel."""
        return await self._reader.fetch_one(_MEMBERSHIP, channel_id=channel_id, account_id=account_id) is not None

    async def of_account(self, account_id: int) -> list[Channel]:
        """The channels that the account is a member of, in the order in which it came to them."""
        return [channel for channel, _ in await self.memberships(account_id)]

    async def memberships(self, account_id: int) -> list[tuple[Channel, int]]:
        """As `of_account`, each with the position at which the account came to it."""
        rows = await self._reader.fetch(_OF_ACCOUNT, account_id=account_id)
        return [(Channel(channel_id, name), since) for channel_id, name, since in rows]

    async def all(self) -> list[tuple[Channel, int]]:
        """All channels in the order in which they were made, each with the number of its members."""
        rows = await self._reader.fetch(_ALL)
        return [(Channel(channel_id, name), int(count)) for channel_id, name, count in rows]

    async def members(self, channel_id: int) -> list[Member]:
        """The members of a channel, in the order in which they came to it."""
        return [Member(*row) for row in await self._reader.fetch(_MEMBERS, channel_id=channel_id)]
