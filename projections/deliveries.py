"""What is delivered to Discord: the texts that are to go there, what became of each, and the copies that there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, distinct_on, insert

from chat.bridging import Copy, Delivery, Destination
from eventstore.connection import Row
from eventstore.erasure import named_positions
from eventstore.projection import Change, Projection, Source, number, of_type, text
from eventstore.reader import Reader
from eventstore.statements import Statement, inline
from eventstore.tables import NAME
from eventstore.wire import bigint_array
from projections.messages import deleted_ids, range_of, username
from projections.schema import MOMENT, metadata, told

_IDS = ARRAY(sa.BigInteger)
_ONE = sa.literal_column("1", sa.BigInteger)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("delivery_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stream", NAME, nullable=False),
    sa.Column("sender_id", sa.BigInteger, nullable=False),
    # The message that it is, which then stands right before it; null: the text is no message here.
    sa.Column("message_id", sa.BigInteger),
    sa.Column("discord_channel_id", sa.BigInteger),
    sa.Column("discord_user_id", sa.BigInteger),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("requested_at", MOMENT, nullable=False),
    sa.Column("discord_message_ids", _IDS),
    sa.Column("failed", sa.Text),
    # Where and when the log says that it was delivered, or that it failed.
    sa.Column("settled", sa.BigInteger),
    sa.Column("settled_at", MOMENT),
    # Whether its message was deleted, be it delivered or not.
    sa.Column("withdrawn", sa.Boolean, nullable=False),
    # The account that the person was called by; null: they were called by their name on Discord.
    sa.Column("recipient_id", sa.BigInteger),
    sa.Index(None, "sender_id", "delivery_id"),
)
is_waiting = sa.and_(
    deliveries.c.discord_message_ids.is_(None), deliveries.c.failed.is_(None), sa.not_(deliveries.c.withdrawn)
)
sa.Index(
    "deliveries_waiting_idx",
    deliveries.c.discord_channel_id,
    deliveries.c.discord_user_id,
    deliveries.c.delivery_id,
    postgresql_where=is_waiting,
)
sa.Index(
    "deliveries_settled_idx",
    deliveries.c.sender_id,
    deliveries.c.settled,
    postgresql_where=deliveries.c.settled.is_not(None),
)

discord_copies = sa.Table(
    "discord_copies",
    metadata,
    sa.Column("discord_message_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("discord_channel_id", sa.BigInteger, nullable=False),
    # The delivery of which it is a part, or the message that came from there as this one.
    sa.Column("origin_id", sa.BigInteger, nullable=False),
    sa.Column("message_id", sa.BigInteger),
    sa.Column("received", sa.Boolean, nullable=False),
    # What it is a copy of was deleted or erased, so it is to go.
    sa.Column("doomed", sa.Boolean, nullable=False),
    sa.Index(None, "origin_id"),
    sa.Index(None, "message_id"),
)
sa.Index(
    "discord_copies_doomed_idx",
    discord_copies.c.discord_message_id,
    postgresql_where=discord_copies.c.doomed,
)
sa.Index(
    "discord_copies_received_idx",
    discord_copies.c.discord_channel_id,
    discord_copies.c.discord_message_id,
    postgresql_where=discord_copies.c.received,
)


def _each_id(source: Source) -> sa.TableValuedAlias:
    """The ids of Discord's messages that an event of the source names, as rows."""
    ids = sa.func.json_array_elements_text(source.c.data[inline("discord_message_ids")])
    return ids.table_valued(sa.column("id", sa.Text), with_ordinality="place").render_derived(name="each")


def _ids_of(source: Source) -> sa.ColumnElement[Any]:
    """The ids of Discord's messages that an event names, in order."""
    each = _each_id(source)
    ids = sa.select(sa.cast(each.c.id, sa.BigInteger)).order_by(each.c.place)
    return sa.func.array(ids.scalar_subquery(), type_=_IDS)


