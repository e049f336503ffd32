"""What tests of the bridge's way to Discord need: somebody who writes, a Discord, and what is between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from bot.bridge.outbox import DeliveryModel, Outbox
from bot.bridge.rest import logged_in
from chat.bridging import Bridging, Delivery, DiscordUser
from chat.commands import Account, Commands, utc_now
from eventstore.log import EventLog
from projections.models import ReadModels
from tests.conftest import SECRET
from tests.standin.faults import Predicate, Request
from tests.standin.server import Discord
from tests.standin.things import Channel, User

DAY = timedelta(days=1)
# First and longest pause between attempts.
PAUSES = (0.01, 0.05)


@dataclass
class Scene:
    """Alice at Minutebook, a Discord with a channel, and what is between them."""

    log: EventLog
    models: ReadModels
    commands: Commands
    bridging: Bridging
    discord: Discord
    channel: Channel
    alice: Account
    den: str = "den"

    async def writes(self, *texts: str) -> list[int]:
        """Alice writes to the default channel; the deliveries' ids."""
        appended = [await self.bridging.send_to_default(self.alice, text, "request") for text in texts]
        return [each.first_position for each in appended]

    async def writes_to(self, person: User, *texts: str) -> list[int]:
        """Alice writes to somebody who has written to the bot."""
        await self.bridging.see_user(DiscordUser(person.id, person.username), "seen")
        return [
            (await self.bridging.send(self.alice, person.username, text, "request")).first_position for text in texts
        ]

    async def says(self, *texts: str) -> list[int]:
        """Alice says something in her channel, which is bridged; the messages' ids."""
        return [
            (await self.commands.send_message(self.alice, self.den, text, "request")).first_position for text in texts
        ]

    async def bridges(self, *more: tuple[str, Channel]) -> None:
        """Alice's channel is bridged to the one on Discord, and more of hers to others."""
        on_discord = DiscordUser(self.discord.person("alice").id, "alice")
        await self.bridging.link(on_discord, self.bridging.link_code(self.alice).code, "link")
        for name, channel in ((self.den, self.channel), *more):
            await self.commands.make_channel(self.alice, name, "request")
            await self.bridging.bridge(on_discord.discord_user_id, name, channel.id, 0, "bridge")

    async def delivery(self, delivery_id: int) -> Delivery:
        delivery = await self.models.deliveries.by_id(delivery_id)
        assert delivery is not None
        return delivery

    async def settled(self, *delivery_ids: int) -> list[str]:
        """What has become of deliveries, once none of them waits; with the reasons of those that failed."""
        async with asyncio.timeout(10):
            while True:
                deliveries = [await self.delivery(each) for each in delivery_ids]
                if all(each.status != "waiting" for each in deliveries):
                    return [each.failed or each.status for each in deliveries]
                await asyncio.sleep(0.005)

    def shown(self, channel: Channel | None = None) -> list[str]:
        """What stands in a channel on Discord."""
        return [message.content for message in self.discord.messages(channel or self.channel)]

    @asynccontextmanager
    async def outbox(
        self,
        now: Callable[[], datetime] = utc_now,
        model: DeliveryModel | None = None,
        pauses: tuple[float, float] = PAUSES,
    ) -> AsyncIterator[None]:
        """Delivers meanwhile; `model` is what it asks in place of the read model."""
        async with logged_in(self.discord.token) as rest:
            asked = model or self.models.deliveries
            outbox = Outbox(self.log, asked, self.bridging, rest, give_up=DAY, pauses=pauses, now=now)
            running = asyncio.create_task(outbox.run())
            try:
                yield
                assert not running.done()
            finally:
                running.cancel()
                await asyncio.wait([running])

    async def ends(self) -> None:
        """Nothing waits any more for this scene, on whose log another one follows."""
        for destination in await self.models.deliveries.destinations():
            for delivery in await self.models.deliveries.waiting(destination, 1000):
                await self.bridging.failed(delivery, "the scene has ended")
        for copy in await self.models.deliveries.doomed(1000):
            await self.bridging.withdrawn(copy.discord_channel_id, [copy.discord_message_id])

    async def until_nothing_waits(self) -> None:
        """Returns when all deliveries are settled."""
        async with asyncio.timeout(30):
            while await self.models.deliveries.destinations():  # noqa: ASYNC110 - a question to the database
                await asyncio.sleep(0.02)

    async def until_no_copy_is_doomed(self) -> None:
        """Returns when nothing is left to be deleted on Discord."""
        async with asyncio.timeout(10):
            while await self.models.deliveries.doomed(1):  # noqa: ASYNC110 - a question to the database
                await asyncio.sleep(0.005)


def make_scene(log: EventLog, models: ReadModels, commands: Commands, discord: Discord, alice: Account) -> Scene:
    """A scene in which the channel on Discord is the default one, and Alice's channel has a name of its own."""
    channel = discord.text_channel(discord.guild("Minutes"), "general")
    bridging = Bridging(log, models, commands, SECRET, default_channel=channel.id, configured=True)
    return Scene(log, models, commands, bridging, discord, channel, alice, den=f"den-{channel.id}")


async def register_alice(commands: Commands) -> Account:
    """Her account."""
    return await commands.register("Alice", "Passw0rd!", "request")


def sending(channel: Channel | None = None) -> Predicate:
    """The requests that send a message, to any channel or to one."""
    where = "/channels/" if channel is None else f"/channels/{channel.id}/messages"
    return lambda request: request.method == "POST" and where in request.path


def deleting(channel: Channel) -> Predicate:
    """The requests that delete a channel's messages."""
    return lambda request: request.method == "DELETE" and f"/channels/{channel.id}/" in request.path


def reading(request: Request) -> bool:
    """The requests that read a channel's history."""
    return request.method == "GET" and "/messages" in request.path
