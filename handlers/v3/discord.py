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
    """What the people to whom the deliveries go are called here."""
    ids = {each.destination.discord_user_id for each in found if each.destination.discord_user_id is not None}
    return {discord_user_id: await _name(services, discord_user_id) for discord_user_id in ids}


async def _name(services: Services, discord_user_id: int) -> str | None:
    """The name of somebody's account rather than that on Discord, which they may want to keep from people here."""
    account = await services.models.account_of_discord_user(discord_user_id)
    return await services.models.discord_username(discord_user_id) if account is None else account.username
