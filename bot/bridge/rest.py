"""Discord's REST interface by discord.py, as the outbox needs it: a client that never connects to the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime

import discord

from bot.bridge.away import AWAY, is_final
from bot.bridge.outbox import Declined, NotAuthorised, Sent, TryLater

# A longer pause that Discord asks for is waited for by the outbox, which then looks again what there is to do.
_LONGEST_PAUSE = 30.0
# How long Discord may take for what it is asked at once, its shorter pauses included. Discord remembers nonces for
# longer: so what was frozen meanwhile, and leads no more, does not send what another process has sent long since.
ANSWER_SECONDS = 60.0
# How long a client may take to say good-bye: what does not answer is left.
_CLOSE_SECONDS = 1.0

# Of a history Discord gives at once (API reference, "Get Channel Messages").
_PAGE = 100

# What the sender is told, by Discord's code ("JSON Error Codes").
_REASONS = {
    10003: "there is no such channel",
    10008: "there is no such message",
    10013: "there is no such person",
    50001: "the bot does not see the channel",
    50007: "the person takes no direct messages from the bot",
    50013: "the bot may not do that there",
    50278: "the person shares no server with the bot",
    50033: "there is no such person",
    200000: "AutoMod blocks it",
}


@asynccontextmanager
async def logged_in(token: str) -> AsyncIterator[Rest]:
    """Discord's REST interface for the bot of this token; raises `NotAuthorised` and `TryLater`."""
    client = discord.Client(
        # It hears of nothing, but discord.py warns of a client without guilds.
        intents=discord.Intents(guilds=True),
        max_messages=None,
        max_ratelimit_timeout=_LONGEST_PAUSE,
        allowed_mentions=discord.AllowedMentions.none(),
    )
    try:
        async with asked(client):
            await client.login(token)
        yield Rest(client)
    finally:
        await close(client)


async def close(client: discord.Client) -> None:
    """Closes a client, without its good-byes if the other side does not answer them."""
    if client.is_closed():
        # By itself, or by an earlier call that may have been cut short.
        await client.http.close()
        return
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()
    except AWAY:
        await client.http.close()


@asynccontextmanager
async def asked(client: discord.Client) -> AsyncIterator[None]:
    """Ends what takes Discord too long; raises what a client raises as `told` does."""
    with told():
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                yield
        except TimeoutError:
            # A request that is cut off in the pause that holds for all would leave all others waiting for its end.
            client.http._global_over.set()
            raise


@contextmanager
def told() -> Iterator[None]:
    """Raises what discord.py raises as `Declined`, `TryLater` or `NotAuthorised`."""
    try:
        yield
    except discord.LoginFailure as error:
        raise NotAuthorised from error
    except discord.RateLimited as error:
        raise TryLater("too many requests", seconds=error.retry_after) from error
    except discord.HTTPException as error:
        if error.status == 401:
            raise NotAuthorised from error
        if is_final(error):
            raise Declined(_REASONS.get(error.code, f"Discord refuses it (code {error.code})")) from error
        raise TryLater(f"Discord answers {error.status}", seconds=_pause_of(error)) from error
    except AWAY as error:
        raise TryLater(f"Discord cannot be reached ({type(error).__name__})") from error


def _pause_of(error: discord.HTTPException) -> float | None:
    """How many seconds to wait, if what stands before Discord says so (RFC 9110, section 10.2.3)."""
    asked = str(error.response.headers.get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else None


class Rest:
    """`bot.bridge.outbox.DiscordSide`, by a client that is logged in."""

    def __init__(self, client: discord.Client) -> None:
        self._client = client

    async def direct_channel(self, user_id: int) -> int:
        """The channel of direct messages with a person."""
        async with asked(self._client):
            return (await self._client.create_dm(discord.Object(user_id))).id

    async def send(self, channel_id: int, text: str, nonce: str) -> int:
        """Sends a message, which mentions nobody, as the client has it; its id. discord.py has nonces enforced."""
        async with asked(self._client):
            channel = self._client.get_partial_messageable(channel_id)
            return (await channel.send(text, nonce=nonce)).id

    async def own_messages(self, channel_id: int, since: datetime) -> AsyncGenerator[list[Sent], None]:
        """What the bot has sent to a channel since then, newest first, page by page."""
        me = 0 if self._client.user is None else self._client.user.id
        after = discord.utils.time_snowflake(since)
        channel = self._client.get_partial_messageable(channel_id)
        before: discord.Message | None = None
        while True:
            async with asked(self._client):
                page = [message async for message in channel.history(limit=_PAGE, before=before)]
            late = [message for message in page if message.id > after]
            yield [Sent(message.id, message.content) for message in late if message.author.id == me]
            if len(late) < _PAGE:
                return
            before = page[-1]

    async def delete(self, channel_id: int, message_id: int) -> None:
        """Deletes a message."""
        async with asked(self._client):
            await self._client.get_partial_messageable(channel_id).get_partial_message(message_id).delete()
