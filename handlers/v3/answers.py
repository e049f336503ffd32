"""What V3 answers: the document's messages to the letter, and how messages and channels are shown."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

import msgspec

from chat.bridging import Delivery
from chat.commands import Channel
from chat.refusals import Reason
from eventstore.merkle import rfc3339
from projections.dms import DirectMessage
from projections.messages import Message

# A body; raw: it is encoded already.
AnswerBody = dict[str, Any] | msgspec.Raw
# A status and a body.
Answer = tuple[int, AnswerBody]
# What people are called on Discord, by their ids there; None: nobody knows any more.
People = Mapping[int, str | None]

_encoder = msgspec.json.Encoder()

REFUSALS: dict[Reason, tuple[int, str]] = {
    Reason.WEAK_PASSWORD: (
        411,
        "Password needs to have 8-20 chars minimum one number minimum one capital letter minimum one special symbol "
        "no empty symbols!",
    ),
    Reason.BAD_USERNAME: (411, "Username needs to be 3-20 chars long!"),
    Reason.USERNAME_TAKEN: (401, "User exists!"),
    Reason.WRONG_CREDENTIALS: (401, "Invalid username or password!"),
    Reason.NO_TOKEN: (401, "No token!"),
    Reason.INVALID_TOKEN: (401, "Invalid token!"),
    Reason.CHANNEL_EXISTS: (409, "Channel exists!"),
    Reason.CHANNEL_NOT_FOUND: (404, "Channel not found!"),
    Reason.NOT_A_MEMBER: (401, "You are not in this channel!"),
    Reason.USER_NOT_FOUND: (404, "User not found!"),
    Reason.MESSAGE_NOT_FOUND: (404, "Message not found!"),
    Reason.NOT_YOUR_MESSAGE: (403, "You can only delete your messages!"),
    Reason.NOT_A_READER: (403, "Your not allowed to read this message!"),
    Reason.SILENCED: (403, "You are silenced for {seconds} seconds!"),
    Reason.BANNED: (403, "You are banned!"),
    Reason.DISCORD_NOT_CONFIGURED: (503, "Discord is not configured!"),
    Reason.NOT_REACHABLE: (400, "Invalid input or user not in channel"),
}


@cache
def said(status: int, message: str) -> Answer:
    """An answer that says one thing, and always the same: it is encoded once."""
    return status, msgspec.Raw(rendered({"message": message}))


def rendered(body: dict[str, Any]) -> bytes:
    """A body as it is sent, for those who keep it."""
    return _encoder.encode(body)


def listed(body: bytes, nothing: str = "") -> Answer:
    """The answer of a list that was rendered; of one that was rendered as nothing, that there is `nothing`."""
    return (200, msgspec.Raw(body)) if body else said(404, nothing)


class Shown(msgspec.Struct, frozen=True, gc=False):
    """A channel's message as its readers see it."""

    message_id: int
    sender: str
    message: str
    channel: str
    timestamp: datetime | str


class ShownDirect(msgspec.Struct, frozen=True, gc=False):
    """A direct message as its two ends see it."""

    message_id: int
    sender: str
    message: str
    recipient: str
    timestamp: datetime | str


def shown(message: Message) -> Shown:
    """A channel's message, to be encoded."""
    return Shown(message.message_id, message.sender, message.text, message.channel, timestamp(message.sent_at))


def shown_direct(message: DirectMessage) -> ShownDirect:
    """A direct message, to be encoded."""
    sent_at = timestamp(message.sent_at)
    return ShownDirect(message.message_id, message.sender, message.text, message.recipient, sent_at)


def timestamp(moment: datetime) -> datetime | str:
    """A moment for the encoder to write, as the contract wants it: in UTC with microseconds."""
    # The encoder writes it as it must be, ten times as fast, but leaves the microseconds out where they are zero.
    return moment if moment.microsecond else rfc3339(moment)


def shown_channel(channel: Channel) -> dict[str, Any]:
    """A channel as `getchannels` lists it."""
    return {"channel_name": channel.name, "channel_id": channel.channel_id}


def shown_delivery(delivery: Delivery, people: People) -> dict[str, Any]:
    """A text to Discord as its sender sees it, with what has become of it."""
    return {
        "delivery_id": delivery.delivery_id,
        "message_id": delivery.message_id,
        "to": _destination(delivery, people),
        "message": delivery.text,
        "status": delivery.status,
        "discord_message_ids": [str(discord_id) for discord_id in delivery.discord_message_ids or ()],
        "reason": delivery.failed,
        "requested_at": timestamp(delivery.requested_at),
        "settled_at": None if delivery.settled_at is None else timestamp(delivery.settled_at),
    }


def _destination(delivery: Delivery, people: People) -> dict[str, str | None]:
    """Where it goes. A person is shown as who they were called by, so that nobody learns which account is whom."""
    to = delivery.destination
    if to.discord_user_id is None:
        return {"channel": str(to.discord_channel_id)}
    return {"person": people.get(to.discord_user_id) if delivery.recipient is None else delivery.recipient}
