"""Accounting and token system: registering, logging in, making a token and getting it back."""

from __future__ import annotations

from chat import rules
from chat.commands import Account
from chat.names import safe_name
from chat.refusals import Refused
from handlers.v3.answers import Answer, said
from handlers.v3.bodies import Credentials
from handlers.v3.call import Call


async def register(call: Call[Credentials]) -> Answer:
    """Creating an account."""
    await call.commands.register(call.body.username, call.body.password, call.request_id)
    return said(201, "User registered successfully!")


async def login(call: Call[Credentials]) -> Answer:
    """Logging into the account."""
    await _log_in(call)
    return said(200, "Login successful!")


async def generatetoken(call: Call[Credentials]) -> Answer:
    """Creating a token, and changing it."""
    account = await _log_in(call)
    token, generation = await call.commands.generate_token(account, call.request_id)
    return 200, {"message": "Made token!" if generation == 1 else "Changed token!", "token": token}


async def gettoken(call: Call[Credentials]) -> Answer:
    """Checking your token (getting it)."""
    account = await _log_in(call)
    return 200, {"message": "Returning token!", "token": await call.commands.current_token(account)}


async def _log_in(call: Call[Credentials]) -> Account:
    """The account of the call's credentials; failed tries are limited by address and by name."""
    rules.check_password(call.body.password)
    rules.check_username(call.body.username)
    limit = call.services.failed_logins
    name = safe_name(call.body.username)
    async with limit.attempt(("address", call.address), Refused), limit.attempt(("name", name), Refused):
        return await call.commands.log_in(call.body.username, call.body.password)
