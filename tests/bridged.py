"""What the bridge to Discord does, done by tests: it meets and links people, bridges channels, settles deliveries."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from chat.bridging import Bridging, Delivery, DiscordUser
from chat.commands import Account, Commands
from projections.models import ReadModels
from tests.v3client import Person, World, fresh

CONTEXT = "the bridge of the tests"
_ids = itertools.count(10**18)


def fresh_id() -> int:
    """An id of Discord that nothing else in this run has."""
    return next(_ids)


class Bridge(NamedTuple):
    """The commands of the bridge, and what they go by."""

    bridging: Bridging
    commands: Commands
    models: ReadModels

    async def meets(self, username: str | None = None) -> DiscordUser:
        """Somebody on Discord writes to the bot."""
        user = DiscordUser(fresh_id(), username or fresh("somebody"))
        await self.bridging.see_user(user, CONTEXT)
        return user

    async def links(self, person: Person) -> DiscordUser:
        """Somebody here shows on Discord who they are; the user there."""
        user = DiscordUser(fresh_id(), fresh("somebody"))
        linked = await person.does("linkdiscord")
        assert linked.status == 200, linked
        await self.bridging.link(user, linked.body["code"], CONTEXT)
        return user

    async def joins(self, person: Person, channel: str) -> int:
        """Somebody here bridges a channel that they are in; the channel on Discord."""
        user, discord_channel = await self.links(person), fresh_id()
        await self.bridging.bridge(user.discord_user_id, channel, discord_channel, fresh_id(), CONTEXT)
        return discord_channel

    async def newest(self, person: Person) -> Delivery:
        """The newest delivery of somebody."""
        [delivery] = await self.models.deliveries.of_sender((await self.account(person)).account_id, 1)
        return delivery

    async def delivers(self, person: Person, *discord_message_ids: int) -> Delivery:
        """The newest delivery of somebody is made; as it was before."""
        delivery = await self.newest(person)
        await self.bridging.delivered(delivery, fresh_id(), discord_message_ids)
        return delivery

    async def fails(self, person: Person, reason: str) -> Delivery:
        """The newest delivery of somebody is given up; as it was before."""
        delivery = await self.newest(person)
        await self.bridging.failed(delivery, reason)
        return delivery

    async def account(self, person: Person) -> Account:
        """Somebody's account."""
        return await self.commands.authenticate(person.token)


def bridge_of(world: World) -> Bridge:
    """What the bridge of a world would do."""
    return Bridge(world.services.bridging, world.commands, world.services.models)
