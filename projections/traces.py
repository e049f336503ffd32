"""What people leave in the log: the events that are their own, and others' that speak of them, for those who erase.

It reads the log itself, range by range: no read model keeps who deleted what, or what others say of whom.
"""

from __future__ import annotations

import sqlalchemy as sa

from chat.erasure import Trace
from chat.names import BOT_ID
from eventstore.projection import number, of_type, text
from eventstore.reader import Reader
from eventstore.statements import Statement, inline
from eventstore.tables import events
from projections.schema import told

_SENT = ("MessageSent", "DirectMessageSent")
_ACCOUNT = sa.bindparam("account_id", type_=sa.BigInteger)
_IN_RANGE = (
    events.c.position > sa.bindparam("after", type_=sa.BigInteger),
    events.c.position <= sa.bindparam("through", type_=sa.BigInteger),
)
_CORRELATION_ID = events.c.metadata[inline("correlation_id")].astext
_ACTOR = sa.cast(events.c.metadata[inline("actor")].astext, sa.BigInteger)


def _own() -> Statement:
    streams = [sa.func.concat(inline(prefix), _ACCOUNT) for prefix in ("account-", "moderation-")]
    by_key = (
        (("UsernameClaimed",), "account_id"),
        (_SENT, "sender_id"),
        (("MessageDeleted",), "deleted_by"),
        (("AccountReported",), "reporter_id"),
    )
    is_erased = events.c.data.is_(None)
    belongs = sa.or_(
        sa.and_(events.c.stream.in_(streams), events.c.type != inline("Erased"), sa.not_(is_erased)),
        *(sa.and_(told(events, *types), number(events, key) == _ACCOUNT) for types, key in by_key),
        # The metadata stay, so it is known still what the bot may have answered.
        sa.and_(of_type(events, *_SENT), is_erased, _ACTOR == _ACCOUNT),
    )
    return Statement(sa.select(events.c.position, _CORRELATION_ID, is_erased).where(*_IN_RANGE, belongs))


def _by_bot() -> Statement:
    bot_id = sa.literal_column(str(BOT_ID), sa.BigInteger)
    said = sa.and_(told(events, *_SENT), number(events, "sender_id") == bot_id)
    return Statement(sa.select(events.c.position, _CORRELATION_ID, sa.false()).where(*_IN_RANGE, said))


def _speaking() -> Statement:
    words = sa.func.lower(sa.func.coalesce(text(events, "text"), text(events, "reason"), text(events, "name")))
    names = [sa.func.lower(sa.bindparam(name, type_=sa.Text)) for name in ("username", "safe")]
    holds = sa.or_(*(sa.func.strpos(words, name) > sa.literal_column("0") for name in names))
    reasoned = ("AccountSilenced", "AccountBanned", "AccountKicked", "AccountReported", "Erased")
    spoken = told(events, *_SENT, "ChannelCreated", *reasoned)
    return Statement(sa.select(events.c.position).where(*_IN_RANGE, spoken, holds).order_by(events.c.position))


_OWN, _BY_BOT, _SPEAKING = _own(), _by_bot(), _speaking()


class Traces:
    """The queries about what people leave; each over the events behind `after` up to `through`.

    Implements `chat.erasure.Traces`.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def of_account(self, account_id: int, after: int, through: int) -> list[Trace]:
        """What an account is, said and deleted, and what operators did about it; of what is erased, what it sent."""
        rows = await self._reader.fetch(_OWN, account_id=account_id, after=after, through=through)
        return [Trace(*row) for row in rows]

    async def of_bot(self, after: int, through: int) -> list[Trace]:
        """What the bot said and is not erased."""
        return [Trace(*row) for row in await self._reader.fetch(_BY_BOT, after=after, through=through)]

    async def speaking_of(self, username: str, safe: str, after: int, through: int) -> list[int]:
        """What is not erased and holds the one or the other form of a name, whatever its case."""
        rows = await self._reader.fetch(_SPEAKING, username=username, safe=safe, after=after, through=through)
        return [position for (position,) in rows]
