"""Public endpoints: who is online, how many are, and whether the server serves."""

from __future__ import annotations

from chat.names import safe_name
from handlers.bancho.call import Answer, Call, Result

SERVING, RESTARTING = 1, -1


async def is_online(call: Call) -> Answer:
    """Checks if someone is online: `u` wins over `id`, and who does not exist is not online."""
    account_id = await _account_id(call)
    return Result(account_id is not None and await call.services.presence.is_online(account_id))


async def online_users(call: Call) -> Answer:
    """How many accounts are online, the bot among them."""
    return Result(await call.services.presence.online_accounts())


async def server_status(call: Call) -> Answer:
    """1 while serving, -1 from the moment that a restart was asked for."""
    return Result(RESTARTING if call.services.restarting() else SERVING)


async def _account_id(call: Call) -> int | None:
    username = call.text("u")
    if username is None:
        return call.required_id("id")
    account = await call.services.models.account_by_name(safe_name(username))
    return None if account is None else account.account_id
