"""A call of the V3 API, free of HTTP: what was asked, by whom, in the course of what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from chat.commands import Account, Commands
from handlers.services import Services
from handlers.v3.answers import Answer
from handlers.v3.bodies import Body, WithToken
from projections.reading import Reading

B_co = TypeVar("B_co", bound=Body, covariant=True)


class Call(msgspec.Struct, Generic[B_co], frozen=True, gc=False):
    """One request, decoded and checked: its body, the request's id and the caller's address.

    `account` is who calls, where that is known before the call: on a registered connection.
    """

    body: B_co
    services: Services
    request_id: str
    address: str
    idempotency_key: str | None = None
    account: Account | None = None

    @property
    def commands(self) -> Commands:
        """The commands."""
        return self.services.commands

    @property
    def reading(self) -> Reading:
        """The queries."""
        return self.services.reading


async def account_of(call: Call[WithToken]) -> Account:
    """The account whose token the call carries; refuses an invalid one."""
    return call.account or (await call.services.commands.bearer(call.body.token)).account


# An endpoint: from a call to its answer. It raises `Refused`, `Malformed`, `TooMany` for others to put into words.
Endpoint = Callable[[Call[B_co]], Awaitable[Answer]]
