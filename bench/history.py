"""A log of a million events in half a minute: a chat's beginnings by real appends, its conversation made by the server.

The conversation is valid to the letter: contiguous positions, streams and versions as the commands write them,
canonical data and metadata, salts, true leaf hashes, and the head row that belongs to it. Of its events 90 %
are messages to channels, 7.5 % direct messages, and 2.5 % delete an earlier message of either kind. The read models
are left empty: they are what is to be rebuilt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSON, TIMESTAMP

import projections
from chat.events import AccountRegistered, ChannelCreated, Event, MemberAdded, TokenIssued, UsernameClaimed
from eventstore import merkle
from eventstore.events import Context, StreamWrite
from eventstore.log import EventLog
from eventstore.migrate import migrate
from eventstore.tables import events, log_head

ACCOUNTS = 200
CHANNELS = 20
FIRST_ACCOUNT = 1000
_AT_ONCE = 50_000
_TEXT = (
    "So we settled on the second draft, with the changes of Monday, and whoever has objections raises them before "
    "the next meeting; the minutes go out tonight."
)

# Of fifty events one (0) deletes the message seven before it, and of two hundred one (25) the direct message eight
# before it. Who sent a message follows from its position, so that its deletion knows it too.
_CONVERSATION = """
    SELECT
        position,
        format('message-%s-%s-7%s-8%s-%s', left(clock, 8), right(clock, 4), substr(noise, 1, 3),
               substr(noise, 4, 3), substr(noise, 7, 12)) AS stream,
        CASE WHEN subject = position THEN 1 ELSE 2 END AS version,
        CASE WHEN subject <> position THEN 'MessageDeleted'
             WHEN direct THEN 'DirectMessageSent' ELSE 'MessageSent' END AS type,
        CASE WHEN subject <> position
             THEN format('{{"deleted_by":%s,"message_id":%s}}', sender, subject)
             WHEN direct
             THEN format('{{"recipient_id":%s,"sender_id":%s,"text":"%s"}}', recipient, sender, body)
             ELSE format('{{"channel_id":%s,"sender_id":%s,"text":"%s"}}', channel, sender, body) END AS data,
        format('{{"actor":%s,"correlation_id":"%s","event_id":"%s","schema"\\:1}}',
               sender, gen_random_uuid(), gen_random_uuid()) AS metadata,
        to_timestamp(:began + position * 0.01) AS recorded_at,
        uuid_send(gen_random_uuid()) AS salt
    FROM (
        SELECT
            position,
            subject,
            subject % 50 IN (5, 17, 29, 41) AS direct,
            lpad(to_hex(1760000000000 + subject * 10), 12, '0') AS clock,
            md5(subject::text) AS noise,
            {first_account} + subject * 7919 % {accounts} AS sender,
            {first_account} + subject * 104729 % {accounts} AS recipient,
            (:channels)[1 + subject * 31 % {channel_count}] AS channel,
            format('%s (%s)', left('{text}', (60 + subject % 80)::integer), subject) AS body
        FROM (
            SELECT
                position,
                CASE WHEN position % 50 = 0 AND position - 7 >= :start THEN position - 7
                     WHEN position % 200 = 25 AND position - 8 >= :start THEN position - 8
                     ELSE position END AS subject
            FROM generate_series(:after + 1, :through) AS position
        ) AS numbered
    ) AS told
"""


@dataclass(frozen=True)
class History:
    """What was made: the log's last position, and how many messages and direct messages are to be seen."""

    events: int
    messages: int
    dms: int


def write_history(conninfo: str, count: int, progress: Callable[[int], None]) -> History:
    """Makes a log of `count` events in an empty database; `progress` gets the position reached."""
    migrate(conninfo, [projections.MIGRATIONS])
    channels = asyncio.run(_begin(conninfo))
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        begun = _number(connection, sa.select(log_head.c.position))
        # Time goes on from where the beginnings ended.
        clock = _number(connection, sa.select(sa.func.ceil(sa.extract("epoch", log_head.c.recorded_at))))
        for after, through in _ranges(begun, count):
            parameters = {"after": after, "through": through, "start": begun + 1, "began": clock, "channels": channels}
            connection.execute(_appended(), parameters)
            progress(through)
        connection.execute(_head_moved())
        connection.execute(sa.text("VACUUM (ANALYZE) events"))
        history = History(
            events=_number(connection, sa.select(log_head.c.position)),
            messages=_number(connection, _seen("MessageSent")),
            dms=_number(connection, _seen("DirectMessageSent")),
        )
    engine.dispose()
    return history