def _requested(source: Source) -> sa.Insert:
    # Whoever settles it knows its id: so that comes by a later append.
    is_message = sa.cast(text(source, "of_message"), sa.Boolean)
    message_id = sa.case((is_message, source.c.position - _ONE))
    rows = sa.select(
        source.c.position,
        source.c.stream,
        number(source, "sender_id"),
        message_id,
        number(source, "discord_channel_id"),
        number(source, "discord_user_id"),
        text(source, "text"),
        source.c.recorded_at,
        sa.func.coalesce(message_id.in_(deleted_ids(source)), sa.false()),
        number(source, "recipient_id"),
    ).where(told(source, "DiscordMessageRequested"))
    columns = ["delivery_id", "stream", "sender_id", "message_id", "discord_channel_id", "discord_user_id", "text"]
    return sa.insert(deliveries).from_select([*columns, "requested_at", "withdrawn", "recipient_id"], rows)


def _last_settled(source: Source) -> sa.Subquery:
    """What the source says last of each delivery that it settles."""
    delivery_id = number(source, "delivery_id")
    return (
        sa.select(
            delivery_id.label("delivery_id"),
            sa.case((of_type(source, "DiscordMessageDelivered"), _ids_of(source))).label("discord_message_ids"),
            text(source, "reason").label("failed"),
            source.c.position.label("settled"),
            source.c.recorded_at.label("settled_at"),
        )
        .where(told(source, "DiscordMessageDelivered", "DiscordMessageFailed"))
        .ext(distinct_on(delivery_id))
        .order_by(delivery_id, source.c.position.desc())
        .subquery("last")
    )


def _of_messages(message_ids: sa.Select[int]) -> sa.Select[Any]:
    """The deliveries of messages, each of which stands right behind its own."""
    [message_id] = message_ids.subquery("given").c
    behind = sa.select(message_id + _ONE)
    return sa.select(deliveries.c.delivery_id).where(
        deliveries.c.delivery_id.in_(behind), deliveries.c.message_id.is_not(None)
    )


def _of_erased(source: Source) -> sa.CompoundSelect[Any]:
    return sa.union(named_positions(source), _of_messages(named_positions(source)))


def _changed(source: Source) -> sa.Update:
    # One statement for all types: two of one append may not change the same row.
    last = _last_settled(source)
    deleted = _of_messages(deleted_ids(source)).subquery("deleted")
    delivery_id = sa.func.coalesce(last.c.delivery_id, deleted.c.delivery_id)
    settling = ("discord_message_ids", "failed", "settled", "settled_at")
    said = (
        sa.select(
            delivery_id.label("delivery_id"),
            deleted.c.delivery_id.is_not(None).label("withdrawn"),
            *(last.c[name] for name in settling),
        )
        .select_from(last.join(deleted, last.c.delivery_id == deleted.c.delivery_id, full=True))
        .where(delivery_id.not_in(_of_erased(source)))
        .subquery("said")
    )
    c = deliveries.c
    is_settled = said.c.settled.is_not(None)
    values = {name: sa.case((is_settled, said.c[name]), else_=c[name]) for name in settling}
    return (
        sa.update(deliveries)
        .where(c.delivery_id == said.c.delivery_id)
        .values(withdrawn=sa.or_(c.withdrawn, said.c.withdrawn), **values)
    )


def _erased(source: Source) -> sa.Delete:
    return sa.delete(deliveries).where(deliveries.c.delivery_id.in_(_of_erased(source)))


def _delivered(source: Source) -> sa.Insert:
    each = _each_id(source)
    delivery_id, message_id = number(source, "delivery_id"), number(source, "message_id")
    # What was deleted or erased before Discord's answer came is withdrawn, or no delivery any more.
    stands = sa.exists().where(deliveries.c.delivery_id == delivery_id, sa.not_(deliveries.c.withdrawn))
    rows = (
        sa.select(
            sa.cast(each.c.id, sa.BigInteger),
            number(source, "discord_channel_id"),
            delivery_id,
            message_id,
            sa.false(),
            sa.or_(sa.not_(stands), delivery_id.in_(named_positions(source)), _is_gone(source, message_id)),
        )
        .select_from(source.join(each, sa.true()))
        .where(told(source, "DiscordMessageDelivered"))
    )
    return _insert_copies(rows)


def _received(source: Source) -> sa.Insert:
    message_id = source.c.position - _ONE
    rows = sa.select(
        number(source, "discord_message_id"),
        number(source, "discord_channel_id"),
        message_id,
        message_id,
        sa.true(),
        _is_gone(source, message_id),
    ).where(told(source, "DiscordMessageReceived"))
    return _insert_copies(rows)


