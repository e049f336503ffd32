"""What people on Discord ask of the bot: by slash commands, by prefix commands, by direct messages."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from bot.bridge import slash
from bot.bridge.slash import greeting
from bot.bridge.syntax import Bridge, Command, Help, Link, Unbridge, Unlink, parse
from chat.bridging import DiscordUser
from chat.commands import Commands
from chat.moderation import Moderation
from chat.refusals import Reason
from eventstore.log import EventLog
from projections.models import ReadModels
from tests.conftest import OPERATOR, Enter, until
from tests.crossing import CONTEXT, DEN, Both, bridging_of, point_at
from tests.standin.faults import Request
from tests.standin.interactions import Reply
from tests.standin.server import Discord
from tests.standin.things import MANAGE_CHANNELS, ORDINARY, Channel, User
from tests.tables import Outage

LINK_FIRST = slash.REFUSALS[Reason.NOT_LINKED]


@pytest.fixture
def discord(database: str, enter: Enter[Discord], monkeypatch: pytest.MonkeyPatch) -> Discord:
    # The database comes first and so goes last, which is slow while a log is open on it.
    standin = enter(Discord())
    point_at(standin, monkeypatch)
    return standin


@pytest.fixture
def both(database: str, log: EventLog, models: ReadModels, commands: Commands, discord: Discord) -> Both:
    general = discord.text_channel(discord.guild("Minutes"), "general")
    return Both(database, log, models, commands, bridging_of(log, models, commands), discord, general)


@pytest.fixture
def alice(discord: Discord) -> User:
    """Who may manage channels."""
    return discord.person("alice", permissions=ORDINARY | MANAGE_CHANNELS)


@pytest.fixture
def owner(discord: Discord) -> User:
    """Who may do everything: of all others their permissions stand in their slash commands alone."""
    return discord.world.owner


@pytest.fixture
def otto(discord: Discord) -> User:
    return discord.person("otto")


def is_registration(request: Request) -> bool:
    return request.method == "PUT" and request.path.endswith("/commands")


def is_deletion(request: Request) -> bool:
    return request.method == "DELETE"


def is_answer(request: Request) -> bool:
    return request.method == "POST" and request.path.endswith("/messages")


async def registered(both: Both) -> None:
    await until(lambda: len(both.discord.commands) == 4)


async def linked(both: Both, person: User) -> None:
    """Somebody is an account that has made `den`."""
    account = await both.account(person.username)
    await both.den(account)
    await both.links(person, account)


async def answers(both: Both, channel: Channel, *expected: str) -> None:
    """Waits until this is what the bot has said in a channel."""
    await until(lambda: len(both.shown(channel)) >= len(expected))
    assert both.shown(channel) == list(expected)


async def is_bridged(both: Both) -> bool:
    return await both.models.bridge_to(both.general.id) is not None


# --- What can be said ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("!bridge den", Bridge("den")),
        ("!BRIDGE  the den ", Bridge("the den")),
        ("!bridge\n#den", Bridge("#den")),
        ("!bridge", Help()),
        ("!unbridge", Unbridge()),
        ("!unbridge now", Unbridge()),
        ("!link ABCD-EFGH", Link("ABCD-EFGH")),
        ("!link", Help()),
        ("!unlink", Unlink()),
    ],
)
def test_a_prefix_command_is_understood(text: str, command: Command) -> None:
    assert parse(text) == command


@pytest.mark.parametrize(
    "text", ["", "!", "bridge den", "! bridge den", "!bridged den", "!bridge-den", "!help", "!roll"]
)
def test_what_is_for_others_is_no_prefix_command(text: str) -> None:
    assert parse(text) is None


# --- Slash commands --------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_channel_is_bridged_which_it_is_told_and_unbridged(both: Both, alice: User) -> None:
    await linked(both, alice)

    async with both.running():
        await registered(both)
        done = await both.discord.slash(alice, both.general, "bridge", channel="#Den")
        assert done == Reply("Done: this channel is bridged to `den`.", ephemeral=True, deferred=True)
        [told] = both.shown()
        assert told.startswith("This channel is bridged to the channel `den` of Minutebook from now on")
        both.discord.says(alice, both.general, "Hello!")
        await both.reads(("alice", "Hello!"))

        done = await both.discord.slash(alice, both.general, "unbridge")
        assert done.text == "Done: this channel is not bridged to `den` any more."
        assert not await is_bridged(both)
        assert both.shown()[1:] == ["This channel is not bridged to the channel `den` of Minutebook any more."]


@pytest.mark.gen_test
async def test_refusals_are_told_in_clear_words_to_who_asked(both: Both, alice: User, otto: User) -> None:
    async def said_to(person: User, channel: Channel, command: str, /, **options: str) -> str:
        reply = await both.discord.slash(person, channel, command, **options)
        assert reply.ephemeral
        return reply.text

    guild = both.discord.guild("Elsewhere")
    lobby = both.discord.text_channel(guild, "lobby")
    async with both.running():
        await registered(both)
        assert await said_to(alice, both.general, "bridge", channel=DEN) == LINK_FIRST
        assert await said_to(alice, both.general, "unbridge") == LINK_FIRST
        assert await said_to(otto, both.general, "bridge", channel=DEN) == slash.NEEDS_MANAGE_CHANNELS
        assert await said_to(otto, both.general, "unbridge") == slash.NEEDS_MANAGE_CHANNELS
        assert await said_to(alice, both.discord.dm(alice), "bridge", channel=DEN) == slash.NO_CHANNEL
        await linked(both, alice)
        await both.commands.make_channel(await both.account("somebody"), "attic", CONTEXT)
        assert "no channel of that name" in await said_to(alice, both.general, "bridge", channel="cellar")
        assert "not a member" in await said_to(alice, both.general, "bridge", channel="attic")
        assert "not bridged" in await said_to(alice, both.general, "unbridge")
        both.discord.lock(both.general)
        refused = await said_to(alice, both.general, "bridge", channel=DEN)
        assert refused == "I need more permissions in this channel first: Send Messages."
        both.discord.unlock(both.general)
        assert "Done" in await said_to(alice, both.general, "bridge", channel=DEN)
        assert "bridged already" in await said_to(alice, lobby, "bridge", channel=DEN)
        assert "wrong, too old or used up" in await said_to(otto, both.general, "link", code="ABCD-EFGH")
        banned = await both.account("banned")
        operator = await both.account(OPERATOR)
        await Moderation(both.log, both.models, [OPERATOR]).ban(operator, banned.username, "", CONTEXT, None)
        assert "is banned" in await said_to(otto, both.general, "link", code=both.bridging.link_code(banned).code)


@pytest.mark.gen_test
async def test_somebody_is_linked_by_a_code_once_and_unlinked(both: Both, alice: User, otto: User) -> None:
    account = await both.account("alice_here")
    code = both.bridging.link_code(account).code

    async with both.running():
        await registered(both)
        done = await both.discord.slash(alice, both.discord.dm(alice), "link", code=code)
        assert done.text == "You are `alice_here` of Minutebook from now on. `/unlink` ends that."
        assert await both.models.account_of_discord_user(alice.id) == account
        again = await both.discord.slash(otto, both.general, "link", code=code)
        assert again.text == slash.REFUSALS[Reason.WRONG_LINK_CODE]

        done = await both.discord.slash(alice, both.general, "unlink")
        assert done.text == "You are not `alice_here` of Minutebook any more."
        done = await both.discord.slash(alice, both.general, "unlink")
        assert done.text == "You are no account of Minutebook as it is."

    assert code not in "".join(str(event) for event in await both.log.read())


@pytest.mark.gen_test
async def test_while_the_log_is_away_it_is_said_and_nothing_hangs(both: Both, alice: User, outage: Outage) -> None:
    await linked(both, alice)

    async with both.running():
        await registered(both)
        outage.begin()
        refused = await both.discord.slash(alice, both.general, "bridge", channel=DEN)
        outage.end()

    assert refused.text == slash.LOG_IS_AWAY


@pytest.mark.gen_test
async def test_a_fault_of_ours_is_told_to_who_asked_without_what_it_was(
    both: Both, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_arguments: object) -> None:
        raise ValueError("a secret")

    monkeypatch.setattr(both.bridging, "unlink", fails)

    async with both.running():
        await registered(both)
        with capture_logs() as told:
            refused = await both.discord.slash(alice, both.general, "unlink")

    assert refused.text == slash.SOMETHING_WENT_WRONG
    assert [line["command"] for line in told if line["log_level"] == "error"] == ["Unlink"]


# --- Registration ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_commands_are_registered_when_they_differ_from_those_that_stand_there(both: Both) -> None:
    for _ in range(2):
        async with both.running():
            await registered(both)
            await until(lambda: any(request.path.endswith("/commands") for request in both.discord.requests))
    assert sum(map(is_registration, both.discord.requests)) == 1

    next(iter(both.discord.world.commands.values()))["description"] = "Something older"
    async with both.running():
        await until(lambda: sum(map(is_registration, both.discord.requests)) == 2)

    assert {command["name"] for command in both.discord.commands} == {"bridge", "unbridge", "link", "unlink"}
    assert {
        command["name"]
        for command in both.discord.commands
        if int(command["default_member_permissions"] or 0) == MANAGE_CHANNELS and command["contexts"] == [0]
    } == {"bridge", "unbridge"}


@pytest.mark.gen_test
async def test_where_slash_commands_are_refused_it_is_said_once_and_prefix_commands_do(both: Both, owner: User) -> None:
    await linked(both, owner)
    both.discord.fail_next(9, 403, only=is_registration, body={"code": 50001, "message": "Missing Access"})

    with capture_logs() as told:
        async with both.running():
            await until(lambda: any("prefix commands must do" in line["event"] for line in told))
            both.discord.says(owner, both.general, "!bridge den")
            await until(lambda: len(both.shown()) == 2)

    assert both.shown()[-1] == "Done: this channel is bridged to `den`."
    assert await is_bridged(both)
    assert sum(map(is_registration, both.discord.requests)) == 1


# --- Prefix commands, and direct messages ----------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_prefix_commands_in_a_channel_need_the_permission_too(both: Both, alice: User, otto: User) -> None:
    await linked(both, otto)

    async with both.running():
        both.discord.says(otto, both.general, "!bridge den")
        await answers(both, both.general, slash.NEEDS_MANAGE_CHANNELS)
        both.discord.says(alice, both.general, "!bridge")
        await answers(both, both.general, slash.NEEDS_MANAGE_CHANNELS, slash.USAGE)

    assert not await is_bridged(both)


@pytest.mark.gen_test
async def test_no_more_is_asked_at_once_than_can_be_answered(
    both: Both, otto: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slash, "MOST_HEARD", 2)

    async with both.running():
        with both.discord.hold(is_answer) as hold:
            for _ in range(5):
                both.discord.says(otto, both.general, "!bridge")
            await until(lambda: hold.waiting)
        await answers(both, both.general, slash.USAGE, slash.USAGE)
        both.discord.says(otto, both.general, "!unbridge")
        await answers(both, both.general, slash.USAGE, slash.USAGE, slash.NEEDS_MANAGE_CHANNELS)


@pytest.mark.gen_test
@pytest.mark.parametrize("may_delete", [True, False])
async def test_a_code_that_is_shown_in_public_is_used_and_deleted_if_the_bot_may(
    both: Both, alice: User, may_delete: bool
) -> None:
    account = await both.account("alice_here")
    code = both.bridging.link_code(account).code
    if may_delete:
        # The stand-in lets nobody delete what others wrote.
        both.discord.fail_next(1, 200, only=is_deletion, body={})

    async with both.running():
        both.discord.says(alice, both.general, f"!link {code}")
        await until(lambda: len(both.shown()) == 1)

    assert both.shown()[0].startswith("You are `alice_here` of Minutebook from now on.")
    assert both.shown()[0].endswith(slash.CODE_WAS_PUBLIC)
    [deletion] = filter(is_deletion, both.discord.requests)
    assert deletion.status == (200 if may_delete else 403)


@pytest.mark.gen_test
async def test_who_writes_to_the_bot_is_greeted_once_and_can_be_written_to(both: Both, otto: User) -> None:
    dm = both.discord.dm(otto)
    account = await both.account("alice")
    hello = greeting(DiscordUser(otto.id, "otto"))

    async with both.running():
        both.discord.says(otto, dm, "A secret.")
        await answers(both, dm, hello)
        both.discord.says(otto, dm, "Another one.")
        both.discord.says(otto, dm, "!help")
        await answers(both, dm, hello, slash.USAGE)
        both.discord.says(otto, dm, "!bridge den")
        await answers(both, dm, hello, slash.USAGE, slash.NO_CHANNEL)

        await both.bridging.send(account, "Otto", "Good evening.", CONTEXT)
        await answers(both, dm, hello, slash.USAGE, slash.NO_CHANNEL, "**alice**: Good evening.")

    assert "ecret" not in "".join(str(event) for event in await both.log.read())


@pytest.mark.gen_test
async def test_somebody_is_linked_by_a_direct_message(both: Both, otto: User) -> None:
    account = await both.account("otto_here")
    dm = both.discord.dm(otto)

    async with both.running():
        both.discord.says(otto, dm, f"!link {both.bridging.link_code(account).code}")
        await answers(both, dm, "You are `otto_here` of Minutebook from now on. `/unlink` ends that.")

    assert await both.models.discord_user_of(account.account_id) == DiscordUser(otto.id, "otto")


@pytest.mark.gen_test
async def test_who_writes_while_the_log_is_away_is_known_afterwards(both: Both, otto: User, outage: Outage) -> None:
    dm = both.discord.dm(otto)

    async with both.running():
        outage.begin()
        for text in ("Hello?", "Anybody?"):
            both.discord.says(otto, dm, text)
        outage.end()
        await answers(both, dm, greeting(DiscordUser(otto.id, "otto")))

    assert await both.models.discord_username(otto.id) == "otto"
