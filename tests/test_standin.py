"""The stand-in for Discord, seen by an unchanged discord.py client."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import discord
import pytest
import zstandard
from discord.ext import commands

from tests.conftest import Enter, until
from tests.standin.clients import point_clients_at, tasks_end
from tests.standin.faults import Limit, Request
from tests.standin.server import Discord
from tests.standin.things import Channel, User
from tests.standin.world import Intents

pytestmark = pytest.mark.gen_test


class Bot(commands.AutoShardedBot):
    """What a bot of discord.py sees, in order."""

    def __init__(self, intents: discord.Intents, **options: Any) -> None:
        # Nothing is cached, so that each message is seen as it was told.
        super().__init__("!", intents=intents, max_messages=None, guild_ready_timeout=0.02, **options)
        self.heard: list[discord.Message] = []
        self.events: list[str] = []

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """Does not wait 5 s."""

    async def on_message(self, message: discord.Message) -> None:
        self.heard.append(message)
        self.events.append(f"says {message.content}")

    async def on_raw_message_edit(self, edit: discord.RawMessageUpdateEvent) -> None:
        self.events.append(f"edits {edit.data['content']}")

    async def on_raw_message_delete(self, deletion: discord.RawMessageDeleteEvent) -> None:
        self.events.append(f"deletes {deletion.message_id}")

    async def on_raw_bulk_message_delete(self, deletion: discord.RawBulkMessageDeleteEvent) -> None:
        self.events.append(f"deletes {len(deletion.message_ids)}")

    async def on_resumed(self) -> None:
        self.events.append("resumed")


def with_content() -> discord.Intents:
    intents = discord.Intents.default()
    intents.message_content = True
    return intents


@asynccontextmanager
async def running(standin: Discord, bot: Bot) -> AsyncIterator[Bot]:
    """A bot that has connected; it is closed at the end."""
    async with tasks_end(), bot:
        task = asyncio.create_task(bot.start(standin.token))
        await until(lambda: bot.is_ready() or task.done())
        assert bot.is_ready()
        yield bot
        await bot.close()
        await task


@pytest.fixture
def options() -> Mapping[str, Any]:
    """How the stand-in is made; tests replace it."""
    return {}


@pytest.fixture
def standin(enter: Enter[Discord], monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any]) -> Discord:
    standin = enter(Discord(**options))
    point_clients_at(standin, monkeypatch)
    return standin


@pytest.fixture
def general(standin: Discord) -> Channel:
    return standin.text_channel(standin.guild("Minutes"), "general")


@pytest.fixture
def alice(standin: Discord) -> User:
    return standin.person("alice", "Alice", nick="Al")


@pytest.fixture
def bot(enter: Enter[Bot], standin: Discord, general: Channel, alice: User) -> Bot:
    return enter(running(standin, Bot(with_content())))


def channel_of(bot: Bot, channel: Channel) -> discord.TextChannel:
    found = bot.get_channel(channel.id)
    assert isinstance(found, discord.TextChannel)
    return found


def said(standin: Discord, channel: Channel) -> list[str]:
    return [message.content for message in standin.messages(channel)]


async def test_a_client_is_ready_with_its_guilds_and_channels(standin: Discord, bot: Bot, general: Channel) -> None:
    assert [guild.name for guild in bot.guilds] == ["Minutes"]
    assert channel_of(bot, general).name == "general"
    assert bot.user is not None
    assert bot.user.id == standin.bot.id
    assert standin.connected


async def test_what_people_write_change_and_delete_comes_in_order(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    first = standin.says(alice, general, f"hello <@{standin.bot.id}>", attachments=["cat.png"])
    standin.edits(first, "hi")
    second, third = standin.says(alice, general, "a", reply_to=first), standin.says(alice, general, "b")
    standin.deletes(first)
    standin.deletes_in_bulk([second, third])

    hello = f"says hello <@{standin.bot.id}>"
    await until(lambda: bot.events == [hello, "edits hi", "says a", "says b", f"deletes {first.id}", "deletes 2"])
    told = bot.heard[0]
    assert (told.author.name, told.author.display_name, told.author.id) == ("alice", "Al", alice.id)
    assert [user.id for user in told.mentions] == [standin.bot.id]
    assert [attachment.filename for attachment in told.attachments] == ["cat.png"]
    assert told.created_at.timestamp() == pytest.approx(first.sent_at, abs=0.002)
    reference = bot.heard[1].reference
    assert reference is not None
    assert reference.message_id == first.id
    assert said(standin, general) == []
    assert [message.deleted for message in standin.messages(general, deleted=True)] == [True, True, True]


async def test_without_the_intent_only_what_mentions_the_bot_has_its_words(
    standin: Discord, general: Channel, alice: User
) -> None:
    async with running(standin, Bot(discord.Intents.default())) as bot:
        standin.says(alice, general, "a secret")
        standin.says(alice, general, f"<@{standin.bot.id}> hello")
        standin.says(alice, standin.dm(alice), "to you")

        await until(lambda: bot.events == ["says ", f"says <@{standin.bot.id}> hello", "says to you"])


async def test_what_the_bot_sends_comes_back_to_it_with_its_nonce(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    allowed = discord.AllowedMentions.none()
    sent = await channel_of(bot, general).send(f"@everyone <@{alice.id}>", nonce="n-1", allowed_mentions=allowed)

    await until(lambda: [message.nonce for message in bot.heard] == ["n-1"])
    [message] = standin.messages(general)
    assert (message.id, message.author, message.nonce) == (sent.id, standin.bot, "n-1")
    assert message.allowed_mentions == {"parse": []}
    assert (message.mentions, message.mention_everyone) == ((), False)


async def test_a_nonce_is_taken_once(standin: Discord, bot: Bot, general: Channel) -> None:
    first = await channel_of(bot, general).send("once", nonce="same")
    second = await channel_of(bot, general).send("once", nonce="same")
    third = await channel_of(bot, general).send("once", nonce="other")

    assert first.id == second.id < third.id
    assert said(standin, general) == ["once", "once"]


async def test_a_message_whose_answer_was_lost_is_found_by_its_nonce(
    standin: Discord, bot: Bot, general: Channel
) -> None:
    standin.fail_next(1, None, only=lambda request: request.method == "POST", apply=True)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await channel_of(bot, general).send("once", nonce="n")
    [lost] = standin.messages(general)

    again = await channel_of(bot, general).send("once", nonce="n")

    assert again.id == lost.id
    assert [request.status for request in standin.requests[-2:]] == [None, 200]


async def test_the_bot_edits_and_deletes_its_own_messages_only(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    own = await channel_of(bot, general).send("one")
    foreign = await channel_of(bot, general).fetch_message(standin.says(alice, general, "hers").id)

    await own.edit(content="two")
    assert said(standin, general) == ["two", "hers"]
    assert standin.messages(general)[0].edited_at is not None
    await own.delete()
    for attempt, code in ((foreign.edit(content="his"), 50005), (foreign.delete(), 50013)):
        with pytest.raises(discord.Forbidden) as refusal:
            await attempt
        assert refusal.value.code == code
    assert said(standin, general) == ["hers"]


async def test_whom_a_message_pings_is_what_its_sender_allowed(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    role = standin.role(standin.world.guilds[general.guild_id or 0], "crew")
    text = f"@here <@{alice.id}> <@&{role.id}> <@1>"
    only_her = discord.AllowedMentions(everyone=False, roles=False, users=[discord.Object(alice.id)])
    await channel_of(bot, general).send(text)
    await channel_of(bot, general).send(text, allowed_mentions=only_her)
    standin.says(alice, general, text)

    pings = [(m.mentions, m.mention_roles, m.mention_everyone) for m in standin.messages(general)]
    assert pings == [((alice,), (role.id,), True), ((alice,), (), False), ((alice,), (role.id,), False)]


async def test_previews_of_links_are_an_update_but_no_edit(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    message = standin.says(alice, general, "https://example.org")
    shown = standin.unfurls(message, {"type": "link", "url": "https://example.org"})

    await until(lambda: bot.events == ["says https://example.org", "edits https://example.org"])
    assert (shown.edited_at, len(shown.embeds)) == (None, 1)


@pytest.mark.parametrize(("content", "code"), [("x" * 2001, 50035), ("  \n", 50006)])
async def test_texts_that_discord_does_not_take_are_refused(
    content: str, code: int, standin: Discord, bot: Bot, general: Channel
) -> None:
    with pytest.raises(discord.HTTPException) as refusal:
        await channel_of(bot, general).send(content)

    assert (refusal.value.status, refusal.value.code) == (400, code)
    assert said(standin, general) == []


async def test_history_is_read_from_a_message_on(standin: Discord, bot: Bot, general: Channel, alice: User) -> None:
    messages = [standin.says(alice, general, str(number)) for number in range(150)]
    standin.deletes(messages[60])
    channel = channel_of(bot, general)

    after = [message.content async for message in channel.history(after=discord.Object(messages[9].id), limit=None)]
    before = [message.content async for message in channel.history(before=discord.Object(messages[5].id), limit=2)]
    around = [message.content async for message in channel.history(around=discord.Object(messages[5].id), limit=3)]

    assert after == [str(number) for number in range(10, 150) if number != 60]
    assert before == ["4", "3"]
    assert sorted(around) == ["4", "5", "6"]


async def test_direct_messages_go_both_ways_until_a_person_closes_them(standin: Discord, bot: Bot, alice: User) -> None:
    dm = standin.dm(alice)
    standin.says(alice, dm, "psst")
    await until(lambda: bot.events == ["says psst"])
    assert bot.heard[0].guild is None

    person = await bot.fetch_user(alice.id)
    await person.send("yes?")
    standin.close_dms(alice)
    with pytest.raises(discord.Forbidden) as refusal:
        await person.send("hello?")

    assert refusal.value.code == 50007
    assert said(standin, dm) == ["psst", "yes?"]


async def test_places_that_are_gone_or_closed_are_refused_by_their_codes(
    standin: Discord, bot: Bot, general: Channel
) -> None:
    channel = channel_of(bot, general)
    with pytest.raises(discord.NotFound) as unknown:
        await channel.fetch_message(1)
    codes = [unknown.value.code]

    for change in (standin.lock, standin.hide, standin.delete_channel):
        change(general)
        with pytest.raises(discord.HTTPException) as refusal:
            await channel.send("anybody?")
        codes.append(refusal.value.code)

    assert codes == [10008, 50013, 50001, 10003]
    await until(lambda: bot.get_channel(general.id) is None)
    left = standin.text_channel(standin.world.guilds[general.guild_id or 0], "left")
    await until(lambda: bot.get_channel(left.id) is not None)
    channel = channel_of(bot, left)
    standin.throw_out(standin.world.guilds[general.guild_id or 0])
    with pytest.raises(discord.Forbidden) as missing:
        await channel.send("anybody?")
    assert missing.value.code == 50001
    await until(lambda: not bot.guilds)


async def test_a_dropped_connection_is_resumed_without_losing_an_event(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    standin.says(alice, general, "before")
    await until(lambda: len(bot.events) == 1)

    for code in (None, 4000):
        standin.drop_gateways(code)
        assert not standin.connected
        standin.says(alice, general, f"away {code}")
        await until(lambda: standin.connected)
    standin.ask_reconnect()
    await until(lambda: standin.sessions[0].resumes == 3)
    standin.invalidate_sessions(resumable=True)
    await until(lambda: standin.sessions[0].resumes == 4)
    standin.says(alice, general, "after")

    await until(lambda: "says after" in bot.events)
    assert bot.events == [
        "says before",
        "says away None",
        "resumed",
        "says away 4000",
        "resumed",
        "resumed",
        "resumed",
        "says after",
    ]
    assert len(standin.sessions) == 1


async def test_a_session_that_became_invalid_is_begun_anew_without_what_was_missed(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    standin.invalidate_sessions()
    assert standin.sessions[0].ended
    standin.says(alice, general, "missed")
    await until(lambda: len(standin.sessions) == 2 and standin.connected)
    standin.says(alice, general, "heard")

    await until(lambda: bot.events == ["says heard"])
    assert [session.ended for session in standin.sessions] == [True, False]


@pytest.mark.parametrize("options", [{"kept_events": 3}])
async def test_a_session_that_kept_too_little_cannot_be_resumed(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    standin.drop_gateways()
    for number in range(4):
        standin.says(alice, general, str(number))

    await until(lambda: len(standin.sessions) == 2)
    assert bot.events == []


async def test_an_outage_ends_with_everything_where_it_was(
    standin: Discord, bot: Bot, general: Channel, alice: User
) -> None:
    api = standin.api
    await standin.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await channel_of(bot, general).send("lost")
    missed = standin.says(alice, general, "missed")
    standin.start()

    await until(lambda: standin.connected)
    assert standin.api == api
    assert (await channel_of(bot, general).fetch_message(missed.id)).content == "missed"


async def test_a_client_waits_as_long_as_a_429_says(standin: Discord, bot: Bot, general: Channel) -> None:
    standin.fail_next(1, 429, retry_after=0.2)
    began = asyncio.get_running_loop().time()

    await channel_of(bot, general).send("later")

    assert asyncio.get_running_loop().time() - began >= 0.2
    assert [request.status for request in standin.requests[-2:]] == [429, 200]


@pytest.mark.parametrize("options", [{"message_limit": Limit(2, 0.3)}])
async def test_a_limit_of_messages_is_each_channels_own(standin: Discord) -> None:
    guild = standin.guild("Minutes")
    one, other = standin.text_channel(guild, "one"), standin.text_channel(guild, "other")

    async with aiohttp.ClientSession(headers={"Authorization": f"Bot {standin.token}"}) as session:

        async def post(channel: Channel) -> tuple[int, Any]:
            url = f"{standin.api}/channels/{channel.id}/messages"
            async with session.post(url, json={"content": "x"}) as response:
                return response.status, (await response.json()).get("retry_after")

        answers = [await post(one), await post(one), await post(one), await post(other)]
        assert [status for status, _ in answers] == [200, 200, 429, 200]
        assert 0 < answers[2][1] <= 0.3
        await asyncio.sleep(answers[2][1])
        assert (await post(one))[0] == 200


async def test_requests_wait_while_they_are_held(standin: Discord, bot: Bot, general: Channel) -> None:
    channel = channel_of(bot, general)
    with standin.hold(lambda request: request.method == "POST") as hold:
        task = asyncio.create_task(channel.send("held"))
        await until(lambda: hold.waiting == 1)
        assert said(standin, general) == []
    await task
    with standin.hold(applied=True) as hold:
        task = asyncio.create_task(channel.send("done"))
        await until(lambda: hold.waiting == 1)
        assert said(standin, general) == ["held", "done"]
        assert not task.done()
    await task


async def test_a_held_request_whose_client_leaves_is_not_done(standin: Discord, bot: Bot, general: Channel) -> None:
    with standin.hold() as hold:
        task = asyncio.create_task(channel_of(bot, general).send("never"))
        await until(lambda: hold.waiting == 1)
        await standin.stop()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await task
    assert said(standin, general) == []
    assert Request("POST", f"/channels/{general.id}/messages") not in [
        request._replace(status=None, body=None) for request in standin.requests
    ]


async def test_slash_commands_are_registered_invoked_and_answered(
    standin: Discord, general: Channel, alice: User
) -> None:
    bot = Bot(with_content())
    bridge = discord.app_commands.Group(name="bridge", description="Bridges")

    @bridge.command(name="add", description="Adds a bridge")
    async def add(call: discord.Interaction, channel: str, to: discord.TextChannel, who: discord.Member) -> None:
        await call.response.send_message(f"{call.user.name}: {channel} {to.name} {who.name}", ephemeral=True)

    @bot.tree.command(name="slow", description="Takes its time")
    async def slow(call: discord.Interaction) -> None:
        await call.response.defer(thinking=True)
        await call.followup.send("at last")

    bot.tree.add_command(bridge)
    async with running(standin, bot):
        await bot.tree.sync()
        await bot.tree.sync()
        quick = await standin.slash(alice, general, "bridge add", channel="den", to=general, who=alice)
        assert (quick.text, quick.ephemeral, quick.deferred) == ("alice: den general alice", True, False)
        assert said(standin, general) == []
        late = await standin.slash(alice, standin.dm(alice), "slow")
        assert (late.text, late.ephemeral, late.deferred) == ("at last", False, True)
        with pytest.raises(LookupError):
            await standin.slash(alice, general, "bridge remove")
    assert said(standin, standin.dm(alice)) == ["at last"]
    assert sorted(command["name"] for command in standin.commands) == ["bridge", "slow"]


@pytest.mark.parametrize("options", [{"interaction_limit": 0.0, "patience": 0.2}])
async def test_a_command_that_is_answered_too_late_is_unknown(standin: Discord, general: Channel, alice: User) -> None:
    bot = Bot(with_content())
    codes: list[int] = []

    @bot.tree.command(name="late", description="Is late")
    async def late(call: discord.Interaction) -> None:
        try:
            await call.response.send_message("sorry")
        except discord.NotFound as refusal:
            codes.append(refusal.code)

    async with running(standin, bot):
        await bot.tree.sync()
        with pytest.raises(TimeoutError):
            await standin.slash(alice, general, "late")
    assert codes == [10062]


@pytest.mark.parametrize("options", [{"allowed_intents": Intents.GUILDS}])
async def test_a_wrong_token_and_intents_that_were_not_given_are_turned_away(standin: Discord) -> None:
    async with Bot(with_content()) as stranger:
        with pytest.raises(discord.LoginFailure):
            await stranger.start("another token")
    async with Bot(with_content()) as bot:
        with pytest.raises(discord.PrivilegedIntentsRequired):
            await bot.start(standin.token)
    async with aiohttp.ClientSession() as session, session.ws_connect(standin.gateway_url) as websocket:
        assert (await websocket.receive_json())["op"] == 10
        await websocket.send_json({"op": 2, "d": {"token": "another token", "intents": 0}})
        await websocket.receive()
        assert websocket.close_code == 4004


@pytest.mark.parametrize("compression", ["", "zlib-stream", "zstd-stream"])
async def test_each_compression_is_one_stream_for_the_connection(compression: str, standin: Discord) -> None:
    decode = DECODERS[compression]()
    async with aiohttp.ClientSession() as session:
        url = f"{standin.gateway_url}?compress={compression}"
        async with session.ws_connect(url) as websocket:
            hello = json.loads(decode((await websocket.receive()).data))
            await websocket.send_json({"op": 2, "d": {"token": standin.token, "intents": 0}})
            ready = json.loads(decode((await websocket.receive()).data))
    assert (hello["op"], ready["t"], ready["s"]) == (10, "READY", 1)


DECODERS: dict[str, Callable[[], Callable[[Any], bytes | str]]] = {
    "": lambda: str,
    "zlib-stream": lambda: zlib.decompressobj().decompress,
    "zstd-stream": lambda: zstandard.ZstdDecompressor().decompressobj().decompress,
}


@pytest.mark.parametrize("options", [{"shards": 2}])
async def test_each_shard_is_told_of_its_own_guilds(standin: Discord, alice: User) -> None:
    channels = [standin.text_channel(standin.guild(str(number)), str(number)) for number in range(4)]
    async with running(standin, Bot(with_content())) as bot:
        for channel in [*channels, standin.dm(alice)]:
            standin.says(alice, channel, channel.name)

        await until(lambda: sorted(bot.events) == ["says 0", "says 1", "says 2", "says 3", "says alice"])
        assert [session.shard for session in standin.sessions] == [(0, 2), (1, 2)]
        assert len(bot.guilds) == 4


async def test_members_are_given_to_those_who_ask(standin: Discord, general: Channel, alice: User) -> None:
    intents = discord.Intents.default()
    intents.members = True
    async with running(standin, Bot(intents)) as bot:
        names = {member.name for member in bot.guilds[0].members}
        newcomer = standin.person("newcomer")
        await until(lambda: bot.guilds[0].get_member(newcomer.id) is not None)
    assert {"alice", standin.bot.username} <= names


def test_ids_rise_and_tell_the_time(standin: Discord, general: Channel, alice: User) -> None:
    ids = [standin.says(alice, general, "x").id for _ in range(50)]

    assert ids == sorted(set(ids))
    assert discord.utils.snowflake_time(ids[0]).timestamp() == pytest.approx(standin.world.now(), abs=5)
