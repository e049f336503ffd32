"""Channel system: making channels, bringing people in, writing and reading."""

from __future__ import annotations

from msgspec import UNSET

from handlers.v3.answers import Answer, said, shown, shown_channel
from handlers.v3.bodies import AddUser, MakeChannel, ReadChannel, SendMessage, WithToken, whole_count, whole_id
from handlers.v3.call import Call, account_of


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
        return 200, {"messages": [shown(await call.reading.message(account, whole_id(body.message_id)))]}
    assert body.name is not UNSET and body.count is not UNSET, "the body was checked"  # noqa: S101, PT018
    messages = await call.reading.channel(account, body.name, whole_count(body.count))
    return 200, {"messages": [shown(message) for message in messages]}


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
    channels = await call.reading.channels(account)
    if not channels:
        return said(404, "You are not in any channels!")
    return 200, {"channels": [shown_channel(channel) for channel in channels]}