def _is_gone(source: Source, message_id: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Whether the source deletes or erases a message; false of none."""
    gone = sa.or_(message_id.in_(deleted_ids(source)), message_id.in_(named_positions(source)))
    return sa.func.coalesce(gone, sa.false())


def _insert_copies(rows: sa.Select[*tuple[Any, ...]]) -> sa.Insert:
    upsert = insert(discord_copies).from_select([column.name for column in discord_copies.c], rows)
    # A message of Discord's is a copy of one thing: of whatever it is said to be later, too, the first word stands.
    return upsert.on_conflict_do_nothing()


def _doomed(source: Source) -> sa.Update:
    c = discord_copies.c
    by_id = ((c.message_id, deleted_ids), (c.message_id, named_positions), (c.origin_id, named_positions))
    gone = sa.union(*(sa.select(c.discord_message_id).where(column.in_(ids(source))) for column, ids in by_id))
    return (
        sa.update(discord_copies)
        .where(c.discord_message_id.in_(gone), c.discord_message_id.not_in(_withdrawn_ids(source)))
        .values(doomed=sa.true())
    )


def _withdrawn_ids(source: Source) -> sa.Select[Any]:
    each = _each_id(source)
    ids = sa.select(sa.cast(each.c.id, sa.BigInteger)).select_from(source.join(each, sa.true()))
    return ids.where(told(source, "DiscordMessageWithdrawn"))


def _withdrawn(source: Source) -> sa.Delete:
    return sa.delete(discord_copies).where(discord_copies.c.discord_message_id.in_(_withdrawn_ids(source)))


_GOING = frozenset({"MessageDeleted", "Erased"})

projection = Projection(
    name="deliveries",
    tables=(deliveries, discord_copies),
    changes=(
        Change(frozenset({"DiscordMessageRequested"}), _requested),
        Change(frozenset({"DiscordMessageDelivered", "DiscordMessageFailed", "MessageDeleted"}), _changed),
        Change(frozenset({"Erased"}), _erased),
        # Behind those, since it looks at what they change.
        Change(frozenset({"DiscordMessageDelivered"}), _delivered),
        Change(frozenset({"DiscordMessageReceived"}), _received),
        Change(_GOING, _doomed),
        Change(frozenset({"DiscordMessageWithdrawn"}), _withdrawn),
    ),
)

_LIMIT = sa.bindparam("limit", type_=sa.BigInteger)
_DELIVERY_ID = sa.bindparam("delivery_id", type_=sa.BigInteger)


def _read(rows: sa.FromClause) -> sa.Select[Any]:
    c = rows.c
    return sa.select(
        c.delivery_id,
        c.stream,
        c.sender_id,
        username(c.sender_id),
        c.message_id,
        c.discord_channel_id,
        c.discord_user_id,
        c.text,
        c.requested_at,
        c.discord_message_ids,
        c.failed,
        c.settled,
        c.settled_at,
        c.withdrawn,
        username(c.recipient_id),
    )


def _delivery(row: Row) -> Delivery:
    values: list[Any] = list(row)
    values[5:7] = [Destination(*values[5:7])]
    ids = values[8]
    values[8] = None if ids is None else tuple(ids)
    return Delivery(*values)


def _waiting(*destination: sa.ColumnElement[bool]) -> Statement:
    read = _read(deliveries).where(is_waiting, *destination)
    # By the whole index, and the id as a range: or the planner may sort all that wait, or walk past all that do not.
    c = deliveries.c
    return Statement(read.order_by(c.discord_channel_id, c.discord_user_id, c.delivery_id).limit(_LIMIT))


_c = deliveries.c
_DESTINATIONS = Statement(
    sa.select(_c.discord_channel_id, _c.discord_user_id)
    .where(is_waiting)
    .group_by(_c.discord_channel_id, _c.discord_user_id)
    .order_by(sa.func.min(_c.delivery_id))
)
_WAITING_FOR_CHANNEL = _waiting(range_of(_c.discord_channel_id, "discord_id"), _c.discord_user_id.is_(None))
_WAITING_FOR_USER = _waiting(_c.discord_channel_id.is_(None), range_of(_c.discord_user_id, "discord_id"))
_OF_SENDER = Statement(
    _read(deliveries)
    .where(range_of(_c.sender_id, "account_id"))
    .order_by(_c.sender_id.desc(), _c.delivery_id.desc())
    .limit(sa.bindparam("count", type_=sa.BigInteger))
)
_MISSED = Statement(
    _read(deliveries)
    .where(
        range_of(_c.sender_id, "account_id"),
        _c.settled > sa.bindparam("after", type_=sa.BigInteger),
        _c.settled <= sa.bindparam("through", type_=sa.BigInteger),
    )
    .order_by(_c.sender_id, _c.settled)
    .limit(_LIMIT)
)
_BY_ID = Statement(_read(deliveries).where(_c.delivery_id == _DELIVERY_ID))

_COPY = sa.select(
    *(discord_copies.c[name] for name in ("discord_message_id", "discord_channel_id", "origin_id")),
    *(discord_copies.c[name] for name in ("message_id", "received")),
)
_DOOMED = Statement(_COPY.where(discord_copies.c.doomed).order_by(discord_copies.c.discord_message_id).limit(_LIMIT))
_COPY_OF = Statement(
    _COPY.where(discord_copies.c.discord_message_id == sa.bindparam("discord_message_id", type_=sa.BigInteger))
)
_KNOWN = Statement(
    sa.select(discord_copies.c.discord_message_id).where(
        discord_copies.c.discord_message_id == sa.any_(sa.bindparam("ids", type_=_IDS))
    )
)
_RECEIVED_IN = Statement(
    _COPY.where(
        discord_copies.c.received,
        discord_copies.c.discord_channel_id == sa.bindparam("discord_channel_id", type_=sa.BigInteger),
    )
    .order_by(discord_copies.c.discord_channel_id.desc(), discord_copies.c.discord_message_id.desc())
    .limit(_LIMIT)
)


class Deliveries:
    """The queries about what is delivered to Discord, and about the copies that are there."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def destinations(self) -> list[Destination]:
        """Where something is to go still, first what has waited longest."""
        return [Destination(*row) for row in await self._reader.fetch(_DESTINATIONS)]

    async def waiting(self, destination: Destination, limit: int) -> list[Delivery]:
        """The oldest `limit` deliveries that wait for this destination, oldest first."""
        if destination.discord_channel_id is not None:
            found = await self._reader.fetch(
                _WAITING_FOR_CHANNEL, discord_id=destination.discord_channel_id, limit=limit
            )
        else:
            found = await self._reader.fetch(_WAITING_FOR_USER, discord_id=destination.discord_user_id, limit=limit)
        return [_delivery(row) for row in found]

    async def of_sender(self, account_id: int, count: int) -> list[Delivery]:
        """The newest `count` deliveries that somebody asked for, oldest first."""
        rows = await self._reader.fetch(_OF_SENDER, account_id=account_id, count=count)
        return [_delivery(row) for row in reversed(rows)]

    async def missed(self, account_id: int, after: int, through: int, limit: int) -> list[Delivery]:
        """The first `limit` of somebody's deliveries settled behind `after` up to `through`, in that order."""
        bounds = {"account_id": account_id, "after": after, "through": through, "limit": limit}
        return [_delivery(row) for row in await self._reader.fetch(_MISSED, **bounds)]

    async def by_id(self, delivery_id: int) -> Delivery | None:
        """The delivery of this id, unless it was erased."""
        row = await self._reader.fetch_one(_BY_ID, delivery_id=delivery_id)
        return None if row is None else _delivery(row)

    async def doomed(self, limit: int) -> list[Copy]:
        """The oldest `limit` copies that are to go, since what they are copies of was deleted or erased."""
        return [Copy(*row) for row in await self._reader.fetch(_DOOMED, limit=limit)]

    async def copy(self, discord_message_id: int) -> Copy | None:
        """What a message on Discord is a copy of, unless it was withdrawn."""
        row = await self._reader.fetch_one(_COPY_OF, discord_message_id=discord_message_id)
        return None if row is None else Copy(*row)

    async def known(self, discord_message_ids: Iterable[int]) -> set[int]:
        """Those of the messages on Discord that are copies of something here."""
        ids = bigint_array(list(discord_message_ids))
        return {copy_id for (copy_id,) in await self._reader.fetch(_KNOWN, ids=ids)}

    async def received_in(self, discord_channel_id: int, limit: int) -> list[Copy]:
        """The newest `limit` messages that came from a channel of Discord, newest first."""
        found = await self._reader.fetch(_RECEIVED_IN, discord_channel_id=discord_channel_id, limit=limit)
        return [Copy(*row) for row in found]
