"""What is said in a bridged channel of Discord is said here: in order, once, whatever is away meanwhile."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from bot.bridge import inbox
from chat.bridging import Said
from chat.commands import Commands
from chat.moderation import Moderation
from eventstore.events import Appended
from eventstore.log import EventLog
from projections.models import ReadModels
from tests.conftest import OPERATOR, Enter, until
from tests.crossing import CONTEXT, DEN, PASSWORD, Both, bridging_of, point_at
from tests.standin.faults import Request
from tests.standin.server import Discord
from tests.standin.things import Message, User
from tests.tables import Outage

pytestmark = pytest.mark.gen_test

PINNED, JOINED = 6, 7  # "Message Types"


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
    return discord.person("alice")


@pytest.fixture
def otto(discord: Discord) -> User:
    return discord.person("otto")


def asks_for_history(request: Request) -> bool:
    return request.method == "GET" and request.path.endswith("/messages")


def numbered(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


async def types(both: Both) -> list[str]:
    return [event.type for event in await both.log.read()]


# --- What crosses ----------------------------------------------------------------------------------------------------


async def test_who_is_linked_speaks_as_themselves_and_all_others_are_quoted(both: Both, alice: User) -> None:
    await both.bridged(alice)
    otto = both.discord.person("otto", "Otto the Great", nick="Ottokar")

    async with both.running():
        both.discord.says(alice, both.general, "Hello!")
        both.discord.says(otto, both.general, "**Good** evening,\nall.")

        await both.reads(("alice", "Hello!"), ("FokaBot", "**Otto the Great**: **Good** evening,\nall."))


async def test_edits_and_deletions_follow_but_a_preview_that_discord_adds_is_no_edit(
    both: Both, alice: User, otto: User
) -> None:
    await both.bridged(alice)

    async with both.running():
        first, *gone = [both.discord.says(person, both.general, "So?") for person in (alice, otto, otto, otto)]
        await both.reads(("alice", "So?"), *[("FokaBot", "**otto**: So?")] * 3)
        both.discord.edits(first, "So!")
        both.discord.deletes(gone[0])
        both.discord.deletes_in_bulk(gone[1:])
        shown = both.discord.says(otto, both.general, "https://example.org")
        both.discord.unfurls(shown, {"type": "link", "url": "https://example.org", "title": "An example"})
        both.discord.says(otto, both.general, "Well.")

        await both.reads(("alice", "So!"), ("FokaBot", "**otto**: https://example.org"), ("FokaBot", "**otto**: Well."))
    assert (await types(both)).count("MessageEdited") == 1


async def test_names_stand_for_mentions_and_links_for_files(both: Both, alice: User) -> None:
    await both.bridged(alice)
    otto = both.discord.person("otto", "Otto the Great", nick="Ottokar")
    role = both.discord.role(both.discord.guild("Elsewhere"), "scribes")
    text = f"<@{otto.id}> <#{both.general.id}> <a:wave:12345> @everyone <@&{role.id}> <@!1>"

    async with both.running():
        both.discord.says(alice, both.general, text)
        seen = both.discord.says(otto, both.general, "", attachments=["a.txt", "b.txt"])

        told = f"@Otto the Great #general :wave: @everyone <@&{role.id}> <@!1>"
        files = "\n".join(each["url"] for each in seen.json()["attachments"])
        await both.reads(("alice", told), ("FokaBot", f"**Otto the Great**: {files}"))


async def test_neither_bots_nor_webhooks_nor_discord_itself_nor_commands_nor_who_is_banned_are_taken_in(
    both: Both, alice: User, otto: User
) -> None:
    await both.bridged(alice)
    banned = await both.account("banned")
    await both.links(otto, banned)
    operator = await both.account(OPERATOR)
    await Moderation(both.log, both.models, [OPERATOR]).ban(operator, banned.username, "", CONTEXT, None)
    await both.commands.add_member(await both.commands.log_in("alice", PASSWORD), DEN, "banned", CONTEXT)
    robot = both.discord.person("robot", bot=True)

    async with both.running():
        both.discord.says(robot, both.general, "I am a bot.")
        both.discord.says(otto, both.general, "I am banned.")
        both.discord.says(alice, both.general, "I am a webhook.", webhook_id=17)
        both.discord.says(alice, both.general, "", kind=PINNED)
        both.discord.says(alice, both.general, "hello", kind=JOINED)
        both.discord.says(alice, both.general, "!bridge")
        both.discord.says(alice, both.general, "!bridges are nice")
        both.discord.says(alice, both.discord.dm(alice), "not for all")

        await both.reads(("alice", "!bridges are nice"))


async def test_what_is_said_here_does_not_come_back(both: Both, alice: User) -> None:
    account = await both.bridged(alice)

    async with both.running():
        await both.commands.send_message(account, DEN, "From here.", CONTEXT)
        await until(lambda: both.shown() == ["**alice**: From here."])
        both.discord.says(alice, both.general, "From there.")
        await both.reads(("alice", "From here."), ("alice", "From there."))

    assert both.shown() == ["**alice**: From here."]


async def test_what_cannot_be_taken_in_is_told_and_holds_nobody_up(
    both: Both, alice: User, otto: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await both.bridged(alice)
    receive = both.bridging.receive

    async def fails_at_once(said: Said, correlation_id: str) -> Appended | None:
        if said.text == "bad":
            raise ValueError("a fault of ours")
        return await receive(said, correlation_id)

    monkeypatch.setattr(both.bridging, "receive", fails_at_once)
    both.discord.says(otto, both.general, "bad")
    both.discord.says(otto, both.general, "good")

    with capture_logs() as told:
        async with both.running():
            await both.takes_in("good", quoting="otto")
            both.discord.says(otto, both.general, "bad")
            both.discord.says(otto, both.general, "better")
            await both.takes_in("good", "better", quoting="otto")

    assert {line["event"] for line in told if line["log_level"] == "error"} == {
        "a message on Discord could not be taken in"
    }


async def test_a_bridge_made_later_takes_in_what_is_said_from_then_on(both: Both, alice: User, otto: User) -> None:
    async with both.running():
        both.discord.says(otto, both.general, "before")
        await both.bridged(alice)
        both.discord.says(otto, both.general, "behind")
        await both.takes_in("behind", quoting="otto")

        await both.bridging.unbridge(alice.id, both.general.id, CONTEXT)
        both.discord.says(otto, both.general, "in between")
        await both.bridging.bridge(alice.id, DEN, both.general.id, both.discord.world.next_id(), CONTEXT)
        both.discord.says(otto, both.general, "again")
        await both.takes_in("behind", "again", quoting="otto")


# --- Absences --------------------------------------------------------------------------------------------------------


async def test_what_was_said_during_an_absence_is_read_back_once_and_in_order(
    both: Both, alice: User, otto: User
) -> None:
    await both.bridged(alice)
    async with both.running():
        for text in numbered(1, 3):
            both.discord.says(otto, both.general, text)
        await both.takes_in(*numbered(1, 3), quoting="otto")
    # More than Discord gives at once, with what is not taken in among it.
    for text in numbered(4, 120):
        both.discord.says(otto, both.general, text)
        both.discord.says(both.discord.bot, both.general, "an echo")

    async with both.running():
        await both.takes_in(*numbered(1, 120), quoting="otto")

    assert (await types(both)).count("DiscordMessageReceived") == 120


async def test_what_is_said_while_the_gap_is_read_comes_behind_it(both: Both, alice: User, otto: User) -> None:
    await both.bridged(alice)
    for text in numbered(1, 3):
        both.discord.says(otto, both.general, text)

    with both.discord.hold(asks_for_history) as hold:
        async with both.running():
            await until(lambda: hold.waiting > 0)
            for text in numbered(4, 6):
                both.discord.says(otto, both.general, text)
            hold.release()
            await both.takes_in(*numbered(1, 6), quoting="otto")


async def test_edits_and_deletions_of_an_absence_are_found(both: Both, alice: User, otto: User) -> None:
    await both.bridged(alice)
    async with both.running():
        _, edited, deleted, newest = (
            both.discord.says(otto, both.general, text) for text in ("kept", "edited", "deleted", "newest")
        )
        await both.takes_in("kept", "edited", "deleted", "newest", quoting="otto")
    both.discord.edits(edited, "changed")
    both.discord.deletes(deleted, newest)

    async with both.running():
        await both.takes_in("kept", "changed", quoting="otto")

    assert (await types(both)).count("MessageEdited") == 1


async def test_a_history_that_is_not_shown_deletes_nothing_and_holds_nothing_up(
    both: Both, alice: User, otto: User
) -> None:
    await both.bridged(alice)
    async with both.running():
        both.discord.says(otto, both.general, "kept")
        await both.takes_in("kept", quoting="otto")
    # As Discord does to who may not read the history: it is empty, and single messages are refused.
    refused: dict[str, Any] = {"code": 50001, "message": "Missing Access"}
    both.discord.fail_next(99, 200, only=asks_for_history, body=cast(Any, []))
    both.discord.fail_next(1, 403, only=lambda request: "/messages/" in request.path, body=refused)

    async with both.running():
        await until(lambda: any("/messages/" in request.path for request in both.discord.requests))
        both.discord.says(otto, both.general, "heard")
        await both.takes_in("kept", "heard", quoting="otto")


async def test_a_new_session_of_the_gateway_reads_what_the_old_one_missed(both: Both, alice: User, otto: User) -> None:
    await both.bridged(alice)

    async with both.running():
        both.discord.says(otto, both.general, "1")
        await both.takes_in("1", quoting="otto")
        both.discord.invalidate_sessions()
        both.discord.says(otto, both.general, "2")
        await both.takes_in("1", "2", quoting="otto")


async def test_nothing_is_lost_and_nothing_comes_out_of_order_while_the_log_is_away(
    both: Both, alice: User, otto: User, outage: Outage
) -> None:
    await both.bridged(alice)

    async with both.running():
        both.discord.says(otto, both.general, "1")
        await both.takes_in("1", quoting="otto")
        outage.begin()
        for text in numbered(2, 9):
            both.discord.says(otto, both.general, text)
        outage.end()
        await both.takes_in(*numbered(1, 9), quoting="otto")


async def test_more_than_can_wait_is_read_back_from_the_history(
    both: Both, alice: User, otto: User, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_WAITING", 5)
    await both.bridged(alice)

    async with both.running():
        first = both.discord.says(otto, both.general, "0")
        await both.takes_in("0", quoting="otto")
        outage.begin()
        for text in numbered(1, 30):
            both.discord.says(otto, both.general, text)
        both.discord.edits(first, "changed")
        outage.end()
        await both.takes_in("changed", *numbered(1, 30), quoting="otto")


async def test_a_gap_is_read_when_discord_is_back(both: Both, alice: User, otto: User) -> None:
    await both.bridged(alice)
    for text in numbered(1, 3):
        both.discord.says(otto, both.general, text)
    both.discord.fail_next(2, None, only=asks_for_history)

    async with both.running():
        await both.takes_in(*numbered(1, 3), quoting="otto")


async def test_a_channel_that_is_hidden_is_told_of_once_and_read_when_it_shows_again(
    both: Both, alice: User, otto: User
) -> None:
    await both.bridged(alice)
    both.discord.says(otto, both.general, "1")
    both.discord.hide(both.general)

    with capture_logs() as told:
        async with both.running():
            await until(lambda: any(line["event"] == "a bridged channel cannot be read" for line in told))
            both.discord.says(otto, both.general, "2")
            await until(lambda: sum(asks_for_history(request) for request in both.discord.requests) >= 2)
            both.discord.unlock(both.general)
            both.discord.says(otto, both.general, "3")
            await both.takes_in("1", "2", "3", quoting="otto")

    assert sum(line["event"] == "a bridged channel cannot be read" for line in told) == 1


class Chance:
    """What happens on Discord, drawn by a seed."""

    def __init__(self, both: Both, speaker: User, seed: int) -> None:
        self._both = both
        self._speaker = speaker
        self._draw = random.Random(seed)
        self._said: list[Message] = []

    def happens(self) -> None:
        """Something happens."""
        happenings = [self._says, self._edits, self._deletes, self._is_cut_off, self._begins_anew]
        self._draw.choices(happenings, [8, 3, 2, 1, 1])[0]()

    async def passes(self) -> None:
        """Some time passes, or none."""
        for _ in range(self._draw.choice([0, 0, 0, 20])):
            await self._both.log.head()

    def _says(self) -> None:
        self._said.append(self._both.discord.says(self._speaker, self._both.general, str(self._draw.random())))

    def _edits(self) -> None:
        if self._said:
            self._both.discord.edits(self._draw.choice(self._said), str(self._draw.random()))

    def _deletes(self) -> None:
        if self._said:
            self._both.discord.deletes(self._said.pop(self._draw.randrange(len(self._said))))

    def _is_cut_off(self) -> None:
        self._both.discord.drop_gateways()

    def _begins_anew(self) -> None:
        self._both.discord.invalidate_sessions()


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_both_sides_agree_in_the_end(both: Both, alice: User, otto: User, seed: int) -> None:
    await both.bridged(alice)
    chance = Chance(both, otto, seed)

    for _ in range(2):
        async with both.running():
            for _ in range(20):
                chance.happens()
                await chance.passes()
        for _ in range(10):
            chance.happens()
    async with both.running():
        await both.takes_in(*(message.content for message in both.discord.messages(both.general)), quoting="otto")
