"""Messages to Discord, what has become of them, and who one is there."""

from __future__ import annotations

from collections.abc import Iterable

from chat.bridging import Delivery
from handlers.services import Services
from handlers.v3.answers import Answer, People, said, shown_delivery
from handlers.v3.bodies import ReadSent, SendToDiscord, SendToSomebodyOnDiscord, WithToken, whole_count
from handlers.v3.call import Call, account_of


async def senddcmsgwithtoken(call: Call[SendToDiscord]) -> Answer:
    """Sending a message to discord."""
    account = await account_of(call)
    call.services.messages_per_account.take(account.account_id)
    await call.services.bridging.send_to_default(
        account, call.body.message, call.request_id, call.idempotency_key, source_address=call.address
    )
    return said(200, "Sent message!")


async def senddcmsg(call: Call[SendToSomebodyOnDiscord]) -> Answer:
    """Send a message to a bridged channel, or to a person on Discord."""
    account = await account_of(call)
    call.services.messages_per_account.take(account.account_id)
    body = call.body
    await call.services.bridging.send(
        account,
        body.channel,
        body.message,
        call.request_id,
        call.idempotency_key,
        source_address=call.address,
    )
    return said(200, "Dm message sent!")


async def linkdiscord(call: Call[WithToken]) -> Answer:
    """Get a code by which somebody on Discord shows that they are this account."""
    made = call.services.bridging.link_code(await account_of(call))
    return 200, {"message": "Link code made!", "code": made.code, "expires_in": made.expires_in}


async def deliveries(call: Call[ReadSent]) -> Answer:
    """Get what one has sent to Discord, and what has become of it."""
    account = await account_of(call)
    found = await call.services.models.deliveries.of_sender(account.account_id, whole_count(call.body.count))
    people = await _people(call.services, found)
    return 200, {"deliveries": [shown_delivery(delivery, people) for delivery in found]}


async def _people(services: Services, found: Iterable[Delivery]) -> People:
    """What those are called to whom the deliveries go, and who were called by their names on Discord."""
    ids = {each.destination.discord_user_id for each in found if each.recipient is None}
    return {each: await services.models.discord_username(each) for each in ids if each is not None}
