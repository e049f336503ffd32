"""Direct messages, without those that were deleted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from eventstore.erasure import named_positions
from eventstore.projection import Change, Projection, Source, number, text
from eventstore.reader import Reader
from eventstore.statements import Statement
from projections.messages import deleted_ids, range_of, username
from projections.schema import MOMENT, metadata, told

dms = sa.Table(
    "dms",
    metadata,
    sa.Column("message_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sender_id", sa.BigInteger, nullable=False),
    sa.Column("recipient_id", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("sent_at", MOMENT, nullable=False),
    sa.Index(None, "sender_id", "message_id"),
    sa.Index(None, "recipient_id", "message_id"),
)


def _sent(source: Source) -> sa.Insert:
    rows = sa.select(
        source.c.position,
        number(source, "sender_id"),
        number(source, "recipient_id"),
        text(source, "text"),
        source.c.recorded_at,
    ).where(told(source, "DirectMessageSent"), source.c.position.not_in(deleted_ids(source)))
    return sa.insert(dms).from_select(["message_id", "sender_id", "recipient_id", "text", "sent_at"], rows)


def _deleted(source: Source) -> sa.Delete:
    return sa.delete(dms).where(dms.c.message_id.in_(deleted_ids(source)))


def _erased(source: Source) -> sa.Delete:
    return sa.delete(dms).where(dms.c.message_id.in_(named_positions(source)))


projection = Projection(
    name="dms",
    tables=(dms,),
    changes=(
        Change(frozenset({"DirectMessageSent"}), _sent),
        Change(frozenset({"MessageDeleted"}), _deleted),
        Change(frozenset({"Erased"}), _erased),
    ),
    # A message is sent once, and deleted or erased for ever.
    unordered=True,
)


class DirectMessage(msgspec.Struct, frozen=True):
    """A direct message as its two ends see it, with their ids for those who check rights."""

    message_id: int
    sender: str
    text: str
    recipient: str
    sent_at: datetime
    sender_id: int
    recipient_id: int


def _read(source: sa.FromClause) -> sa.Select[tuple[int, str, str, str, datetime, int, int]]:
    return sa.select(
        source.c.message_id,
        username(source.c.sender_id),
        source.c.text,
        username(source.c.recipient_id),
        source.c.sent_at,
        source.c.sender_id,
        source.c.recipient_id,
    )


def _newest(source: sa.FromClause) -> sa.Select[Any]:
    return sa.select(source).order_by(source.c.message_id.desc()).limit(sa.bindparam("count", type_=sa.BigInteger))


def _end(column: sa.Column[int]) -> sa.Select[Any]:
    """The newest messages of which the account is one end."""
    newest = sa.select(dms).where(range_of(column, "account_id")).order_by(column.desc(), dms.c.message_id.desc())
    return sa.select(newest.limit(sa.bindparam("count", type_=sa.BigInteger)).subquery())


# The newest of both directions lie within the newest of each: two short index ranges, never a scan with OR.
# UNION, since a message to oneself is in both.
_EITHER = sa.union(_end(dms.c.sender_id), _end(dms.c.recipient_id)).subquery("either")
_RECENT = _newest(_EITHER).subquery("recent")
_OF_ACCOUNT = Statement(_read(_RECENT).order_by(_RECENT.c.message_id.desc()))
_MISSED_OF_RECIPIENT = (
    sa.select(dms)
    .where(
        range_of(dms.c.recipient_id, "account_id"),
        dms.c.message_id > sa.bindparam("after", type_=sa.BigInteger),
        dms.c.message_id <= sa.bindparam("through", type_=sa.BigInteger),
    )
    .order_by(dms.c.recipient_id, dms.c.message_id)
    .limit(sa.bindparam("limit", type_=sa.BigInteger))
    .subquery("missed")
)
_MISSED = Statement(_read(_MISSED_OF_RECIPIENT).order_by(_MISSED_OF_RECIPIENT.c.message_id))


def _page_of_account() -> Statement:
    """The oldest `:limit` messages behind `:after` of which the account is one end: within the oldest of each end."""

    def behind(column: sa.Column[int]) -> sa.Select[Any]:
        oldest = (
            sa.select(dms)
            .where(range_of(column, "account_id"), dms.c.message_id > sa.bindparam("after", type_=sa.BigInteger))
            .order_by(column, dms.c.message_id)
            .limit(sa.bindparam("limit", type_=sa.BigInteger))
        )
        return sa.select(oldest.subquery())

    either = sa.union(behind(dms.c.sender_id), behind(dms.c.recipient_id)).subquery("either")
    oldest = sa.select(either).order_by(either.c.message_id).limit(sa.bindparam("limit", type_=sa.BigInteger))
    page = oldest.subquery("page")
    return Statement(_read(page).order_by(page.c.message_id))


_PAGE_OF_ACCOUNT = _page_of_account()
_BY_ID = Statement(_read(dms).where(dms.c.message_id == sa.bindparam("message_id", type_=sa.BigInteger)))


class DirectMessages:
    """The queries about direct messages."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def newest_of_account(self, account_id: int, count: int) -> list[DirectMessage]:
        """The newest `count` direct messages that somebody sent or received, oldest first."""
        rows = await self._reader.fetch(_OF_ACCOUNT, account_id=account_id, count=count)
        return [DirectMessage(*row) for row in reversed(rows)]

    async def missed(self, account_id: int, after: int, through: int, limit: int) -> list[DirectMessage]:
        """The oldest `limit` messages behind `after` up to `through` that the account received, oldest first."""
        bounds = {"account_id": account_id, "after": after, "through": through, "limit": limit}
        return [DirectMessage(*row) for row in await self._reader.fetch(_MISSED, **bounds)]

    async def by_id(self, message_id: int) -> DirectMessage | None:
        """The direct message of this id, unless it was deleted."""
        row = await self._reader.fetch_one(_BY_ID, message_id=message_id)
        return None if row is None else DirectMessage(*row)

    async def of_account(self, account_id: int, after: int, limit: int) -> list[DirectMessage]:
        """The oldest `limit` direct messages behind `after` that somebody sent or received, oldest first."""
        bounds = {"account_id": account_id, "after": after, "limit": limit}
        return [DirectMessage(*row) for row in await self._reader.fetch(_PAGE_OF_ACCOUNT, **bounds)]
