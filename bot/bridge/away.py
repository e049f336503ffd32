"""What it looks like when Discord, or the log, cannot be asked now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
import discord
import structlog

from eventstore.backoff import Backoff
from eventstore.errors import LogUnavailable

# What discord.py raises when Discord did not do what it was asked; `is_final` tells which of it to try again.
AWAY: tuple[type[Exception], ...] = (
    discord.HTTPException,
    discord.RateLimited,
    discord.GatewayNotFound,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
)

# Codes that come with a refusal which passes (opcodes and status codes, "JSON Error Codes"): no code at all, as what
# stands before Discord answers; slow mode; too many direct messages begun, sending or all of it switched off for the
# time being; overloaded; taken for an attacker.
_PASSING = frozenset({0, 20016, 40003, 40004, 40006, 130000, 40333})

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


def is_final(error: Exception) -> bool:
    """Whether Discord itself refuses: asking the same again would not help."""
    if not isinstance(error, discord.HTTPException):
        return False
    return error.status in (400, 403, 404) and error.code not in _PASSING


async def patiently(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """The outcome of an attempt, which is repeated while the log is away."""
    backoff = Backoff()
    waits = False
    while True:
        await backoff.pause()
        try:
            return await attempt()
        except LogUnavailable as error:
            if not waits:
                _log.warning("the bridge to Discord waits for the log", error=str(error))
            waits = True
