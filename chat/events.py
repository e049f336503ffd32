"""Everything that can happen, in the past tense.

The wire name of an event is its class's name, its shape's version is `SCHEMA`; both stand in the log for ever, so
they never change: a new shape gets a new version here, and an upcaster that turns the old one into it at reading.
Events speak of people and channels by id: names stand only where they were given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import msgspec

from eventstore import canonical
from eventstore.errors import LogError
from eventstore.events import NewEvent, RecordedEvent


class Event(msgspec.Struct, frozen=True, gc=False):
    """What all events have in common."""

    SCHEMA: ClassVar[int] = 1

    def recorded_form(self) -> NewEvent:
        """The event as the log takes it."""
        return NewEvent(type(self).__name__, canonical.encode(self), self.SCHEMA)


class UsernameClaimed(Event, frozen=True, gc=False):
    """A username belongs to an account from now on. First event of the name's stream."""

    account_id: int


class AccountRegistered(Event, frozen=True, gc=False):
    """Somebody made an account. `password_hash` is bcrypt's; None: nobody can log in to it (the bot).

    The safe name is recorded, not derived later: what counts as lower case changes with Unicode's versions.
    """

    account_id: int
    username: str
    safe_name: str
    password_hash: str | None


class TokenIssued(Event, frozen=True, gc=False):
    """An account has a new token, and none that it had before is good any more.

    `token_digest` is the hex SHA-256 of the token; `generation` counts the account's tokens from 1.
    """

    account_id: int
    generation: int
    token_digest: str


class TokenRevoked(Event, frozen=True, gc=False):
    """An account has no token any more, until the next one is issued; `generation` goes on counting as if it were one.

    An account that never had a token may have it revoked too: so whoever issues one meanwhile learns of it.
    """

    account_id: int
    generation: int


class AccountVerified(Event, frozen=True, gc=False):
    """An account registered a connection for the first time.

    `device_digest` is the keyed digest of the device that it came from, if it told one; `is_multiaccount` says that
    the device had verified another account before.
    """

    account_id: int
    is_multiaccount: bool
    device_digest: str | None


class DeviceClaimed(Event, frozen=True, gc=False):
    """A device verified its first account. First event of the device's stream."""

    account_id: int


class ConnectionOpened(Event, frozen=True, gc=False):
    """An account is connected, to the node `node_id`, by its token of this generation. Its stream names the connection.

    A connection that was closed may be opened again, by its account alone.
    """

    account_id: int
    node_id: str
    token_generation: int


class ConnectionClosed(Event, frozen=True, gc=False):
    """A connection ended; `reason` says why, in a few words."""

    account_id: int
    reason: str


class RestartRequested(Event, frozen=True, gc=False):
    """All nodes are to end and to come back; clients are told to try again in `reconnect_in` seconds."""

    reconnect_in: int


class AccountSilenced(Event, frozen=True, gc=False):
    """An account may write nothing for so many seconds from this event's time on, whatever was said before."""

    account_id: int
    seconds: int
    reason: str
    silenced_by: int


class SilenceRemoved(Event, frozen=True, gc=False):
    """An account may write again before its silence was over."""

    account_id: int
    removed_by: int


class AccountBanned(Event, frozen=True, gc=False):
    """Nobody can log in to an account any more."""

    account_id: int
    reason: str
    banned_by: int


class BanRemoved(Event, frozen=True, gc=False):
    """An account can be logged in to again."""

    account_id: int
    removed_by: int


class AccountKicked(Event, frozen=True, gc=False):
    """All connections of an account are to end; it may come back at once."""

    account_id: int
    reason: str
    kicked_by: int


class AccountReported(Event, frozen=True, gc=False):
    """Somebody complains of an account, for the operators to read."""

    account_id: int
    reason: str
    reporter_id: int


class ChannelCreated(Event, frozen=True, gc=False):
    """A channel was made; its id is this event's position. Its creator, if there is one, is its first member."""

    name: str
    safe_name: str
    creator_id: int | None


class MemberAdded(Event, frozen=True, gc=False):
    """An account is a member of a channel from now on."""

    channel_id: int
    account_id: int
    added_by: int


class MessageSent(Event, frozen=True, gc=False, omit_defaults=True):
    """A message in a channel; its id is this event's position.

    `source`, here and below, is the network address that it came from, sealed (`chat.sources`); None: it is not known.
    """

    channel_id: int
    sender_id: int
    text: str
    source: str | None = None


class DirectMessageSent(Event, frozen=True, gc=False, omit_defaults=True):
    """A message from one account to another; its id is this event's position."""

    sender_id: int
    recipient_id: int
    text: str
    source: str | None = None


class MessageDeleted(Event, frozen=True, gc=False, omit_defaults=True):
    """A message, of either kind, is no longer shown."""

    message_id: int
    deleted_by: int
    source: str | None = None


class MessageEdited(Event, frozen=True, gc=False):
    """A channel's message says something else now."""

    message_id: int
    text: str
    edited_by: int


