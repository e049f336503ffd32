"""Dm system: direct messages between two accounts."""

from __future__ import annotations

from collections.abc import Sequence

from handlers.v3.answers import Answer, listed, rendered, said, shown_direct
from handlers.v3.bodies import ReadNewest, SendDirectMessage, whole_count
from handlers.v3.call import Call, account_of
from projections.dms import DirectMessage


async def getdms(call: Call[ReadNewest]) -> Answer:
    """Get dms of a user: those received and those sent."""
    account = await account_of(call)
    return listed(await call.reading.direct_messages(account, whole_count(call.body.count), _direct), "No dms!")


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


def _direct(messages: Sequence[DirectMessage]) -> bytes:
    return rendered({"dms": [shown_direct(message) for message in messages]}) if messages else b""
