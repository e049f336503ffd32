"""Moderation: who may be silenced, banned, kicked and reported by whom, and what somebody may do no longer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

import projections
from chat.commands import Account, Commands, Restrictions
from chat.moderation import Moderation
from chat.names import BOT_ID, BOT_NAME
from chat.passwords import PasswordHasher
from chat.refusals import Malformed, Reason, Refused
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from handlers.services import Services
from projections.models import ReadModels
from tests.conftest import OPERATOR, SECRET, on_loop, until
from tests.v3client import V3, serving

PASSWORD = "Passw0rd!"
BOT = Account(BOT_ID, BOT_NAME)


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def commands(io_loop: IOLoop, log: EventLog, models: ReadModels, passwords: PasswordHasher, clock: Clock) -> Commands:
    made = Commands(log, models, passwords, SECRET, operators=[OPERATOR, "Second Op"], now=clock)
    on_loop(io_loop, made.prepare)
    return made


@pytest.fixture
def moderation(log: EventLog, models: ReadModels, clock: Clock) -> Moderation:
    return Moderation(log, models, [OPERATOR, "Second Op"], now=clock)


@pytest.fixture
def operator(io_loop: IOLoop, commands: Commands) -> Account:
    return on_loop(io_loop, lambda: commands.register(OPERATOR, PASSWORD, "c"))


@pytest.fixture
def alice(io_loop: IOLoop, commands: Commands) -> Account:
    account = on_loop(io_loop, lambda: commands.register("alice", PASSWORD, "c"))
    on_loop(io_loop, lambda: commands.make_channel(account, "den", "c"))
    return account


async def refused(act: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as raised:
        await act
    return raised.value


async def moderated(log: EventLog) -> list[RecordedEvent]:
    return [event for event in await log.read() if event.stream.startswith("moderation-")]


# --- silence -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_who_is_silenced_writes_nothing_to_anybody_for_as_long(
    commands: Commands, moderation: Moderation, operator: Account, alice: Account, clock: Clock
) -> None:
    writing: list[Callable[[], Awaitable[object]]] = [
        lambda: commands.send_message(alice, "den", "hello", "c"),
        lambda: commands.send_direct_message(alice, OPERATOR, "hello", "c"),
        lambda: commands.send_direct_message(alice, BOT_NAME, "!help", "c"),
    ]

    assert await moderation.silence(operator, "ALICE ", 60, "spam", "c") == alice
    for write in writing:
        found = await refused(write())
        assert found.reason is Reason.SILENCED
        assert found.seconds in range(50, 61)
    clock.ahead = timedelta(seconds=50)
    assert (await refused(writing[0]())).seconds in range(1, 11)
    clock.ahead = timedelta(seconds=61)
    for write in writing:
        await write()


@pytest.mark.gen_test
async def test_v3_tells_the_seconds_of_a_silence_and_says_that_somebody_is_banned(
    commands: Commands, moderation: Moderation, services: Services, operator: Account, alice: Account
) -> None:
    token, _ = await commands.generate_token(alice, "c")
    http = AsyncHTTPClient(force_instance=True)
    async with serving(services) as port:
        v3 = V3(f"http://127.0.0.1:{port}", http)
        await moderation.silence(operator, "alice", 3600, "spam", "c")
        silenced = await v3.call("sendmessage", token=token, channel="den", message="hello")
        await moderation.ban(operator, "alice", "spam", "c")
        banned = await v3.call("login", username="alice", password=PASSWORD)
    http.close()

    assert silenced.status == 403
    assert re.fullmatch(r"You are silenced for 3(600|59\d) seconds!", silenced.body["message"])
    assert (banned.status, banned.body) == (403, {"message": "You are banned!"})


@pytest.mark.gen_test
async def test_who_is_silenced_may_do_everything_else(
    commands: Commands, moderation: Moderation, operator: Account, alice: Account
) -> None:
    sent = await commands.send_message(alice, "den", "hello", "c")
    await moderation.silence(operator, "alice", 60, "", "c")

    token, _ = await commands.generate_token(await commands.log_in("alice", PASSWORD), "c")
    assert await commands.authenticate(token) == alice
    await commands.delete_message(alice, sent.first_position, "c")
    await commands.make_channel(alice, "another", "c")


@pytest.mark.gen_test
async def test_a_silence_counts_from_its_event_s_time_and_a_new_one_takes_its_place(
    moderation: Moderation, models: ReadModels, operator: Account, alice: Account, log: EventLog
) -> None:
    for seconds in (3600, 60, 120):
        await moderation.silence(operator, "alice", seconds, "", "c")
        [*_, event] = await log.read()
        until_then = event.recorded_at + timedelta(seconds=seconds)
        assert await models.restrictions(alice.account_id) == Restrictions(False, until_then)


@pytest.mark.gen_test
async def test_a_removed_silence_is_over_and_cannot_be_removed_again(
    commands: Commands, moderation: Moderation, operator: Account, alice: Account, clock: Clock
) -> None:
    nothing = Reason.NOTHING_TO_UNDO
    assert (await refused(moderation.remove_silence(operator, "alice", "c"))).reason is nothing
    await moderation.silence(operator, "alice", 60, "", "c")
    assert await moderation.remove_silence(operator, "alice", "c") == alice

    await commands.send_message(alice, "den", "hello", "c")
    assert (await refused(moderation.remove_silence(operator, "alice", "c"))).reason is nothing
    await moderation.silence(operator, "alice", 60, "", "c")
    clock.ahead = timedelta(seconds=61)
    assert (await refused(moderation.remove_silence(operator, "alice", "c"))).reason is nothing


@pytest.mark.gen_test
@pytest.mark.parametrize("seconds", [0, -1, 365 * 24 * 60 * 60 + 1])
async def test_a_silence_is_a_second_to_a_year_long(
    moderation: Moderation, operator: Account, alice: Account, seconds: int, log: EventLog
) -> None:
    with pytest.raises(Malformed) as malformed:
        await moderation.silence(operator, "alice", seconds, "", "c")

    assert malformed.value.field == "seconds"
    assert await moderated(log) == []


# --- bans --------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_who_is_banned_has_no_token_and_cannot_log_in(
    commands: Commands, moderation: Moderation, operator: Account, alice: Account, log: EventLog
) -> None:
    token, _ = await commands.generate_token(alice, "c")
    assert await commands.authenticate(token) == alice

    assert await moderation.ban(operator, "alice", "spam", "c") == alice

    assert (await refused(commands.authenticate(token))).reason is Reason.INVALID_TOKEN
    assert (await refused(commands.bearer(token))).reason is Reason.INVALID_TOKEN
    assert (await refused(commands.current_token(alice))).reason is Reason.NO_TOKEN
    assert (await refused(commands.log_in("alice", PASSWORD))).reason is Reason.BANNED
    assert (await refused(commands.log_in("alice", "0therPassw0rd!"))).reason is Reason.WRONG_CREDENTIALS
    assert (await refused(commands.generate_token(alice, "c"))).reason is Reason.BANNED
    assert (await refused(commands.send_message(alice, "den", "hello", "c"))).reason is Reason.BANNED
    assert [(event.type, event.stream) for event in (await log.read())[-2:]] == [
        ("AccountBanned", f"moderation-{alice.account_id}"),
        ("TokenRevoked", f"token-{alice.account_id}"),
    ]


@pytest.mark.gen_test
async def test_who_is_let_back_in_gets_a_new_token_and_the_old_one_stays_ended(
    commands: Commands, moderation: Moderation, operator: Account, alice: Account
) -> None:
    old, _ = await commands.generate_token(alice, "c")
    await moderation.ban(operator, "alice", "", "c")

    assert await moderation.unban(operator, "alice", "c") == alice

    assert (await refused(commands.current_token(await commands.log_in("alice", PASSWORD)))).reason is Reason.NO_TOKEN
    new, generation = await commands.generate_token(alice, "c")
    assert generation == 3
    assert await commands.authenticate(new) == alice
    assert (await commands.bearer(new)).generation == 3
    assert await commands.current_token(alice) == new
    assert (await refused(commands.authenticate(old))).reason is Reason.INVALID_TOKEN


@pytest.mark.gen_test
async def test_a_second_ban_changes_nothing_and_only_a_ban_can_be_undone(
    moderation: Moderation, operator: Account, alice: Account, log: EventLog
) -> None:
    assert (await refused(moderation.unban(operator, "alice", "c"))).reason is Reason.NOTHING_TO_UNDO
    await moderation.ban(operator, "alice", "", "c")
    before = await log.head()

    await moderation.ban(operator, "alice", "once more", "c")
    assert await log.head() == before

    await moderation.unban(operator, "alice", "c")
    assert (await refused(moderation.unban(operator, "alice", "c"))).reason is Reason.NOTHING_TO_UNDO


@pytest.mark.gen_test
async def test_operators_who_ban_and_unban_at_once_do_it_once(
    moderation: Moderation, operator: Account, alice: Account, log: EventLog
) -> None:
    for command in (moderation.ban, moderation.ban):
        await asyncio.gather(*(command(operator, "alice", "", "c") for _ in range(5)))
    outcomes = await asyncio.gather(
        *(moderation.unban(operator, "alice", "c") for _ in range(5)), return_exceptions=True
    )

    assert [event.type for event in await moderated(log)] == ["AccountBanned", "BanRemoved"]
    assert outcomes.count(alice) == 1
    assert [each.reason for each in outcomes if isinstance(each, Refused)] == [Reason.NOTHING_TO_UNDO] * 4


@pytest.mark.gen_test
@pytest.mark.parametrize("tokens_before", [0, 1])
async def test_no_token_outlives_a_ban_that_comes_while_another_process_issues_it(
    commands: Commands, moderation: Moderation, operator: Account, database: str, tokens_before: int
) -> None:
    async with EventLog(database, projections.ALL) as other:
        banning = Moderation(other, ReadModels(other), [OPERATOR])
        for number in range(15):
            account = await commands.register(f"user{number}", PASSWORD, "c")
            for _ in range(tokens_before):
                await commands.generate_token(account, "c")

            issued, _ = await asyncio.gather(
                commands.generate_token(account, "c"),
                banning.ban(operator, account.username, "", "c"),
                return_exceptions=True,
            )

            current = await moderation._models.token_of(account.account_id)
            assert current is not None
            assert current.token_digest is None
            assert isinstance(issued, Refused | tuple), issued


@pytest.mark.gen_test
async def test_an_operator_is_not_banned_but_silenced_and_kicked(
    moderation: Moderation, commands: Commands, operator: Account
) -> None:
    second = await commands.register("second op", PASSWORD, "c")
    assert moderation.is_operator(second)

    assert (await refused(moderation.ban(operator, "second op", "", "c"))).reason is Reason.NOT_FOR_AN_OPERATOR
    assert await moderation.silence(operator, "second op", 60, "", "c") == second
    assert await moderation.kick(operator, "second op", "", "c") == second


# --- kicks and reports -------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_kicks_and_reports_are_recorded_with_their_reasons_each_time(
    moderation: Moderation, operator: Account, alice: Account, log: EventLog, models: ReadModels
) -> None:
    for _ in range(2):
        assert await moderation.kick(operator, "alice", "spam", "request") == alice
        assert await moderation.report(alice, OPERATOR, "", "request") == operator

    assert [(event.type, event.stream, event.body()) for event in (await log.read())[-2:]] == [
        (
            "AccountKicked",
            f"moderation-{alice.account_id}",
            {"account_id": alice.account_id, "reason": "spam", "kicked_by": operator.account_id},
        ),
        (
            "AccountReported",
            f"moderation-{operator.account_id}",
            {"account_id": operator.account_id, "reason": "", "reporter_id": alice.account_id},
        ),
    ]
    assert [event.version for event in await moderated(log)] == [1, 1, 2, 2]
    assert await models.restrictions(alice.account_id) == Restrictions(False, None)


# --- who may, and to whom ----------------------------------------------------------------------------------------

Act = Callable[[Moderation, Account, str], Awaitable[Account]]
ACTS: dict[str, Act] = {
    "silence": lambda moderation, by, name: moderation.silence(by, name, 60, "", "c"),
    "remove_silence": lambda moderation, by, name: moderation.remove_silence(by, name, "c"),
    "ban": lambda moderation, by, name: moderation.ban(by, name, "", "c"),
    "unban": lambda moderation, by, name: moderation.unban(by, name, "c"),
    "kick": lambda moderation, by, name: moderation.kick(by, name, "", "c"),
    "report": lambda moderation, by, name: moderation.report(by, name, "", "c"),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("name", ACTS)
async def test_only_operators_moderate_nobody_unknown_and_never_the_bot(
    moderation: Moderation, operator: Account, alice: Account, name: str, log: EventLog
) -> None:
    act = partial(ACTS[name], moderation)
    assert (await refused(act(operator, "nobody"))).reason is Reason.USER_NOT_FOUND
    assert (await refused(act(operator, "fokabot"))).reason is Reason.NOT_FOR_THE_BOT
    if name != "report":
        for username in ("alice", "nobody", "fokabot", OPERATOR):
            assert (await refused(act(alice, username))).reason is Reason.NOT_AN_OPERATOR

    assert await moderated(log) == []


@pytest.mark.gen_test
async def test_the_bot_moderates_by_itself_and_is_never_restricted(
    moderation: Moderation, commands: Commands, models: ReadModels, alice: Account
) -> None:
    assert moderation.is_operator(BOT)
    assert await moderation.silence(BOT, "alice", 60, "flood", "c") == alice
    assert await models.restrictions(BOT_ID) == Restrictions()


@pytest.mark.gen_test
async def test_the_bot_writes_to_every_channel_and_operators_to_the_announcements_only(
    commands: Commands, operator: Account, alice: Account
) -> None:
    for channel in ("den", "announce"):
        await commands.send_message(BOT, channel, "hello", "c")

    await commands.send_message(operator, "announce", "hello", "c")
    assert (await refused(commands.send_message(operator, "den", "hello", "c"))).reason is Reason.NOT_A_MEMBER


@pytest.mark.gen_test
async def test_a_reason_has_at_most_500_characters(
    moderation: Moderation, operator: Account, alice: Account, log: EventLog
) -> None:
    await moderation.kick(operator, "alice", "é" * 500, "c")
    before = await log.head()
    acts: list[Awaitable[Account]] = [
        moderation.silence(operator, "alice", 60, "x" * 501, "c"),
        moderation.ban(operator, "alice", "x" * 501, "c"),
        moderation.kick(operator, "alice", "x" * 501, "c"),
        moderation.report(alice, OPERATOR, "x" * 501, "c"),
    ]
    for act in acts:
        with pytest.raises(Malformed, match="500") as malformed:
            await act
        assert malformed.value.field == "reason"
    assert await log.head() == before


# --- once and for all --------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_repeated_command_changes_nothing_and_is_answered_as_the_first_time(
    moderation: Moderation, operator: Account, alice: Account, log: EventLog
) -> None:
    commands: list[Callable[[], Awaitable[Account]]] = [
        lambda: moderation.silence(operator, "alice", 60, "", "c", "1"),
        lambda: moderation.remove_silence(operator, "alice", "c", "2"),
        lambda: moderation.ban(operator, "alice", "", "c", "3"),
        lambda: moderation.unban(operator, "alice", "c", "4"),
        lambda: moderation.kick(operator, "alice", "", "c", "5"),
        lambda: moderation.report(operator, "alice", "", "c", "6"),
    ]
    for command in commands:
        assert [await command() for _ in range(2)] == [alice] * 2
    before = await log.head()

    # Long afterwards too, and all at once: what is the case by now would have them refused, or done once more.
    assert await asyncio.gather(*(command() for command in commands * 3)) == [alice] * 18
    assert await log.head() == before


@pytest.mark.gen_test
async def test_one_command_that_several_nodes_carry_out_at_once_is_carried_out_once(
    moderation: Moderation, operator: Account, alice: Account, log: EventLog, database: str
) -> None:
    await moderation.ban(operator, "alice", "", "c")
    async with EventLog(database, projections.ALL) as other:
        nodes = [moderation, Moderation(other, ReadModels(other), [OPERATOR])]
        outcomes = await asyncio.gather(*(nodes[n % 2].unban(operator, "alice", "c", "the command") for n in range(6)))

    assert outcomes == [alice] * 6
    assert [event.type for event in await moderated(log)] == ["AccountBanned", "BanRemoved"]


# --- what the caches may not do ----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_restrictions_are_kept_until_they_change_here_or_elsewhere(
    commands: Commands, moderation: Moderation, operator: Account, alice: Account, log: EventLog, database: str
) -> None:
    await log.listening()
    await commands.send_message(alice, "den", "hello", "c")
    heard: list[RecordedEvent] = []
    log.subscribe(heard.extend)

    async with EventLog(database, projections.ALL) as other:
        await Moderation(other, ReadModels(other), [OPERATOR]).silence(operator, "alice", 60, "", "c")
        await until(lambda: heard)

    assert (await refused(commands.send_message(alice, "den", "hello", "c"))).reason is Reason.SILENCED
    await moderation.remove_silence(operator, "alice", "c")
    await commands.send_message(alice, "den", "hello", "c")


class Deaf(ReadModels):
    """Read models that keep what they knew of restrictions before anything happened."""

    async def restrictions(self, account_id: int) -> Restrictions:  # noqa: ARG002
        return Restrictions()


@pytest.mark.gen_test
async def test_who_was_banned_elsewhere_gets_no_token_where_nobody_has_heard_of_it_yet(
    moderation: Moderation, operator: Account, alice: Account, log: EventLog, passwords: PasswordHasher
) -> None:
    elsewhere = Commands(log, Deaf(log), passwords, SECRET)
    await moderation.ban(operator, "alice", "", "c")

    assert (await refused(elsewhere.log_in("alice", PASSWORD))).reason is Reason.BANNED
    assert (await refused(elsewhere.generate_token(alice, "c"))).reason is Reason.BANNED


class Asked(ReadModels):
    """Read models that count how often they ask for restrictions."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(log)
        self.asked = 0

    async def restrictions_now(self, account_id: int) -> Restrictions:
        self.asked += 1
        return await super().restrictions_now(account_id)


@pytest.mark.gen_test
async def test_restrictions_are_asked_for_each_time_while_other_processes_cannot_be_heard(log: EventLog) -> None:
    models = Asked(log)
    await log.listening()
    assert [await models.restrictions(1000) for _ in range(3)] == [Restrictions()] * 3
    assert models.asked == 0
    log._feed.listening.clear()

    assert [await models.restrictions(1000) for _ in range(3)] == [Restrictions()] * 3
    assert models.asked == 3
