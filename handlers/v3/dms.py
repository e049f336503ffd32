"""Dm system: direct messages between two accounts."""

from __future__ import annotations

from handlers.v3.answers import Answer, said, shown
from handlers.v3.bodies import ReadNewest, SendDirectMessage, whole_count
from handlers.v3.call import Call, account_of


async def getdms(call: Call[ReadNewest]) -> Answer:
    """Get dms of a user: those received and those sent."""
    account = await account_of(call)
    messages = await call.reading.direct_messages(account, whole_count(call.body.count))
    if not messages:
        return said(404, "No dms!")
    return 200, {"dms": [shown(message) for message in messages]}


async def senddm(call: Call[SendDirectMessage]) -> Answer:
    """Send a dm."""
    account = await account_of(call)
    call.services.messages_per_account.take(account.account_id)
    body = call.body
    await call.commands.send_direct_message(
        account,
        body.username,
        body.message,
        call.request_id,
        call.idempotency_key,
        source_address=call.address,
    )
    return said(200, "Dm message sent!")
