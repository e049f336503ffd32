"""Messaging system: announcements, one's own messages, one message, deleting."""

from __future__ import annotations

from handlers.v3.answers import Answer, said, shown
from handlers.v3.bodies import DeleteMessage, ReadNewest, ReadSent, whole_count, whole_id
from handlers.v3.call import Call, account_of


async def getmessagesforeveryone(call: Call[ReadNewest]) -> Answer:
    """Getting messages for everyone: the announcements."""
    await account_of(call)
    messages = await call.reading.announcements(whole_count(call.body.count))
    return 200, {"message": "Got messages!", "messages": [shown(message) for message in messages]}


async def getmysentmessages(call: Call[ReadSent]) -> Answer:
    """Get sent messages of a user."""
    account = await account_of(call)
    messages = await call.reading.sent_by(account, whole_count(call.body.count))
    if not messages:
        return said(404, "No sent messages!")
    return 200, {"sent_messages": [shown(message) for message in messages]}


async def deletemessage(call: Call[DeleteMessage]) -> Answer:
    """Delete a message."""
    account = await account_of(call)
    message_id = whole_id(call.body.message_id)
    await call.commands.delete_message(account, message_id, call.request_id, source_address=call.address)
    return said(200, "Message deleted!")