class DiscordUserSeen(Event, frozen=True, gc=False):
    """Somebody on Discord wrote to the bot, and can be written to since; said again when their name has changed.

    Discord's ids, here and below, are its numbers as text: they are larger than what JSON's readers keep exactly.
    """

    discord_user_id: str
    username: str


class DiscordLinked(Event, frozen=True, gc=False):
    """Somebody on Discord is this account, and no other one that they were before. In the stream of that person."""

    discord_user_id: str
    account_id: int


class DiscordUnlinked(Event, frozen=True, gc=False):
    """Somebody on Discord is no account any more."""

    discord_user_id: str
    account_id: int


class LinkCodeUsed(Event, frozen=True, gc=False):
    """A code by which an account is linked was used up. First event of the code's stream."""

    account_id: int


class ChannelBridged(Event, frozen=True, gc=False):
    """What is said in a channel is said in a channel of Discord, too, and the other way round.

    From Discord it is what comes behind its message `after_message_id`.
    """

    channel_id: int
    discord_channel_id: str
    after_message_id: str
    bridged_by: int


class ChannelUnbridged(Event, frozen=True, gc=False):
    """A channel and a channel of Discord have nothing to do with each other any more."""

    channel_id: int
    discord_channel_id: str
    unbridged_by: int


class DiscordMessageReceived(Event, frozen=True, gc=False):
    """The message at the position before this one came from Discord. Recorded with it, in its stream."""

    discord_channel_id: str
    discord_message_id: str


class DiscordMessageRequested(Event, frozen=True, gc=False, omit_defaults=True):
    """A text is to be delivered to Discord; this event's position is the delivery's id.

    It goes to a channel or to a person: of the two ids the other is None. `of_message` says that it is the message at
    the position before this one, recorded with it, in its stream. `recipient_id` is the account that the person was
    called by; None: they were called by their name on Discord.
    """

    sender_id: int
    discord_channel_id: str | None
    discord_user_id: str | None
    text: str
    of_message: bool = False
    source: str | None = None
    recipient_id: int | None = None


class DiscordMessageDelivered(Event, frozen=True, gc=False):
    """Discord took a delivery, as these messages of a channel, in order; `message_id`: of which message, if of one."""

    delivery_id: int
    message_id: int | None
    sender_id: int
    discord_channel_id: str
    discord_message_ids: tuple[str, ...]


class DiscordMessageFailed(Event, frozen=True, gc=False):
    """A delivery is given up; `reason` says why, in a few words."""

    delivery_id: int
    message_id: int | None
    sender_id: int
    reason: str


class DiscordMessageWithdrawn(Event, frozen=True, gc=False):
    """On Discord these messages are gone, or cannot be removed: what they were copies of was deleted or erased here."""

    discord_channel_id: str
    discord_message_ids: tuple[str, ...]


class Erased(Event, frozen=True, gc=False):
    """The data of the events at these positions was emptied, in the transaction that recorded this one.

    It stands in the stream of what was erased: an account with all that it said; or a message, a text to Discord, or
    somebody there, of which `message_id` is the first position. Of the two ids the other is None. `erased_by` is who
    did it, in words, since operators need no account.
    """

    account_id: int | None
    message_id: int | None
    positions: tuple[int, ...]
    reason: str
    erased_by: str


TYPES: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        UsernameClaimed,
        AccountRegistered,
        TokenIssued,
        TokenRevoked,
        ChannelCreated,
        MemberAdded,
        MessageSent,
        DirectMessageSent,
        MessageDeleted,
        AccountVerified,
        DeviceClaimed,
        ConnectionOpened,
        ConnectionClosed,
        RestartRequested,
        AccountSilenced,
        SilenceRemoved,
        AccountBanned,
        BanRemoved,
        AccountKicked,
        AccountReported,
        MessageEdited,
        DiscordUserSeen,
        DiscordLinked,
        DiscordUnlinked,
        LinkCodeUsed,
        ChannelBridged,
        ChannelUnbridged,
        DiscordMessageReceived,
        DiscordMessageRequested,
        DiscordMessageDelivered,
        DiscordMessageFailed,
        DiscordMessageWithdrawn,
        Erased,
    )
}

# From (wire name, version of the shape) to what turns that shape into the next version's.
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTERS: dict[tuple[str, int], Upcaster] = {}


def decode(recorded: RecordedEvent) -> Event | None:
    """The event that was recorded, in today's shape; None if its data was erased.

    Raises `LogError` for a type that this version of Minutebook does not know.
    """
    kind = TYPES.get(recorded.type)
    if kind is None:
        raise LogError(f"event {recorded.position} is of the unknown type {recorded.type}")
    if recorded.data is None:
        return None
    schema_then = recorded.schema()
    if schema_then > kind.SCHEMA:
        raise LogError(f"event {recorded.position} has a newer shape of {recorded.type} than this version knows")
    if schema_then == kind.SCHEMA:
        return _decoder(kind).decode(recorded.data)
    body = recorded.body()
    for schema in range(schema_then, kind.SCHEMA):
        body = UPCASTERS[recorded.type, schema](body)
    return msgspec.convert(body, kind)


@cache
def _decoder(kind: type[Event]) -> msgspec.json.Decoder[Event]:
    return msgspec.json.Decoder(kind)
