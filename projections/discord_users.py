"""People on Discord: who has written to the bot, by which name, and which accounts they are.

Each is kept by the name of their stream, so that of one who was erased still stands where, and nothing else.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from chat.bridging import DiscordUser
from chat.commands import Account
from chat.names import DISCORD_USER_STREAM
from eventstore.erasure import named_positions
from eventstore.projection import Change, Projection, Source, number, of_type, text
from eventstore.reader import Reader
from eventstore.statements import Statement
from eventstore.tables import NAME
from projections.accounts import accounts
from projections.schema import metadata, named_by

discord_users = sa.Table(
    "discord_users",
    metadata,
    sa.Column("user_key", NAME, primary_key=True),
    # Both null once what was said last is erased.
    sa.Column("discord_user_id", sa.BigInteger),
    sa.Column("username", sa.Text),
    # Where in the log that was said.
    sa.Column("seen", sa.BigInteger, nullable=False),
    sa.Index(None, "discord_user_id"),
    sa.Index("discord_users_username_idx", sa.func.lower(sa.literal_column("username"))),
)

discord_links = sa.Table(
    "discord_links",
    metadata,
    sa.Column("user_key", NAME, primary_key=True),
    # Null once what was said last is erased.
    sa.Column("discord_user_id", sa.BigInteger),
    # Null when that was no link, or is erased.
    sa.Column("account_id", sa.BigInteger),
    sa.Column("since", sa.BigInteger, nullable=False),
    sa.Index(None, "discord_user_id"),
    sa.Index(None, "account_id", "since"),
)

_SEEN = ("DiscordUserSeen",)
_LINKING = ("DiscordLinked", "DiscordUnlinked")


def _last(source: Source, table: sa.Table, value: sa.ColumnElement[Any], *types: str) -> sa.Insert:
    """Keeps what the source's last event of these types says of each person, which is nothing if it was erased."""
    user_key = named_by(source, DISCORD_USER_STREAM)
    last = (
        sa.select(user_key, number(source, "discord_user_id"), value, source.c.position)
        .where(of_type(source, *types))
        .ext(distinct_on(user_key))
        .order_by(user_key, source.c.position.desc())
    )
    key, *columns = [column.name for column in table.c]
    upsert = insert(table).from_select([key, *columns], last)
    return upsert.on_conflict_do_update(
        index_elements=[table.c[key]], set_={name: upsert.excluded[name] for name in columns}
    )


def _seen(source: Source) -> sa.Insert:
    return _last(source, discord_users, text(source, "username"), *_SEEN)


def _linked(source: Source) -> sa.Insert:
    account_id = sa.case((of_type(source, "DiscordLinked"), number(source, "account_id")))
    return _last(source, discord_links, account_id, *_LINKING)


def _erased(source: Source, table: sa.Table, place: sa.Column[Any], *types: str) -> sa.Update:
    # Two changes of one append may not touch the same row.
    anew = sa.select(named_by(source, DISCORD_USER_STREAM)).where(of_type(source, *types))
    _key, *values, _place = table.c
    return (
        sa.update(table)
        .where(place.in_(named_positions(source)), table.c.user_key.not_in(anew))
        .values({column.name: sa.null() for column in values})
    )


def _erased_users(source: Source) -> sa.Update:
    return _erased(source, discord_users, discord_users.c.seen, *_SEEN)


def _erased_links(source: Source) -> sa.Update:
    return _erased(source, discord_links, discord_links.c.since, *_LINKING)


projection = Projection(
    name="discord_users",
    tables=(discord_users, discord_links),
    changes=(
        Change(frozenset(_SEEN), _seen),
        Change(frozenset(_LINKING), _linked),
        Change(frozenset({"Erased"}), _erased_users),
        Change(frozenset({"Erased"}), _erased_links),
    ),
)

_USER_ID = sa.bindparam("discord_user_id", type_=sa.BigInteger)
_BY_USERNAME = Statement(
    sa.select(discord_users.c.discord_user_id, discord_users.c.username)
    .where(
        sa.func.lower(discord_users.c.username) == sa.func.lower(sa.bindparam("username", type_=sa.Text)),
    )
    .order_by(discord_users.c.seen.desc())
    .limit(sa.literal_column("1"))
)
_BY_ACCOUNT = Statement(
    sa.select(
        discord_links.c.discord_user_id,
        # Who never wrote to the bot has no name here.
        sa.func.coalesce(discord_users.c.username, sa.cast(discord_links.c.discord_user_id, sa.Text)),
    )
    .join_from(discord_links, discord_users, discord_users.c.user_key == discord_links.c.user_key, isouter=True)
    .where(discord_links.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger))
    .order_by(discord_links.c.since.desc())
    .limit(sa.literal_column("1"))
)
_ACCOUNT_OF = Statement(
    sa.select(accounts.c.account_id, accounts.c.username)
    .join_from(discord_links, accounts, accounts.c.account_id == discord_links.c.account_id)
    .where(discord_links.c.discord_user_id == _USER_ID, accounts.c.username.is_not(None))
)
_USERNAME_OF = Statement(sa.select(discord_users.c.username).where(discord_users.c.discord_user_id == _USER_ID))


class DiscordUsers:
    """The queries about people on Discord."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def by_username(self, username: str) -> DiscordUser | None:
        """Who was seen last under a name, whatever its case."""
        row = await self._reader.fetch_one(_BY_USERNAME, username=username)
        return None if row is None else DiscordUser(*row)

    async def by_account(self, account_id: int) -> DiscordUser | None:
        """Who is this account: of several the one who was linked last."""
        row = await self._reader.fetch_one(_BY_ACCOUNT, account_id=account_id)
        return None if row is None else DiscordUser(*row)

    async def account_of(self, discord_user_id: int) -> Account | None:
        """Which account somebody is, unless it was erased."""
        row = await self._reader.fetch_one(_ACCOUNT_OF, discord_user_id=discord_user_id)
        return None if row is None else Account(*row)

    async def username_of(self, discord_user_id: int) -> str | None:
        """The name under which somebody was seen last."""
        row = await self._reader.fetch_one(_USERNAME_OF, discord_user_id=discord_user_id)
        return None if row is None else row[0]
