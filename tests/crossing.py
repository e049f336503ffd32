"""Both sides of the bridge in one process: the log's commands and read models, the stand-in for Discord, the bridge.

async with bridge.running():
    discord.says(otto, general, "Hello!")
    await both.reads(("alice", "Hello!"))
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from bot.bridge import inbox
from bot.bridge.away import patiently
from bot.bridge.bridge import LEADERSHIP, NAME, Bridge
from bot.bridge.client import GatewayClient
from chat.bridging import BRIDGED, UNBRIDGED, Bridging, DiscordUser
from chat.commands import Account, Channel, Commands
from eventstore.leadership import Leadership
from eventstore.log import EventLog
from projections.models import ReadModels
from tests.conftest import SECRET, until
from tests.standin import things
from tests.standin.clients import point_clients_at, tasks_end
from tests.standin.server import Discord

CONTEXT = "the other side"
PASSWORD = "Wond3rland!"
DEN = "den"


@dataclass(frozen=True)
class Both:
    """Both sides. `general` is a channel of Discord; bridged, it is the channel `den` here."""

    conninfo: str
    log: EventLog
    models: ReadModels
    commands: Commands
    bridging: Bridging
    discord: Discord
    general: things.Channel

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A bridge runs, and is connected."""
        bridge = Bridge(
            self.log,
            self.models,
            self.bridging,
            Leadership(self.conninfo, LEADERSHIP, NAME),
            token=self.discord.token,
            api=self.discord.api,
            give_up=timedelta(hours=1),
            pauses=(0.02, 0.1),
        )
        async with tasks_end():
            task = asyncio.create_task(bridge.lead())
            try:
                await until(lambda: self.discord.connected or task.done())
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def account(self, username: str) -> Account:
        """A new account."""
        return await self.commands.register(username, PASSWORD, CONTEXT)

    async def den(self, creator: Account) -> Channel:
        """The channel `den`, made by somebody."""
        return await self.commands.make_channel(creator, DEN, CONTEXT)

    async def links(self, person: things.User, account: Account) -> None:
        """Somebody on Discord is an account from now on."""
        code = self.bridging.link_code(account).code
        await self.bridging.link(DiscordUser(person.id, person.username), code, CONTEXT)

    async def bridged(self, person: things.User) -> Account:
        """`general` is bridged to `den` from now on, by somebody on Discord; the account that they have got for it."""
        account = await self.account(person.username)
        await self.den(account)
        await self.links(person, account)
        now = self.discord.world.next_id()
        await self.bridging.bridge(person.id, DEN, self.general.id, now, CONTEXT)
        return account

    async def said(self) -> list[tuple[str, str]]:
        """Who said what in `den`, as everybody reads it, but for what the bot says of the bridge itself."""
        channel = await self.models.channel_by_name(DEN)
        assert channel is not None
        found = await self.models.messages.newest_in_channel(channel, 1000)
        return [(each.sender, each.text) for each in found if each.text not in (BRIDGED, UNBRIDGED)]

    async def reads(self, *expected: tuple[str, str], seconds: float = 10.0) -> None:
        """Returns once this is what was said in `den`; fails with what was if it never is."""
        seen: list[tuple[str, str]] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (seen := await patiently(self.said)) != list(expected):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.005)
        assert seen == list(expected)

    async def takes_in(self, *expected: str, quoting: str, seconds: float = 10.0) -> None:
        """Returns once this is what was said in `den`, all of it by somebody who is linked to no account."""
        await self.reads(*(("FokaBot", f"**{quoting}**: {text}") for text in expected), seconds=seconds)

    def shown(self, channel: things.Channel | None = None) -> list[str]:
        """What the bot said in a channel of Discord."""
        messages = self.discord.messages(channel or self.general)
        return [message.content for message in messages if message.author.id == self.discord.bot.id]


def bridging_of(log: EventLog, models: ReadModels, commands: Commands) -> Bridging:
    """The commands of a bridge that has no default channel."""
    return Bridging(log, models, commands, SECRET, default_channel=None, configured=True)


def point_at(standin: Discord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bridges made from now on call this Discord, soon try again, and begin sessions without Discord's pause of 5 s."""

    async def at_once(_client: object, _shard_id: int | None, *, initial: bool = False) -> None:
        pass

    point_clients_at(standin, monkeypatch)
    monkeypatch.setattr(inbox, "PAUSES", (0.02, 0.1))
    monkeypatch.setattr(GatewayClient, "before_identify_hook", at_once)
