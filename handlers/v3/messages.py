"""Messaging system: announcements, one's own messages, one message, deleting."""

from __future__ import annotations

from collections.abc import Sequence

from handlers.v3.answers import Answer, listed, rendered, said, shown
from handlers.v3.bodies import DeleteMessage, ReadNewest, ReadSent, whole_count, whole_id
from handlers.v3.call import Call, account_of
from projections.messages import Message


async def getmessagesforeveryone(call: Call[ReadNewest]) -> Answer:
    """Getting messages for everyone: the announcements."""
    await account_of(call)
    return listed(await call.reading.announcements(whole_count(call.body.count), _announced))


async def getmysentmessages(call: Call[ReadSent]) -> Answer:
    """Get sent messages of a user."""
    account = await account_of(call)
    return listed(await call.reading.sent_by(account, whole_count(call.body.count), _sent), "No sent messages!")


async def deletemessage(call: Call[DeleteMessage]) -> Answer:
    """Delete a message."""
    account = await account_of(call)
    message_id = whole_id(call.body.message_id)
    await call.commands.delete_message(account, message_id, call.request_id, source_address=call.address)
    return said(200, "Message deleted!")


def _announced(messages: Sequence[Message]) -> bytes:
    return rendered({"message": "Got messages!", "messages": [shown(message) for message in messages]})


def _sent(messages: Sequence[Message]) -> bytes:
    return rendered({"sent_messages": [shown(message) for message in messages]}) if messages else b""