async def _begin(conninfo: str) -> list[int]:
    """Accounts, their tokens, channels and their members, as real appends; returns the channels' ids."""
    async with EventLog(conninfo) as log:

        async def append(*facts: tuple[str, Event]) -> int:
            writes = [StreamWrite(stream, [event.recorded_form()]) for stream, event in facts]
            return (await log.append(*writes, context=Context(None, "bench"))).first_position

        everyone = range(FIRST_ACCOUNT, FIRST_ACCOUNT + ACCOUNTS)
        await asyncio.gather(*(append(*_registration(account)) for account in everyone))
        names = [f"channel {i}" for i in range(CHANNELS)]
        channels = await asyncio.gather(
            *(append((f"channel-{i}", ChannelCreated(name, name, None))) for i, name in enumerate(names))
        )
        await asyncio.gather(
            *(
                append((f"member-{channel}-{account}", MemberAdded(channel, account, account)))
                for channel in channels
                for account in everyone
            )
        )
        return channels


def _registration(account: int) -> list[tuple[str, Event]]:
    name = f"Listener {account}"
    return [
        (f"username-{account}", UsernameClaimed(account)),
        (f"account-{account}", AccountRegistered(account, name, name.lower().replace(" ", "_"), None)),
        (f"token-{account}", TokenIssued(account, 1, f"{account:064x}")),
    ]


def _ranges(after: int, count: int) -> Iterator[tuple[int, int]]:
    while after < count:
        yield after, min(after + _AT_ONCE, count)
        after += _AT_ONCE


def _appended() -> sa.Insert:
    """Inserts the conversation's events with `:after < position <= :through`."""
    made = (
        sa.text(
            _CONVERSATION.format(first_account=FIRST_ACCOUNT, accounts=ACCOUNTS, channel_count=CHANNELS, text=_TEXT)
        )
        .bindparams(
            sa.bindparam("after", type_=sa.BigInteger),
            sa.bindparam("through", type_=sa.BigInteger),
            sa.bindparam("start", type_=sa.BigInteger),
            sa.bindparam("began", type_=sa.BigInteger),
            sa.bindparam("channels", type_=sa.ARRAY(sa.BigInteger)),
        )
        .columns(
            sa.column("position", sa.BigInteger),
            sa.column("stream", sa.Text),
            sa.column("version", sa.BigInteger),
            sa.column("type", sa.Text),
            sa.column("data", sa.Text),
            sa.column("metadata", sa.Text),
            sa.column("recorded_at", TIMESTAMP(timezone=True)),
            sa.column("salt", BYTEA),
        )
        .subquery("made")
    )
    c = made.c
    entry = merkle.entry_sql(
        position=c.position,
        stream=c.stream,
        version=c.version,
        event_type=c.type,
        metadata=c.metadata,
        recorded_at=merkle.rfc3339_sql(c.recorded_at),
        data_hash=merkle.data_hash_sql(c.salt, c.data),
    )
    rows = sa.select(
        c.position,
        c.stream,
        c.version,
        c.type,
        sa.cast(c.data, JSON),
        sa.cast(c.metadata, JSON),
        c.recorded_at,
        c.salt,
        merkle.leaf_hash_sql(entry),
    )
    names = [column.name for column in events.c if column is not events.c.data_hash]
    return sa.insert(events).from_select(names, rows)


def _head_moved() -> sa.Update:
    def last(column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
        return sa.select(column).order_by(events.c.position.desc()).limit(1).scalar_subquery()

    return sa.update(log_head).values(position=last(events.c.position), recorded_at=last(events.c.recorded_at))


def _seen(kind: str) -> sa.Select[Any]:
    """How many messages of this kind were not deleted."""
    deleted = sa.select(sa.cast(events.c.data["message_id"].astext, sa.BigInteger)).where(
        events.c.type == "MessageDeleted"
    )
    return sa.select(sa.func.count()).where(events.c.type == kind, events.c.position.not_in(deleted))


def _number(connection: sa.Connection, query: sa.Select[Any]) -> int:
    return int(connection.execute(query).scalar_one())
