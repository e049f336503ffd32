"""What the read models keep, at two nodes, beside what stands in the tables."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

import projections
from chat.bridging import Bridging, DiscordUser
from chat.commands import Account, Channel, Commands
from chat.erasure import Erasure
from chat.moderation import Moderation
from chat.passwords import PasswordHasher
from chat.refusals import Refused
from chat.tokens import token_digest
from eventstore.log import EventLog
from projections.models import ReadModels
from projections.traces import Traces
from tests.conftest import OPERATOR, SECRET

PASSWORD = "Passw0rd!"
# Few, so that what is done to one is often done again, or undone.
PEOPLE, CHANNELS, DISCORD_CHANNELS = 4, 2, (5, 6)
ON_DISCORD = DiscordUser(77, "operator")


@dataclass(frozen=True)
class Node:
    """A node of the system: a log of its own on the database that all share, and what is done by it."""

    log: EventLog
    models: ReadModels
    commands: Commands
    moderation: Moderation
    erasure: Erasure
    bridging: Bridging


@asynccontextmanager
async def node(database: str, passwords: PasswordHasher) -> AsyncIterator[Node]:
    async with EventLog(database, projections.ALL) as log:
        models = ReadModels(log)
        commands = Commands(log, models, passwords, SECRET, operators=[OPERATOR])
        await commands.prepare()
        erasure = Erasure(log, models, Traces(log.reader), under_way=0)
        bridging = Bridging(log, models, commands, SECRET, default_channel=None, configured=True)
        yield Node(log, models, commands, Moderation(log, models, [OPERATOR]), erasure, bridging)


@dataclass
class World:
    """Who and what there is, whom it is done to, and the digests of all tokens that there ever were."""

    operator: Account
    people: list[Account]
    channels: list[Channel]
    digests: list[str]

    @classmethod
    async def make(cls, at: Node) -> World:
        operator = await at.commands.register(OPERATOR, PASSWORD, "c")
        people = [await at.commands.register(f"person {number}", PASSWORD, "c") for number in range(PEOPLE)]
        channels = [await at.commands.make_channel(operator, f"room {number}", "c") for number in range(CHANNELS)]
        await at.bridging.see_user(ON_DISCORD, "c")
        await at.bridging.link(ON_DISCORD, at.bridging.link_code(operator).code, "c")
        return cls(operator, people, channels, [])

    async def issue(self, at: Node, account: Account) -> None:
        token, _ = await at.commands.generate_token(account, "c")
        self.digests.append(token_digest(token))

    def deeds(self, at: Node, chance: random.Random) -> Sequence[Callable[[], Awaitable[object]]]:
        """What can be done next at a node; it may be refused. Who is banned can do little, so bans are the rarer."""
        whom, operator = chance.choice(self.people), self.operator
        name, room, discord = whom.username, chance.choice(self.channels).name, chance.choice(DISCORD_CHANNELS)
        return (
            lambda: self.issue(at, whom),
            lambda: self.issue(at, whom),
            lambda: at.moderation.silence(operator, name, 60, "", "c"),
            lambda: at.moderation.remove_silence(operator, name, "c"),
            lambda: at.moderation.ban(operator, name, "", "c"),
            lambda: at.moderation.unban(operator, name, "c"),
            lambda: at.moderation.unban(operator, name, "c"),
            lambda: at.commands.add_member(operator, room, name, "c"),
            lambda: at.bridging.bridge(ON_DISCORD.discord_user_id, room, discord, 1, "c"),
            lambda: at.bridging.unbridge(ON_DISCORD.discord_user_id, discord, "c"),
        )

    async def kept(self, models: ReadModels) -> list[object]:
        """What the read models answer, which they may have kept."""
        return [
            *[await models.bearer_of_token(digest) for digest in self.digests],
            *[await models.restrictions(account.account_id) for account in self.people],
            *[await models.account_by_id(account.account_id) for account in self.people],
            *[await models.account_by_name(account.username) for account in self.people],
            *[await models.is_member(*pair) for pair in self.pairs()],
            *[await models.bridge_of(channel.channel_id) for channel in self.channels],
        ]

    async def in_tables(self, models: ReadModels) -> list[object]:
        """The same as the tables have it."""
        bridges = {bridge.channel_id: bridge for bridge in await models.bridges.all()}
        return [
            *[await models.tokens.bearer(digest) for digest in self.digests],
            *[await models.moderation.restrictions(account.account_id) for account in self.people],
            *[await models.accounts.by_id(account.account_id) for account in self.people],
            *[await models.accounts.by_name(account.username) for account in self.people],
            *[await models.channels.is_member(*pair) for pair in self.pairs()],
            *[bridges.get(channel.channel_id) for channel in self.channels],
        ]

    def pairs(self) -> list[tuple[int, int]]:
        return [(channel.channel_id, account.account_id) for channel in self.channels for account in self.people]


async def catch_up(at: Node) -> None:
    while not await at.log.caught_up():
        pass


@pytest.mark.gen_test
async def test_whatever_is_done_at_either_node_both_answer_as_the_tables_do(
    database: str, passwords: PasswordHasher
) -> None:
    chance = random.Random(3)
    async with node(database, passwords) as here, node(database, passwords) as there:
        world = await World.make(here)
        for step in range(54):
            doing, hearing = chance.sample([here, there], 2)
            deed = chance.choice(world.deeds(doing, chance))
            if step % 18 == 17:
                await doing.erasure.erase_account(world.people[step // 18].account_id, "", "the operator")
            else:
                with contextlib.suppress(Refused):
                    await deed()

            assert await world.kept(doing.models) == await world.in_tables(doing.models)
            await catch_up(hearing)
            assert await world.kept(hearing.models) == await world.in_tables(hearing.models)

    assert len(world.digests) > 5, "much was done"
