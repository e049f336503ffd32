"""What people leave in the log: the events that are their own, and others' that speak of them, for those who erase.

It reads the log itself, range by range: no read model keeps who deleted what, or what others say of whom.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from chat.erasure import Trace
from chat.names import BOT_ID, DISCORD_USER_STREAM
from eventstore.projection import number, of_type, text
from eventstore.reader import Reader
from eventstore.statements import Statement, inline
from eventstore.tables import events
from projections.schema import told

_SENT = ("MessageSent", "DirectMessageSent")
# Words of somebody's own.
_SAID = (*_SENT, "DiscordMessageRequested")
_ACCOUNT = sa.bindparam("account_id", type_=sa.BigInteger)
_IN_RANGE = (
    events.c.position > sa.bindparam("after", type_=sa.BigInteger),
    events.c.position <= sa.bindparam("through", type_=sa.BigInteger),
)
_CORRELATION_ID = events.c.metadata[inline("correlation_id")].astext


def _acted(recorded: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.cast(recorded.c.metadata[inline("actor")].astext, sa.BigInteger) == _ACCOUNT


def _linked_now() -> sa.Select[str]:
    """The streams of those on Discord who are the account, also where the event that says so is erased already."""
    # One range of the index of streams.
    of_people = events.c.stream.between(inline(DISCORD_USER_STREAM), inline(f"{DISCORD_USER_STREAM}~"))
    last = (
        sa.select(events.c.stream, events.c.type, events.c.data, events.c.metadata)
        .where(of_people, of_type(events, "DiscordLinked", "DiscordUnlinked"))
        .ext(distinct_on(events.c.stream))
        .order_by(events.c.stream, events.c.version.desc())
        .subquery("last")
    )
    is_account = sa.case((last.c.data.is_(None), _acted(last)), else_=number(last, "account_id") == _ACCOUNT)
    return sa.select(last.c.stream).where(of_type(last, "DiscordLinked"), is_account)


def _own() -> Statement:
    streams = [sa.func.concat(inline(prefix), _ACCOUNT) for prefix in ("account-", "moderation-")]
    by_key = (
        (("UsernameClaimed",), "account_id"),
        (_SAID, "sender_id"),
        (("MessageEdited",), "edited_by"),
        (("MessageDeleted",), "deleted_by"),
        (("AccountReported",), "reporter_id"),
        (("DiscordLinked", "DiscordUnlinked"), "account_id"),
    )
    is_erased = events.c.data.is_(None)
    belongs = sa.or_(
        sa.and_(events.c.stream.in_(streams), events.c.type != inline("Erased"), sa.not_(is_erased)),
        *(sa.and_(told(events, *types), number(events, key) == _ACCOUNT) for types, key in by_key),
        sa.and_(told(events, "DiscordUserSeen"), events.c.stream.in_(_linked_now())),
        # The metadata stay, so it is known still what the bot may have answered.
        sa.and_(of_type(events, *_SAID), is_erased, _acted(events)),
    )
    return Statement(sa.select(events.c.position, _CORRELATION_ID, is_erased).where(*_IN_RANGE, belongs))


def _by_bot() -> Statement:
    bot_id = sa.literal_column(str(BOT_ID), sa.BigInteger)
    said = sa.and_(told(events, *_SAID), number(events, "sender_id") == bot_id)
    return Statement(sa.select(events.c.position, _CORRELATION_ID, sa.false()).where(*_IN_RANGE, said))


def _speaking() -> Statement:
    words = sa.func.lower(sa.func.coalesce(text(events, "text"), text(events, "reason"), text(events, "name")))
    names = [sa.func.lower(sa.bindparam(name, type_=sa.Text)) for name in ("username", "safe")]
    holds = sa.or_(*(sa.func.strpos(words, name) > sa.literal_column("0") for name in names))
    reasoned = ("AccountSilenced", "AccountBanned", "AccountKicked", "AccountReported", "Erased")
    # What was edited is erased by the message's id, and with it that it is to go to Discord.
    spoken = sa.and_(
        told(events, *_SAID, "MessageEdited", "ChannelCreated", *reasoned), text(events, "of_message").is_(None)
    )
    edited_id = sa.case((of_type(events, "MessageEdited"), number(events, "message_id")))
    place = sa.func.coalesce(edited_id, events.c.position).label("place")
    return Statement(sa.select(place).where(*_IN_RANGE, spoken, holds).distinct().order_by(place))


_OWN, _BY_BOT, _SPEAKING = _own(), _by_bot(), _speaking()


class Traces:
    """The queries about what people leave; each over the events behind `after` up to `through`.

    Implements `chat.erasure.Traces`.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def of_account(self, account_id: int, after: int, through: int) -> list[Trace]:
        """What an account is, said and deleted, and what operators did about it; of what is erased, what it sent.

        Who is the account on Discord is a part of what it is.
        """
        rows = await self._reader.fetch(_OWN, account_id=account_id, after=after, through=through)
        return [Trace(*row) for row in rows]

    async def of_bot(self, after: int, through: int) -> list[Trace]:
        """What the bot said and is not erased."""
        return [Trace(*row) for row in await self._reader.fetch(_BY_BOT, after=after, through=through)]

    async def speaking_of(self, username: str, safe: str, after: int, through: int) -> list[int]:
        """What is not erased and holds the one or the other form of a name, whatever its case.

        Of a message that was edited it is the message's own position.
        """
        rows = await self._reader.fetch(_SPEAKING, username=username, safe=safe, after=after, through=through)
        return [position for (position,) in rows]
