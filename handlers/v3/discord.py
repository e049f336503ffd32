"""Messages to Discord. Nothing is bridged to Discord yet, and the answer says so."""

from __future__ import annotations

from handlers.v3.answers import Answer, said
from handlers.v3.bodies import SendMessage, SendToDiscord
from handlers.v3.call import Call, account_of


async def senddcmsgwithtoken(call: Call[SendToDiscord]) -> Answer:
    """Sending a message to discord."""
    await account_of(call)
    return said(503, "Discord is not configured!")


async def senddcmsg(call: Call[SendMessage]) -> Answer:
    """Send a message to a bridged channel, or to a person on Discord."""
    await account_of(call)
    return said(503, "Discord is not configured!")
