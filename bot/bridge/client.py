"""The client of discord.py that listens at Discord's gateway, and hands on what it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

import discord
import structlog
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

# So many sessions of those that Discord lets a bot begin in a day are left unused. Beyond the last it takes the token
# from the bot ("Gateway", "Session Start Limit").
_SPARE_SESSIONS = 50

_log = structlog.get_logger(__name__)


class Inbox(Protocol):
    """What takes in what happens in channels. It only notes it, so that the order stays as Discord told it."""

    def connected(self) -> None:
        """A new session began: what happened before it, nobody tells."""

    def message(self, message: discord.Message) -> None:
        """Somebody said something."""

    def edited(self, message: discord.Message) -> None:
        """A message is as it is now."""

    def deleted(self, channel_id: int, message_ids: Iterable[int]) -> None:
        """Messages of a channel are gone."""


class Conversation(Protocol):
    """What answers those who speak to the bot."""

    def concerns(self, message: discord.Message) -> bool:
        """Whether a message is for the bot itself."""

    async def hear(self, message: discord.Message) -> None:
        """Answers it."""


class GatewayClient(discord.AutoShardedClient):
    """Listens at the gateway for one life of its connection: sessions are resumed, but not begun again.

    It keeps neither members nor messages. What it hears goes to those it was given by `tell`, which must be before it
    connects.
    """

    def __init__(self) -> None:
        intents = discord.Intents.none()
        intents.guilds = intents.guild_messages = intents.dm_messages = intents.message_content = True
        super().__init__(
            intents=intents,
            max_messages=None,
            member_cache_flags=discord.MemberCacheFlags.none(),
            chunk_guilds_at_startup=False,
            # For an event that nobody here waits for.
            guild_ready_timeout=0.0,
            allowed_mentions=discord.AllowedMentions.none(),
        )
        self._inbox: Inbox
        self._conversation: Conversation

    def tell(self, inbox: Inbox, conversation: Conversation) -> None:
        """Hands on what is heard from now on."""
        self._inbox = inbox
        self._conversation = conversation

    async def launch_shards(self) -> None:
        """Connects to the gateway of the Discord that is asked by REST, which need not be the one known by default.

        If too few sessions may be begun, it waits until there are more.
        """
        self.shard_count, url, limit = await self.http.get_bot_gateway()
        if limit["remaining"] < self.shard_count + _SPARE_SESSIONS < limit["total"]:
            seconds = limit["reset_after"] / 1000
            _log.error("too many sessions of Discord's gateway were begun: waiting for new ones", seconds=seconds)
            await asyncio.sleep(seconds)
        DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(url)
        await super().launch_shards()

    async def on_connect(self) -> None:
        """A new session began."""
        self._inbox.connected()

    async def on_message(self, message: discord.Message) -> None:
        """Somebody said something."""
        if self._conversation.concerns(message):
            await self._conversation.hear(message)
        else:
            self._inbox.message(message)

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        """Somebody changed a message."""
        self._inbox.edited(payload.message)

    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        """A message is gone."""
        self._inbox.deleted(payload.channel_id, [payload.message_id])

    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        """Several messages of a channel are gone."""
        self._inbox.deleted(payload.channel_id, payload.message_ids)


def prepare(api: str) -> None:
    """Sets up discord.py for this process: the base of the addresses of Discord's REST interface, and what it logs."""
    Route.BASE = api
    # Below warnings it would tell what people say.
    logging.getLogger("discord").setLevel(max(logging.WARNING, logging.getLogger().level))
    discord.VoiceClient.warn_nacl = discord.VoiceClient.warn_dave = False
