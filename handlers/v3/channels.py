"""Channel system: making channels, bringing people in, writing and reading."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from chat.commands import Channel
from handlers.v3.answers import Answer, listed, rendered, said, shown, shown_channel, shown_direct
from handlers.v3.bodies import AddUser, MakeChannel, ReadChannel, SendMessage, WithToken, whole_count, whole_id
from handlers.v3.call import Call, account_of
from projections.messages import Message


async def makechannel(call: Call[MakeChannel]) -> Answer:
    """Creating a channel."""
    account = await account_of(call)
    channel = await call.commands.make_channel(account, call.body.name, call.request_id)
    return 200, {"message": "Channel created!", **shown_channel(channel)}


async def addusertochannel(call: Call[AddUser]) -> Answer:
    """Adding a user to a channel."""
    account = await account_of(call)
    body = call.body
    channel, added = await call.commands.add_member(account, body.name, body.username, call.request_id)
    return 200, {"message": "User added to channel!", "channel_name": channel.name, "username": added.username}


async def readmessagesfromchannel(call: Call[ReadChannel]) -> Answer:
    """Reading one message by its id, if one is given, and else the newest messages of a channel."""
    account = await account_of(call)
    body = call.body
    if body.message_id is not UNSET:
        message = await call.reading.message(account, whole_id(body.message_id))
        return 200, {"messages": [shown(message) if isinstance(message, Message) else shown_direct(message)]}
    assert body.name is not UNSET and body.count is not UNSET, "the body was checked"  # noqa: S101, PT018
    return listed(await call.reading.channel(account, body.name, whole_count(body.count), _of_channel))


async def sendmessage(call: Call[SendMessage]) -> Answer:
    """Sending a message to a channel."""
    account = await account_of(call)
    call.services.messages_per_account.take(account.account_id)
    body = call.body
    await call.commands.send_message(
        account,
        body.channel,
        body.message,
        call.request_id,
        call.idempotency_key,
        source_address=call.address,
    )
    return said(200, "Message sent!")


async def getchannels(call: Call[WithToken]) -> Answer:
    """Get list of channels a user has."""
    account = await account_of(call)
    return listed(await call.reading.channels(account, _joined), "You are not in any channels!")


def _of_channel(messages: Sequence[Message]) -> bytes:
    return rendered({"messages": [shown(message) for message in messages]})


def _joined(channels: Sequence[Channel]) -> bytes:
    return rendered({"channels": [shown_channel(channel) for channel in channels]}) if channels else b""
