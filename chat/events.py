"""Everything that can happen, in the past tense.

The wire name of an event is its class's name, its shape's version is `SCHEMA`; both stand in the log for ever, so
they never change: a new shape gets a new version here, and an upcaster that turns the old one into it at reading.
Events speak of people and channels by id: names stand only where they were given.
"""

from __future__ import annotations

from collections.abc import Callable
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


class MessageSent(Event, frozen=True, gc=False):
    """A message in a channel; its id is this event's position."""

    channel_id: int
    sender_id: int
    text: str


class DirectMessageSent(Event, frozen=True, gc=False):
    """A message from one account to another; its id is this event's position."""

    sender_id: int
    recipient_id: int
    text: str


class MessageDeleted(Event, frozen=True, gc=False):
    """A message, of either kind, is no longer shown."""

    message_id: int
    deleted_by: int


TYPES: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        UsernameClaimed,
        AccountRegistered,
        TokenIssued,
        ChannelCreated,
        MemberAdded,
        MessageSent,
        DirectMessageSent,
        MessageDeleted,
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
    body = recorded.body()
    for schema in range(schema_then, kind.SCHEMA):
        body = UPCASTERS[recorded.type, schema](body)
    return msgspec.convert(body, kind)
