"""Moderation: who is banned, and who is silenced until when."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from chat.commands import UNRESTRICTED, Restrictions
from eventstore.projection import Change, Projection, Source, number, of_type
from eventstore.reader import Reader
from eventstore.statements import Statement
from projections.schema import MOMENT, metadata, told

restrictions = sa.Table(
    "restrictions",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True, autoincrement=False),
    # Null while nobody has said anything of it.
    sa.Column("is_banned", sa.Boolean),
    # A silence that was removed ends at its removal.
    sa.Column("silenced_until", MOMENT),
)


def _last(source: Source, value: sa.ColumnElement[Any], *types: str) -> sa.Subquery:
    """The value that the source's last event of these types gives to each account."""
    account_id = number(source, "account_id")
    return (
        sa.select(account_id.label("account_id"), value.label("value"))
        # A silence is over with the account's erasure; the erasure of a message is nobody's.
        .where(told(source, *types, "Erased"), account_id.is_not(None))
        .ext(distinct_on(account_id))
        .order_by(account_id, source.c.position.desc())
        .subquery()
    )


def _restricted(source: Source) -> sa.Insert:
    # One statement for both columns: two of one append may not change the same row.
    # An erased account is shut: nobody can log in to it, and what it was about to say is refused.
    bans = _last(source, of_type(source, "AccountBanned", "Erased"), "AccountBanned", "BanRemoved")
    seconds = sa.func.coalesce(number(source, "seconds"), sa.literal_column("0"))
    until = source.c.recorded_at + seconds * sa.literal_column("interval '1 second'")
    silences = _last(source, until, "AccountSilenced", "SilenceRemoved")
    both = bans.join(silences, bans.c.account_id == silences.c.account_id, full=True)
    account_id = sa.func.coalesce(bans.c.account_id, silences.c.account_id)
    rows = sa.select(account_id, bans.c.value, silences.c.value).select_from(both)
    upsert = insert(restrictions).from_select(["account_id", "is_banned", "silenced_until"], rows)
    # What the source says nothing of stays as it was.
    return upsert.on_conflict_do_update(
        index_elements=[restrictions.c.account_id],
        set_={
            name: sa.func.coalesce(upsert.excluded[name], restrictions.c[name])
            for name in ("is_banned", "silenced_until")
        },
    )


RESTRICTING = frozenset({"AccountSilenced", "SilenceRemoved", "AccountBanned", "BanRemoved", "Erased"})

projection = Projection(name="moderation", tables=(restrictions,), changes=(Change(RESTRICTING, _restricted),))

_OF_ACCOUNT = Statement(
    sa.select(sa.func.coalesce(restrictions.c.is_banned, sa.false()), restrictions.c.silenced_until).where(
        restrictions.c.account_id == sa.bindparam("account_id", type_=sa.BigInteger)
    )
)


class Moderations:
    """The queries about restricted accounts."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def restrictions(self, account_id: int) -> Restrictions:
        """What the account may not do; `silenced_until` may be in the past."""
        row = await self._reader.fetch_one(_OF_ACCOUNT, account_id=account_id)
        return UNRESTRICTED if row is None else Restrictions(*row)
