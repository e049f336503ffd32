"""Bridges: which channel is bridged to which channel of Discord, and how far each of those was read."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from chat.bridging import Bridge
from eventstore.projection import Change, Projection, Source, number, of_type
from eventstore.reader import Reader
from eventstore.statements import Statement
from projections.channels import channels
from projections.schema import metadata, told

bridges = sa.Table(
    "bridges",
    metadata,
    sa.Column("channel_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("discord_channel_id", sa.BigInteger, nullable=False),
    # Where in the log the bridge was made.
    sa.Column("since", sa.BigInteger, nullable=False),
)

# Kept when a bridge is undone: what was taken in once does not come again by another one.
discord_watermarks = sa.Table(
    "discord_watermarks",
    metadata,
    sa.Column("discord_channel_id", sa.BigInteger, primary_key=True, autoincrement=False),
    # The newest message of the channel that was taken in, or behind which a bridge begins.
    sa.Column("read_through", sa.BigInteger, nullable=False),
)

BRIDGING = frozenset({"ChannelBridged", "ChannelUnbridged"})


def _last(source: Source) -> sa.Subquery:
    """What the source says last of each channel: bridged and unbridged in one range, only the end of it counts."""
    channel_id = number(source, "channel_id")
    return (
        sa.select(
            channel_id.label("channel_id"),
            number(source, "discord_channel_id").label("discord_channel_id"),
            source.c.position.label("since"),
            source.c.type,
        )
        .where(told(source, *sorted(BRIDGING)))
        .ext(distinct_on(channel_id))
        .order_by(channel_id, source.c.position.desc())
        .subquery("last")
    )


def _bridged(source: Source) -> sa.Insert:
    last = _last(source)
    rows = sa.select(last.c.channel_id, last.c.discord_channel_id, last.c.since).where(of_type(last, "ChannelBridged"))
    upsert = insert(bridges).from_select(["channel_id", "discord_channel_id", "since"], rows)
    return upsert.on_conflict_do_update(
        index_elements=[bridges.c.channel_id],
        set_={name: upsert.excluded[name] for name in ("discord_channel_id", "since")},
    )


def _unbridged(source: Source) -> sa.Delete:
    last = _last(source)
    unbridged = sa.select(last.c.channel_id).where(of_type(last, "ChannelUnbridged"))
    return sa.delete(bridges).where(bridges.c.channel_id.in_(unbridged))


def _read_on(source: Source) -> sa.Insert:
    discord_channel_id = number(source, "discord_channel_id")
    message_id = sa.func.coalesce(number(source, "discord_message_id"), number(source, "after_message_id"))
    newest = (
        sa.select(discord_channel_id, sa.func.max(message_id))
        .where(told(source, "ChannelBridged", "DiscordMessageReceived"))
        .group_by(discord_channel_id)
    )
    upsert = insert(discord_watermarks).from_select(["discord_channel_id", "read_through"], newest)
    read_through = sa.func.greatest(discord_watermarks.c.read_through, upsert.excluded.read_through)
    return upsert.on_conflict_do_update(
        index_elements=[discord_watermarks.c.discord_channel_id], set_={"read_through": read_through}
    )


projection = Projection(
    name="bridges",
    tables=(bridges, discord_watermarks),
    changes=(
        Change(BRIDGING, _bridged),
        Change(BRIDGING, _unbridged),
        Change(frozenset({"ChannelBridged", "DiscordMessageReceived"}), _read_on),
    ),
)

_ALL = Statement(
    sa.select(
        bridges.c.channel_id,
        channels.c.name,
        bridges.c.discord_channel_id,
        discord_watermarks.c.read_through,
    )
    .join_from(bridges, channels, channels.c.channel_id == bridges.c.channel_id)
    .join(discord_watermarks, discord_watermarks.c.discord_channel_id == bridges.c.discord_channel_id)
    .order_by(bridges.c.since)
)


class Bridges:
    """The queries about bridges."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def all(self) -> list[Bridge]:
        """All bridges, in the order in which they were made."""
        return [Bridge(*row) for row in await self._reader.fetch(_ALL)]
