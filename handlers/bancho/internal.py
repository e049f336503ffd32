"""Internal endpoints, two of which need the key: restarting, writing as FokaBot, and who is verified."""

from __future__ import annotations

from chat import rules
from chat.commands import Account
from chat.names import BOT_ID, BOT_NAME, safe_name
from chat.refusals import Reason, Refused
from handlers.bancho.call import Answer, Call, Done, Result

# What clients are told: after so many seconds the supervisor will have started the server again.
RECONNECT_SECONDS = 10
NOT_VERIFIED = -1
_BOT = Account(BOT_ID, BOT_NAME)


async def ci_trigger(call: Call) -> Answer:
    """Asks all nodes to tell their clients of a restart and to stop; once is enough."""
    call.check_key()
    if not call.services.restarting():
        await call.services.connections.request_restart(RECONNECT_SECONDS)
    return Done()


async def fokabot_message(call: Call) -> Answer:
    """Sends a message from FokaBot to a channel, whatever kind it is of, or to somebody who is online."""
    call.check_key()
    to, text = call.required_text("to"), call.required_text("msg")
    rules.check_text("msg", text)
    if to.startswith("#"):
        await call.services.commands.send_message(_BOT, to, text, call.request_id, source_address=call.address)
        return Done()
    return await _tell(call, to, text)


async def verified_status(call: Call) -> Answer:
    """-1 for an account that is not verified or does not exist, 0 for one flagged as multiaccount, 1 for a verified."""
    account_id = call.required_id("u")
    return Result(NOT_VERIFIED if account_id is None else await call.services.verification.status(account_id))


async def _tell(call: Call, username: str, text: str) -> Answer:
    account = await call.services.models.account_by_name(safe_name(username))
    if account is None:
        raise Refused(Reason.USER_NOT_FOUND)
    if not await call.services.presence.is_online(account.account_id):
        return Done(message="user is offline, message not sent")
    await call.services.commands.send_direct_message(
        _BOT, account.username, text, call.request_id, source_address=call.address
    )
    return Done()
