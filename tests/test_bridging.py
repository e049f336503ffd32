"""The commands of the bridge to Discord: who may write what to whom, what comes from there, and all of it once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import pytest
from tornado.ioloop import IOLoop

from chat.bridging import BRIDGED, BRIDGES, UNBRIDGED, Bridging, Delivery, Destination, DiscordUser, Said
from chat.commands import Account, Channel, Commands
from chat.erasure import Erasure
from chat.events import MessageEdited
from chat.moderation import Moderation
from chat.names import ANNOUNCE, BOT_ID, BOT_NAME
from chat.passwords import PasswordHasher
from chat.refusals import Malformed, Reason, Refused
from eventstore.events import Appended, Context, RecordedEvent, StreamWrite
from eventstore.log import EventLog
from projections.models import ReadModels
from projections.traces import Traces
from tests.conftest import OPERATOR, SECRET, on_loop

T = TypeVar("T")

PASSWORD = "Passw0rd!"
LOBBY = 2**60  # a channel of Discord
GENERAL = 2**60 + 1
DEFAULT = 2**60 + 2
AL = DiscordUser(2**61, "al")
BO = DiscordUser(2**61 + 1, "bo")
LINK = "https://discord.com/channels/1/2/3"
DISCORD_EPOCH = datetime(2015, 1, 1, tzinfo=UTC)


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def discord_id(self) -> int:
        """The id of a message on Discord that is said now."""
        return (self() - DISCORD_EPOCH) // timedelta(milliseconds=1) << 22


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def commands(io_loop: IOLoop, log: EventLog, models: ReadModels, passwords: PasswordHasher, clock: Clock) -> Commands:
    made = Commands(log, models, passwords, SECRET, operators=[OPERATOR], now=clock)
    on_loop(io_loop, made.prepare)
    return made


@pytest.fixture
def bridging(log: EventLog, models: ReadModels, commands: Commands, clock: Clock) -> Bridging:
    return Bridging(log, models, commands, SECRET, default_channel=DEFAULT, configured=True, now=clock)


@pytest.fixture
def moderation(log: EventLog, models: ReadModels, clock: Clock) -> Moderation:
    return Moderation(log, models, [OPERATOR], now=clock)


@pytest.fixture
def alice(io_loop: IOLoop, commands: Commands) -> Account:
    """A member of the channel `den`."""
    account = on_loop(io_loop, lambda: commands.register("Alice A", PASSWORD, "c"))
    on_loop(io_loop, lambda: commands.make_channel(account, "den", "c"))
    return account


@pytest.fixture
def den(io_loop: IOLoop, models: ReadModels, alice: Account) -> Channel:
    found = on_loop(io_loop, lambda: models.channel_by_name("den"))
    assert found is not None
    return found


@pytest.fixture
def bob(io_loop: IOLoop, commands: Commands) -> Account:
    """A member of no channel."""
    return on_loop(io_loop, lambda: commands.register("bob", PASSWORD, "c"))


@pytest.fixture
def operator(io_loop: IOLoop, commands: Commands) -> Account:
    return on_loop(io_loop, lambda: commands.register(OPERATOR, PASSWORD, "c"))


@pytest.fixture
def al(io_loop: IOLoop, bridging: Bridging, alice: Account) -> DiscordUser:
    """Alice on Discord."""
    on_loop(io_loop, lambda: link(bridging, AL, alice))
    return AL


@pytest.fixture
def bridged(io_loop: IOLoop, bridging: Bridging, al: DiscordUser, den: Channel) -> Channel:
    """The channel `den`, bridged to the lobby on Discord."""
    return on_loop(io_loop, lambda: bridging.bridge(al.discord_user_id, "den", LOBBY, 1, "c"))


async def link(bridging: Bridging, user: DiscordUser, account: Account) -> Account:
    return await bridging.link(user, bridging.link_code(account).code, "c")


async def refused(act: Awaitable[object]) -> Reason:
    with pytest.raises(Refused) as raised:
        await act
    return raised.value.reason


def saying(clock: Clock, text: str, author: DiscordUser = BO, channel: int = LOBBY, name: str = "Bo B") -> Said:
    return Said(channel, clock.discord_id(), author, name, text, LINK)


async def received(bridging: Bridging, said: Said) -> int:
    """The id of the message that it became."""
    appended = await bridging.receive(said, "c")
    assert appended is not None
    return appended.first_position


class Tail:
    """What is recorded from now on, each event by its type and its data."""

    def __init__(self, log: EventLog, after: int) -> None:
        self._log = log
        self._after = after

    async def events(self) -> list[RecordedEvent]:
        return await self._log.read(after=self._after)

    async def __call__(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.type, event.body()) for event in await self.events()]


async def from_now_on(log: EventLog) -> Tail:
    return Tail(log, await log.head())


async def delivery_of(models: ReadModels, appended: Appended) -> Delivery:
    found = await models.deliveries.by_id(appended.last_position)
    assert found is not None
    return found


def requested(sender: Account, text: str, **others: object) -> tuple[str, dict[str, object]]:
    to = {"discord_channel_id": None, "discord_user_id": None}
    return "DiscordMessageRequested", {"sender_id": sender.account_id, "text": text, **to, **others}


# --- to Discord --------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_message_is_recorded_with_its_delivery_while_its_channel_is_bridged(
    bridging: Bridging, commands: Commands, alice: Account, bridged: Channel, log: EventLog, models: ReadModels
) -> None:
    tail = await from_now_on(log)

    sent = await commands.send_message(alice, "den", "hello", "c", "a key")
    again = await commands.send_message(alice, "#DEN", "hello", "c", "a key")
    await bridging.unbridge(AL.discord_user_id, LOBBY, "c")
    await commands.send_message(alice, "den", "bye", "c")

    message, request, _, told, last = await tail.events()
    assert (sent.first_position, sent.last_position) == (message.position, request.position)
    assert (again.first_position, again.repeated) == (sent.first_position, True)
    assert message.stream == request.stream
    assert (request.type, request.body()) == requested(alice, "hello", discord_channel_id=str(LOBBY), of_message=True)
    # The members are told; and Discord is by the bridge, which is no delivery.
    assert (told.type, told.body()["text"]) == ("MessageSent", UNBRIDGED)
    assert (last.type, last.body()["text"]) == ("MessageSent", "bye")
    delivery = await delivery_of(models, sent)
    assert (delivery.message_id, delivery.destination) == (sent.first_position, Destination(LOBBY, None))


@pytest.mark.gen_test
async def test_a_text_goes_to_the_default_channel_once_for_a_key(
    bridging: Bridging, alice: Account, bob: Account, al: DiscordUser, log: EventLog
) -> None:
    tail = await from_now_on(log)

    first = await bridging.send_to_default(alice, "hello", "c", "a key", source_address="192.0.2.1")
    again = await bridging.send_to_default(alice, "hello", "c", "a key")
    # The same key of somebody else, and for something else, is another.
    await bridging.send_to_default(bob, "hello", "c", "a key")
    await bridging.send(alice, "Alice A", "hello", "c", "a key")

    assert (again.first_position, again.repeated) == (first.first_position, True)
    [(kind, body), *others] = await tail()
    assert "192.0.2.1" not in str(body.pop("source"))
    assert (kind, body) == requested(alice, "hello", discord_channel_id=str(DEFAULT))
    assert others == [
        requested(bob, "hello", discord_channel_id=str(DEFAULT)),
        requested(alice, "hello", discord_user_id=str(AL.discord_user_id), recipient_id=alice.account_id),
    ]


@pytest.mark.gen_test
async def test_what_is_sent_to_a_bridged_channel_is_a_message_there_of_its_members(
    bridging: Bridging, alice: Account, bob: Account, bridged: Channel, models: ReadModels
) -> None:
    assert await refused(bridging.send(bob, "den", "hello", "c")) is Reason.NOT_REACHABLE

    sent = await bridging.send(alice, "#Den", "hello", "c", "a key", source_address="192.0.2.1")

    [told, message] = await models.messages.newest_in_channel(bridged, 10)
    assert (told.sender, told.text) == (BOT_NAME, BRIDGED)
    assert (message.message_id, message.text) == (sent.first_position, "hello")
    assert (await bridging.send(alice, "den", "hello", "c", "a key")).repeated
    assert (await delivery_of(models, sent)).message_id == sent.first_position


@pytest.mark.gen_test
async def test_a_key_for_discord_is_none_of_a_channel_here_whatever_is_bridged(
    commands: Commands, bridging: Bridging, alice: Account, bridged: Channel
) -> None:
    here = await commands.send_message(alice, "den", "hello", "c", "a key")
    there = await bridging.send(alice, "den", "hello", "c", "a key")
    again = await bridging.send(alice, "den", "hello", "c", "a key")

    assert [each.repeated for each in (here, there, again)] == [False, False, True]
    assert again.first_position == there.first_position


@pytest.mark.gen_test
async def test_a_person_is_called_by_their_account_or_else_by_their_name_on_discord(
    bridging: Bridging, alice: Account, bob: Account, al: DiscordUser, models: ReadModels
) -> None:
    # Who calls themselves on Discord what an account that is linked is called gets nothing of what is for that one.
    await bridging.see_user(DiscordUser(5, "alice_a"), "c")
    await bridging.see_user(DiscordUser(6, "Bob"), "c")

    async def reached(name: str) -> int | None:
        return (await delivery_of(models, await bridging.send(alice, name, "hello", "c"))).destination.discord_user_id

    assert [await reached(name) for name in ("ALICE a", "al", "AL", " bob ")] == [AL.discord_user_id] * 3 + [6]
    sent = await models.deliveries.of_sender(alice.account_id, 4)
    assert [each.recipient for each in sent] == ["Alice A", None, None, None]
    for nobody in ("carol", "den", "#den", "", BOT_NAME, ANNOUNCE):
        assert await refused(bridging.send(alice, nobody, "hello", "c")) is Reason.NOT_REACHABLE


@pytest.mark.gen_test
async def test_a_text_that_is_none_is_refused_before_anything_is_recorded(
    bridging: Bridging, alice: Account, bridged: Channel, log: EventLog
) -> None:
    tail = await from_now_on(log)

    for text in ("", " \n", "x" * 4001):
        for act in (bridging.send_to_default(alice, text, "c"), bridging.send(alice, "den", text, "c")):
            with pytest.raises(Malformed, match="message: must"):
                await act

    assert await tail() == []


@pytest.mark.gen_test
async def test_without_a_discord_nothing_is_taken_for_it(
    log: EventLog, models: ReadModels, commands: Commands, alice: Account
) -> None:
    nothing = Bridging(log, models, commands, SECRET, default_channel=None, configured=False)
    no_default = Bridging(log, models, commands, SECRET, default_channel=None, configured=True)
    tail = await from_now_on(log)

    for act in (
        nothing.send_to_default(alice, "hello", "c"),
        nothing.send(alice, "den", "hello", "c"),
        no_default.send_to_default(alice, "hello", "c"),
    ):
        assert await refused(act) is Reason.DISCORD_NOT_CONFIGURED
    with pytest.raises(Refused):
        nothing.link_code(alice)
    assert no_default.link_code(alice).expires_in == 600
    assert await tail() == []


@pytest.mark.gen_test
async def test_who_may_not_speak_does_not_write_to_discord_either(
    bridging: Bridging, moderation: Moderation, alice: Account, bridged: Channel, operator: Account
) -> None:
    def all_ways() -> list[Awaitable[Appended]]:
        return [
            bridging.send_to_default(alice, "hi", "c"),
            *(bridging.send(alice, to, "hi", "c") for to in ("den", "al")),
        ]

    await moderation.silence(operator, "Alice A", 60, "", "c")
    assert [await refused(act) for act in all_ways()] == [Reason.SILENCED] * 3
    await moderation.ban(operator, "Alice A", "", "c")
    assert [await refused(act) for act in all_ways()] == [Reason.BANNED] * 3


# --- people ------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_somebody_is_seen_once_under_each_name_also_by_two_at_once(bridging: Bridging, log: EventLog) -> None:
    tail = await from_now_on(log)

    at_once = await asyncio.gather(bridging.see_user(AL, "c"), bridging.see_user(AL, "c"))
    renamed = [await bridging.see_user(DiscordUser(AL.discord_user_id, name), "c") for name in ("al\n*2", "al 2", "al")]

    assert sorted(at_once) == [False, True]
    assert renamed == [True, False, True]
    assert [(kind, body["username"]) for kind, body in await tail()] == [
        ("DiscordUserSeen", name) for name in ("al", "al 2", "al")
    ]


@pytest.mark.gen_test
async def test_a_code_links_one_person_and_one_only_also_of_two_at_once(
    bridging: Bridging, alice: Account, models: ReadModels, log: EventLog
) -> None:
    code = bridging.link_code(alice).code
    tail = await from_now_on(log)

    outcomes = await asyncio.gather(*(bridging.link(user, code, "c") for user in (AL, BO)), return_exceptions=True)

    [first] = [user for user, outcome in zip((AL, BO), outcomes, strict=True) if outcome == alice]
    [error] = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert error.reason is Reason.WRONG_LINK_CODE
    assert [kind for kind, _ in await tail()] == ["LinkCodeUsed", "DiscordUserSeen", "DiscordLinked"]
    assert await models.discord_user_of(alice.account_id) == first
    # Who asks again since the answer was lost is linked by it still, but not once it was undone.
    assert await bridging.link(first, code, "c") == alice
    assert await bridging.unlink(first, "c") == alice
    assert await refused(bridging.link(first, code, "c")) is Reason.WRONG_LINK_CODE
    assert await link(bridging, first, alice) == alice


@pytest.mark.gen_test
async def test_a_code_is_no_good_when_it_is_old_or_its_account_is_gone_or_banned(
    bridging: Bridging,
    moderation: Moderation,
    alice: Account,
    bob: Account,
    operator: Account,
    clock: Clock,
    log: EventLog,
    models: ReadModels,
) -> None:
    codes = {account.username: bridging.link_code(account).code for account in (alice, bob, operator)}
    await Erasure(log, models, Traces(log.reader), under_way=0).erase_account(alice.account_id, "", "")
    await moderation.ban(operator, "bob", "", "c")
    clock.ahead = timedelta(minutes=9)
    tail = await from_now_on(log)

    reasons = [await refused(bridging.link(AL, code, "c")) for code in (codes["Alice A"], codes["bob"], "A" * 32, "")]
    clock.ahead = timedelta(minutes=11)
    reasons.append(await refused(bridging.link(AL, codes[OPERATOR], "c")))

    wrong = Reason.WRONG_LINK_CODE
    assert reasons == [wrong, Reason.BANNED, wrong, wrong, wrong]
    assert await tail() == []


@pytest.mark.gen_test
async def test_a_code_stands_nowhere_in_the_log(bridging: Bridging, alice: Account, log: EventLog) -> None:
    code = bridging.link_code(alice).code
    await bridging.link(AL, code, "c")

    for event in await log.read():
        for written in (event.stream, str(event.data), str(event.metadata)):
            assert not any(part in written for part in (code, code.replace("-", "")))


@pytest.mark.gen_test
async def test_somebody_is_the_account_that_they_were_linked_to_last(
    bridging: Bridging, alice: Account, bob: Account, models: ReadModels
) -> None:
    assert await bridging.unlink(AL, "c") is None
    await link(bridging, AL, alice)
    assert await link(bridging, AL, bob) == bob
    assert await models.account_of_discord_user(AL.discord_user_id) == bob
    assert await bridging.unlink(AL, "c") == bob
    assert await models.account_of_discord_user(AL.discord_user_id) is None
    assert await bridging.unlink(AL, "c") is None


@pytest.mark.gen_test
async def test_who_may_not_speak_does_not_get_away_from_the_account(
    bridging: Bridging, moderation: Moderation, al: DiscordUser, alice: Account, bob: Account, operator: Account
) -> None:
    await moderation.silence(operator, "Alice A", 60, "", "c")

    assert await refused(bridging.unlink(al, "c")) is Reason.SILENCED
    assert await refused(link(bridging, al, bob)) is Reason.SILENCED
    assert await link(bridging, al, alice) == alice


@pytest.mark.gen_test
async def test_whose_account_was_erased_is_nobody_s_and_was_never_seen(
    bridging: Bridging, al: DiscordUser, alice: Account, bob: Account, log: EventLog, models: ReadModels
) -> None:
    await Erasure(log, models, Traces(log.reader), under_way=0).erase_account(alice.account_id, "", "")

    assert await refused(bridging.send(bob, "al", "hello", "c")) is Reason.NOT_REACHABLE
    assert await bridging.unlink(al, "c") is None
    assert await bridging.see_user(al, "c")
    assert await link(bridging, al, bob) == bob


# --- bridges -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_who_was_erased_on_discord_is_nobody_s_and_may_be_seen_and_linked_anew(
    bridging: Bridging, alice: Account, al: DiscordUser, models: ReadModels, log: EventLog
) -> None:
    [seen] = [event.position for event in await log.read() if event.type == "DiscordUserSeen"]
    await Erasure(log, models, Traces(log.reader)).erase_message(seen, "asked for", "an operator")

    assert await models.account_of_discord_user(al.discord_user_id) is None
    assert await bridging.unlink(al, "c") is None
    assert await bridging.see_user(al, "c")
    await link(bridging, al, alice)
    assert await models.account_of_discord_user(al.discord_user_id) == alice


@pytest.mark.gen_test
async def test_a_channel_is_bridged_by_a_member_of_it(
    bridging: Bridging, commands: Commands, al: DiscordUser, den: Channel, bob: Account, log: EventLog
) -> None:
    tail = await from_now_on(log)
    assert await refused(bridging.bridge(BO.discord_user_id, "den", LOBBY, 1, "c")) is Reason.NOT_LINKED
    await link(bridging, BO, bob)
    assert await refused(bridging.bridge(BO.discord_user_id, "den", LOBBY, 1, "c")) is Reason.NOT_A_MEMBER
    assert await refused(bridging.bridge(AL.discord_user_id, "attic", LOBBY, 1, "c")) is Reason.CHANNEL_NOT_FOUND
    assert await refused(bridging.unbridge(AL.discord_user_id, LOBBY, "c")) is Reason.NOT_BRIDGED

    assert await bridging.bridge(AL.discord_user_id, "#Den", LOBBY, 1, "c") == den
    # Again, it is so already.
    assert await bridging.bridge(AL.discord_user_id, "den", LOBBY, 2, "c") == den
    assert await refused(bridging.unbridge(BO.discord_user_id, LOBBY, "c")) is Reason.NOT_A_MEMBER
    assert await bridging.unbridge(AL.discord_user_id, LOBBY, "c") == den
    assert await refused(bridging.unbridge(AL.discord_user_id, LOBBY, "c")) is Reason.NOT_BRIDGED
    await bridging.bridge(AL.discord_user_id, "den", GENERAL, 3, "c")

    told = [(kind, body["discord_channel_id"]) for kind, body in await tail() if kind.startswith("Channel")]
    lobby, general = str(LOBBY), str(GENERAL)
    assert told == [("ChannelBridged", lobby), ("ChannelUnbridged", lobby), ("ChannelBridged", general)]


@pytest.mark.gen_test
async def test_a_channel_on_either_side_is_bridged_to_one_also_by_two_bridges_at_once(
    bridging: Bridging,
    commands: Commands,
    al: DiscordUser,
    alice: Account,
    log: EventLog,
    models: ReadModels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await commands.make_channel(alice, "attic", "c")
    read, reads, all_have_read = log.read_stream, itertools.count(1), asyncio.Barrier(3)

    async def read_together(stream: str, after: int = 0, limit: int = 1000) -> list[RecordedEvent]:
        found = await read(stream, after, limit)
        if stream == BRIDGES and next(reads) <= 3:
            await all_have_read.wait()
        return found

    monkeypatch.setattr(log, "read_stream", read_together)
    other = Bridging(log, models, commands, SECRET, default_channel=None, configured=True)
    outcomes = await asyncio.gather(
        bridging.bridge(al.discord_user_id, "den", LOBBY, 1, "c"),
        other.bridge(al.discord_user_id, "attic", LOBBY, 1, "c"),
        other.bridge(al.discord_user_id, "den", LOBBY, 1, "c"),
        return_exceptions=True,
    )

    # Either the one channel, which two bridged so, or the other one.
    [bridge] = await models.bridges_now()
    errors = [outcome.reason for outcome in outcomes if isinstance(outcome, Refused)]
    assert errors == [Reason.ALREADY_BRIDGED] * (1 if bridge.channel == "den" else 2)
    assert [event.type for event in await read(BRIDGES)] == ["ChannelBridged"]


@pytest.mark.gen_test
async def test_the_announcements_are_bridged_by_operators_and_nobody_announces_from_discord_but_they(
    bridging: Bridging, al: DiscordUser, operator: Account, clock: Clock, models: ReadModels
) -> None:
    assert await refused(bridging.bridge(al.discord_user_id, ANNOUNCE, LOBBY, 1, "c")) is Reason.NOT_A_MEMBER
    await link(bridging, BO, operator)
    announce = await bridging.bridge(BO.discord_user_id, ANNOUNCE, LOBBY, 1, "c")
    assert await refused(bridging.unbridge(al.discord_user_id, LOBBY, "c")) is Reason.NOT_A_MEMBER

    stranger = DiscordUser(5, "stranger")
    assert await bridging.receive(saying(clock, "by alice", al), "c") is None
    assert await bridging.receive(saying(clock, "by a stranger", stranger), "c") is None
    clock.ahead = timedelta(seconds=1)
    assert await bridging.receive(saying(clock, "by an operator", BO), "c") is not None

    [_, message] = await models.messages.newest_in_channel(announce, 10)
    assert (message.sender, message.text) == (OPERATOR, "by an operator")
    sent = await bridging.send(operator, ANNOUNCE, "to all", "c")
    assert (await delivery_of(models, sent)).destination == Destination(LOBBY, None)


# --- from Discord ------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_member_who_is_linked_speaks_as_themselves_and_everybody_else_through_the_bot(
    bridging: Bridging, alice: Account, bob: Account, bridged: Channel, clock: Clock, models: ReadModels
) -> None:
    not_linked, no_member = DiscordUser(5, "eve"), BO
    await link(bridging, no_member, bob)

    for author, name in ((AL, "Al"), (no_member, "Bo"), (not_linked, "**Alice A**\n")):
        clock.ahead += timedelta(seconds=1)
        await received(bridging, saying(clock, "hello", author, name=name))

    said = [(message.sender, message.text) for message in await models.messages.newest_in_channel(bridged, 10)]
    assert said[1:] == [("Alice A", "hello"), (BOT_NAME, "**Bo**: hello"), (BOT_NAME, "**Alice A**: hello")]


@pytest.mark.gen_test
async def test_a_message_from_discord_is_recorded_once_and_does_not_go_back(
    bridging: Bridging, bridged: Channel, clock: Clock, log: EventLog, models: ReadModels
) -> None:
    tail = await from_now_on(log)
    said = saying(clock, "x" * 5000)

    at_once = await asyncio.gather(bridging.receive(said, "c"), bridging.receive(said, "c"))
    later = await bridging.receive(msgspec.structs.replace(said, text="something else"), "c")

    sent, origin = await tail.events()
    assert {appended.first_position for appended in (*at_once, later) if appended} == {sent.position}
    assert later is not None
    assert later.repeated
    assert sent.stream == origin.stream
    assert origin.body() == {
        "discord_channel_id": str(LOBBY),
        "discord_message_id": str(said.discord_message_id),
    }
    text = sent.body()["text"]
    assert (len(text), text.startswith("**Bo B**: xxx"), text.endswith(LINK)) == (4000, True, True)
    assert await models.deliveries.destinations() == []


@pytest.mark.gen_test
async def test_what_is_no_text_or_of_a_channel_that_is_not_bridged_is_not_taken_in(
    bridging: Bridging, bridged: Channel, clock: Clock, log: EventLog
) -> None:
    tail = await from_now_on(log)
    assert await bridging.receive(saying(clock, " \n"), "c") is None
    assert await bridging.receive(saying(clock, "hello", channel=GENERAL), "c") is None
    assert await tail() == []

    await bridging.unbridge(AL.discord_user_id, LOBBY, "c")
    assert await bridging.receive(saying(clock, "hello"), "c") is None


@pytest.mark.gen_test
async def test_what_somebody_said_while_silenced_or_banned_is_not_said_later(
    bridging: Bridging,
    moderation: Moderation,
    al: DiscordUser,
    bridged: Channel,
    bob: Account,
    operator: Account,
    clock: Clock,
) -> None:
    await link(bridging, BO, bob)
    await moderation.ban(operator, "bob", "", "c")
    assert await bridging.receive(saying(clock, "hello", BO), "c") is None

    await moderation.silence(operator, "Alice A", 60, "", "c")
    said = saying(clock, "hello", al)
    assert await bridging.receive(said, "c") is None
    clock.ahead = timedelta(seconds=61)
    assert await bridging.receive(said, "c") is None
    assert await bridging.receive(saying(clock, "hello", al), "c") is not None


@pytest.mark.gen_test
async def test_an_edit_is_recorded_if_it_changes_what_was_said(
    bridging: Bridging, bridged: Channel, clock: Clock, log: EventLog, models: ReadModels
) -> None:
    said = saying(clock, "hello")
    message_id = await received(bridging, said)
    clock.ahead = timedelta(seconds=1)
    by_alice = saying(clock, "hello", AL)
    await received(bridging, by_alice)
    tail = await from_now_on(log)

    async def edit(text: str, name: str = "Bo B", of: int = said.discord_message_id) -> bool:
        return await bridging.edit(of, name, text, LINK, "c")

    # As it is, under a new name alone, and nothing at all.
    assert [await edit("hello"), await edit("hello", "Bobo"), await edit(" ")] == [True] * 3
    assert await tail() == []
    assert sorted(await asyncio.gather(edit("bye"), edit("bye"))) == [True, True]
    assert await edit("so\0long", "Bobo\n")
    assert await edit("**Bo B**: bye", of=by_alice.discord_message_id)

    edits = [(event.type, event.body()["text"]) for event in await tail.events()]
    texts = ("**Bo B**: bye", "**Bobo**: so\ufffdlong", "**Bo B**: bye")
    assert edits == [("MessageEdited", text) for text in texts]
    message = await models.messages.by_id(message_id)
    assert message is not None
    assert (message.sender, message.text) == (BOT_NAME, "**Bobo**: so\ufffdlong")


@pytest.mark.gen_test
async def test_nothing_happens_to_a_message_that_is_gone_or_whose_author_may_not_speak(
    bridging: Bridging,
    commands: Commands,
    moderation: Moderation,
    alice: Account,
    bridged: Channel,
    operator: Account,
    clock: Clock,
    log: EventLog,
    models: ReadModels,
) -> None:
    sayings: list[Said] = []
    for text in ("to be deleted", "to be erased", "to be edited"):
        clock.ahead += timedelta(seconds=1)
        sayings.append(saying(clock, text, AL))
    deleted, erased, _ = [await received(bridging, said) for said in sayings]
    await commands.delete_message(alice, deleted, "c")
    await Erasure(log, models, Traces(log.reader)).erase_message(erased, "", "")
    await moderation.silence(operator, "Alice A", 60, "", "c")
    tail = await from_now_on(log)

    edited = [await bridging.edit(said.discord_message_id, "Al", "anew", LINK, "c") for said in sayings]
    gone = [await bridging.delete(said.discord_message_id, "c") for said in sayings[:2]]
    again = [await bridging.receive(said, "c") for said in sayings[:2]]

    assert (edited, gone) == ([True] * 3, [True] * 2)
    assert [appended and appended.repeated for appended in again] == [None, None]
    assert await tail() == []
    # A silence keeps nobody from deleting.
    assert await bridging.delete(sayings[2].discord_message_id, "c")
    assert [kind for kind, _ in await tail()] == ["MessageDeleted", "DiscordMessageWithdrawn"]


@pytest.mark.gen_test
async def test_what_is_deleted_on_discord_is_deleted_here_and_nothing_is_left_to_remove_there(
    bridging: Bridging, bridged: Channel, clock: Clock, log: EventLog, models: ReadModels
) -> None:
    said = saying(clock, "hello")
    message_id = await received(bridging, said)
    tail = await from_now_on(log)

    assert await asyncio.gather(*(bridging.delete(said.discord_message_id, "c") for _ in range(2))) == [True, True]
    # It is no longer known, and if it were said again, it was said already.
    assert await bridging.delete(said.discord_message_id, "c") is False
    repeat = await bridging.receive(said, "c")

    assert await tail() == [
        ("MessageDeleted", {"message_id": message_id, "deleted_by": BOT_ID}),
        (
            "DiscordMessageWithdrawn",
            {"discord_channel_id": str(LOBBY), "discord_message_ids": [str(said.discord_message_id)]},
        ),
    ]
    assert repeat is not None
    assert repeat.repeated
    assert await models.messages.by_id(message_id) is None
    assert await models.deliveries.doomed(10) == []


@pytest.mark.gen_test
async def test_what_is_done_on_discord_to_a_copy_of_ours_does_nothing_here(
    bridging: Bridging, commands: Commands, alice: Account, bridged: Channel, log: EventLog, models: ReadModels
) -> None:
    sent = await commands.send_message(alice, "den", "hello", "c")
    await bridging.delivered(await delivery_of(models, sent), LOBBY, [11, 12])
    tail = await from_now_on(log)

    assert await bridging.delete(11, "c") is False
    assert await bridging.edit(11, "Al", "anew", LINK, "c") is False
    assert await bridging.edit(13, "Al", "anew", LINK, "c") is False
    assert await tail() == []


@pytest.mark.gen_test
async def test_a_message_that_was_edited_a_thousand_times_can_be_deleted(
    bridging: Bridging, commands: Commands, alice: Account, bridged: Channel, clock: Clock, log: EventLog
) -> None:
    message_id = await received(bridging, saying(clock, "hello", AL))
    stream = (await log.read(after=message_id - 1, limit=1))[0].stream
    edits = [MessageEdited(message_id, str(i), alice.account_id).recorded_form() for i in range(1001)]
    await log.append(StreamWrite(stream, edits, None), context=Context(alice.account_id, "c"))

    await commands.delete_message(alice, message_id, "c")

    assert await refused(commands.delete_message(alice, message_id, "c")) is Reason.MESSAGE_NOT_FOUND


# --- what became of deliveries -----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_delivery_is_settled_once_under_its_request_s_correlation_id(
    bridging: Bridging, commands: Commands, alice: Account, bridged: Channel, log: EventLog, models: ReadModels
) -> None:
    sent = await commands.send_message(alice, "den", "hello", "the request")
    other = await bridging.send_to_default(alice, "hello", "another request")
    delivery, failing = await delivery_of(models, sent), await delivery_of(models, other)
    tail = await from_now_on(log)

    # By two bridges, again after a crash, and given up too late.
    await asyncio.gather(*(bridging.delivered(delivery, LOBBY, [2**60, 2**60 + 9]) for _ in range(2)))
    await bridging.delivered(delivery, LOBBY, [7])
    await bridging.failed(delivery, "too late")
    await asyncio.gather(*(bridging.failed(failing, "gone") for _ in range(2)))
    # Discord took it all the same.
    await bridging.delivered(failing, DEFAULT, [2**60 + 8])

    events = await tail.events()
    assert [(event.type, event.stream) for event in events] == [
        ("DiscordMessageDelivered", delivery.stream),
        ("DiscordMessageFailed", failing.stream),
        ("DiscordMessageDelivered", failing.stream),
    ]
    assert events[0].body() == {
        "delivery_id": sent.last_position,
        "message_id": sent.first_position,
        "sender_id": alice.account_id,
        "discord_channel_id": str(LOBBY),
        "discord_message_ids": [str(2**60), str(2**60 + 9)],
    }
    assert [correlation_id(event) for event in events] == ["the request", "another request", "another request"]
    assert [(await delivery_of(models, appended)).status for appended in (sent, other)] == ["delivered"] * 2


def correlation_id(event: RecordedEvent) -> object:
    metadata: dict[str, object] = msgspec.json.decode(event.metadata)
    assert metadata["actor"] is None
    return metadata["correlation_id"]


@pytest.mark.gen_test
async def test_what_is_deleted_or_erased_while_it_is_delivered_is_withdrawn_after_it(
    bridging: Bridging, commands: Commands, alice: Account, bridged: Channel, log: EventLog, models: ReadModels
) -> None:
    deleting, erasing = [await commands.send_message(alice, "den", text, "the request") for text in ("one", "two")]
    deliveries = [await delivery_of(models, appended) for appended in (deleting, erasing)]

    await asyncio.gather(
        commands.delete_message(alice, deleting.first_position, "c"),
        Erasure(log, models, Traces(log.reader)).erase_message(erasing.first_position, "", ""),
        *(bridging.delivered(delivery, LOBBY, [i, i + 1]) for i, delivery in zip((20, 30), deliveries, strict=True)),
    )
    doomed = [copy.discord_message_id for copy in await models.deliveries.doomed(10)]
    tail = await from_now_on(log)
    await bridging.withdrawn(LOBBY, doomed)
    await bridging.withdrawn(LOBBY, doomed)

    assert await models.deliveries.doomed(10) == []
    withdrawn = await tail.events()
    assert {event.type for event in withdrawn} == {"DiscordMessageWithdrawn"}
    assert [event.stream for event in withdrawn] == [delivery.stream for delivery in deliveries]
    assert [correlation_id(event) for event in withdrawn] == ["the request"] * 2
