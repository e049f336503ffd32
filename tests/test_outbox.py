"""The outbox, on a real log and against a Discord that does what Discord may do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import discord as discord_py
import pytest
from tornado.ioloop import IOLoop

import projections
from bot.bridge import outbox as outbox_module
from bot.bridge import rest as rest_module
from bot.bridge.outbox import NotAuthorised, Outbox, TryLater, nonce
from bot.bridge.rest import logged_in, told
from bot.bridge.text import outgoing
from chat.bridging import Delivery, Destination
from chat.commands import Account, Commands
from chat.erasure import Erasure
from chat.passwords import PasswordHasher
from eventstore.log import EventLog
from projections.deliveries import Deliveries
from projections.models import ReadModels
from projections.traces import Traces
from tests.conftest import SECRET, Enter, on_loop, own_database, until
from tests.outgoing import DAY, PAUSES, Scene, deleting, make_scene, reading, register_alice, sending
from tests.standin.clients import point_clients_at
from tests.standin.faults import Request
from tests.standin.server import Discord
from tests.standin.things import User
from tests.tables import Outage
from tests.v3client import own_loop

pytestmark = pytest.mark.gen_test

LONG = "word " * 790


@pytest.fixture
def discord(enter: Enter[Discord], monkeypatch: pytest.MonkeyPatch) -> Discord:
    standin = enter(Discord())
    point_clients_at(standin, monkeypatch)
    return standin


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def database(cluster: str) -> Iterator[str]:
    yield from own_database(cluster)


@pytest.fixture(scope="module")
def log(io_loop: IOLoop, database: str) -> Iterator[EventLog]:
    opened = EventLog(database, projections.ALL)
    yield on_loop(io_loop, opened.__aenter__)
    on_loop(io_loop, lambda: opened.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def commands(io_loop: IOLoop, log: EventLog) -> Iterator[Commands]:
    passwords = PasswordHasher(cost=4)
    made = Commands(log, ReadModels(log), passwords, SECRET)
    on_loop(io_loop, made.prepare)
    yield made
    passwords.close()


@pytest.fixture(scope="module")
def alice(io_loop: IOLoop, commands: Commands) -> Account:
    return on_loop(io_loop, lambda: register_alice(commands))


@pytest.fixture
def scene(io_loop: IOLoop, log: EventLog, commands: Commands, discord: Discord, alice: Account) -> Iterator[Scene]:
    """A Discord of its own for each test, on the log of all of them."""
    made = make_scene(log, ReadModels(log), commands, discord, alice)
    yield made
    on_loop(io_loop, made.ends)


@pytest.fixture
def no_nonces(discord: Discord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discord forgets nonces at once, as if minutes had passed."""
    monkeypatch.setattr(discord.world, "posted", lambda _author, _nonce: None)


# Order


async def test_what_was_written_arrives_in_order_as_by_its_author(scene: Scene) -> None:
    before = await scene.writes("one", "two")
    async with scene.outbox():
        behind = await scene.writes(*map(str, range(20)))

        assert await scene.settled(*before, *behind) == ["delivered"] * 22

    assert scene.shown() == [f"**Alice**: {text}" for text in ("one", "two", *range(20))]
    recorded = [(await scene.delivery(each)).discord_message_ids for each in (*before, *behind)]
    assert recorded == [(message.id,) for message in scene.discord.messages(scene.channel)]


async def test_a_long_text_arrives_in_parts_that_nothing_comes_between(scene: Scene) -> None:
    async with scene.outbox():
        long, short = await scene.writes(LONG, "short")
        await scene.settled(long, short)

    *parts, last = scene.shown()
    assert parts == outgoing("Alice", LONG)
    assert len(parts) == 2
    assert last == "**Alice**: short"
    assert (await scene.delivery(long)).discord_message_ids == tuple(
        message.id for message in scene.discord.messages(scene.channel)[:2]
    )


async def test_nobody_is_mentioned(scene: Scene) -> None:
    everyone = scene.discord.person("bob")
    async with scene.outbox():
        await scene.settled(*await scene.writes(f"@everyone <@{everyone.id}> look"))

    [message] = scene.discord.messages(scene.channel)
    assert message.content == f"**Alice**: @everyone <@{everyone.id}> look"
    assert (message.mentions, message.mention_everyone) == ((), False)


async def test_a_person_is_written_to_directly(scene: Scene) -> None:
    bob = scene.discord.person("bob")
    async with scene.outbox():
        assert await scene.settled(*await scene.writes_to(bob, "psst", "hey")) == ["delivered"] * 2

    assert scene.shown(scene.discord.dm(bob)) == ["**Alice**: psst", "**Alice**: hey"]
    assert scene.shown() == []


async def test_a_destination_that_takes_nothing_holds_no_other_up(scene: Scene) -> None:
    bob = scene.discord.person("bob")
    scene.discord.fail_next(10_000, 503, only=sending(scene.channel))
    stuck = await scene.writes("stuck", "behind it")
    async with scene.outbox():
        assert await scene.settled(*await scene.writes_to(bob, "psst")) == ["delivered"]
        assert [(await scene.delivery(each)).status for each in stuck] == ["waiting"] * 2
        scene.discord.plans.clear()
        await scene.settled(*stuck)

    assert scene.shown() == ["**Alice**: stuck", "**Alice**: behind it"]


class Slow(Deliveries):
    """The read model, whose answer that nothing waits takes its time."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(log.reader)
        self.answers = asyncio.Event()
        self.asked = 0

    async def waiting(self, destination: Destination, limit: int) -> list[Delivery]:
        found = await super().waiting(destination, limit)
        if not found:
            self.asked += 1
            await self.answers.wait()
        return found


async def test_what_is_written_while_a_worker_finds_nothing_to_do_is_delivered(scene: Scene, log: EventLog) -> None:
    slow = Slow(log)
    heard: list[str] = []
    log.subscribe(lambda batch: heard.extend(event.type for event in batch))
    async with scene.outbox(model=slow):
        first = await scene.writes("one")
        await until(lambda: slow.asked)
        second = await scene.writes("two")
        await until(lambda: heard.count("DiscordMessageRequested") == 2)
        slow.answers.set()

        assert await scene.settled(*first, *second) == ["delivered"] * 2


# Faults


@pytest.mark.parametrize("status", [503, 429, None], ids=["a server's fault", "too many", "a cut connection"])
async def test_what_discord_does_not_take_is_sent_again_in_its_place(scene: Scene, status: int | None) -> None:
    scene.discord.fail_next(3, status, only=sending(), retry_after=0.02)
    async with scene.outbox():
        await scene.settled(*await scene.writes("one", "two", "three"))

    assert scene.shown() == ["**Alice**: one", "**Alice**: two", "**Alice**: three"]


async def test_a_pause_that_discord_asks_for_is_kept(scene: Scene) -> None:
    scene.discord.fail_next(1, 429, only=sending(), retry_after=0.3)
    loop = asyncio.get_running_loop()
    async with scene.outbox():
        began = loop.time()
        await scene.settled(*await scene.writes("one"))

    assert loop.time() - began >= 0.3
    assert [request.status for request in scene.discord.requests if sending()(request)] == [429, 200]


async def test_an_outage_of_discord_is_waited_for(scene: Scene) -> None:
    async with scene.outbox():
        await scene.settled(*await scene.writes("before"))
        await scene.discord.stop()
        during = await scene.writes("during", "more")
        await asyncio.sleep(0.1)
        assert (await scene.delivery(during[0])).status == "waiting"
        scene.discord.start()

        assert await scene.settled(*during) == ["delivered"] * 2

    assert scene.shown() == ["**Alice**: before", "**Alice**: during", "**Alice**: more"]


async def test_an_outage_of_the_log_is_waited_for_and_nothing_is_sent_twice(scene: Scene, outage: Outage) -> None:
    async with scene.outbox():
        with scene.discord.hold(sending(), applied=True) as hold:
            [delivery] = await scene.writes("once")
            await until(lambda: hold.waiting)
            outage.begin()
        await asyncio.sleep(0.1)
        outage.end()

        assert await scene.settled(delivery) == ["delivered"]

    assert scene.shown() == ["**Alice**: once"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda discord, bob: discord.close_dms(bob), "the person takes no direct messages from the bot"),
        (lambda discord, bob: discord.delete_channel(discord.dm(bob)), "there is no such channel"),
    ],
)
async def test_a_person_who_cannot_be_written_to_is_given_up_at_once(
    scene: Scene, fault: Callable[[Discord, User], None], reason: str
) -> None:
    bob = scene.discord.person("bob")
    async with scene.outbox():
        await scene.settled(*await scene.writes_to(bob, "first"))
        fault(scene.discord, bob)

        assert await scene.settled(*await scene.writes_to(bob, "psst", "hey")) == [reason] * 2


async def test_a_channel_that_is_closed_to_the_bot_fails_what_was_to_go_there_and_not_what_comes_later(
    scene: Scene,
) -> None:
    async with scene.outbox():
        scene.discord.lock(scene.channel)
        assert await scene.settled(*await scene.writes("one")) == ["the bot may not do that there"]
        scene.discord.hide(scene.channel)
        assert await scene.settled(*await scene.writes("two")) == ["the bot does not see the channel"]
        scene.discord.unlock(scene.channel)
        assert await scene.settled(*await scene.writes("three")) == ["delivered"]

    assert scene.shown() == ["**Alice**: three"]


async def test_a_message_of_white_space_alone_is_not_sent_and_holds_nothing_up(scene: Scene) -> None:
    await scene.bridges()
    async with scene.outbox():
        blank, _ = await scene.says(" \n", "behind it")

        assert await scene.settled(blank + 1) == ["it holds nothing but white space"]
        await until(lambda: scene.shown() == ["**Alice**: behind it"])


async def test_what_passes_is_no_refusal_for_good(scene: Scene) -> None:
    """Neither what stands before Discord refuses, nor what Discord has switched off for a time."""
    scene.discord.fail_next(1, 403, only=sending(), body="<html>blocked</html>")
    scene.discord.fail_next(1, 400, only=sending(), body={"message": "Temporarily disabled", "code": 40004})
    async with scene.outbox():
        assert await scene.settled(*await scene.writes("one")) == ["delivered"]


async def test_an_answer_that_never_comes_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "ANSWER_SECONDS", 0.1)
    async with scene.outbox():
        with scene.discord.hold(sending()) as hold:
            [delivery] = await scene.writes("one")
            await until(lambda: hold.waiting == 2)
        assert await scene.settled(delivery) == ["delivered"]

    assert scene.shown() == ["**Alice**: one"]


async def test_what_was_frozen_in_a_pause_looks_again_before_it_sends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have sent it since, and so long ago that Discord does not know the nonce any more."""
    monkeypatch.setattr(rest_module, "ANSWER_SECONDS", 0.3)
    async with scene.outbox():
        await scene.settled(*await scene.writes("first"))
        before = len(scene.discord.requests)
        scene.discord.fail_next(1, 429, only=sending(), retry_after=0.2)
        waiting = await scene.writes("one")
        await until(lambda: scene.discord.requests[before:])
        time.sleep(0.5)  # noqa: ASYNC251 - nothing at all happens in this process meanwhile
        await scene.settled(*waiting)

    assert [request.method for request in scene.discord.requests[before:]] == ["POST", "GET", "POST"]


async def test_a_pause_for_all_that_is_cut_off_is_over(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "ANSWER_SECONDS", 0.1)
    scene.discord.fail_next(1, 429, only=sending(), retry_after=20, scope="global")
    async with scene.outbox():
        assert await scene.settled(*await scene.writes("one")) == ["delivered"]


async def test_no_pause_that_is_asked_for_goes_beyond_the_time_to_give_up(scene: Scene) -> None:
    """Also not if it asks for a year."""
    late = datetime.now(UTC) + DAY - timedelta(seconds=0.1)
    began = datetime.now(UTC)
    scene.discord.fail_next(10_000, 429, only=sending(), retry_after=31_536_000)
    async with scene.outbox(now=lambda: late + (datetime.now(UTC) - began)):
        [reason] = await scene.settled(*await scene.writes("one"))

    assert reason.startswith("not taken within 24 h")


@pytest.mark.parametrize(("asked", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", None), (None, None)])
def test_what_stands_before_discord_may_say_for_how_long(asked: str | None, seconds: float | None) -> None:
    response = SimpleNamespace(status=429, reason="", headers={} if asked is None else {"Retry-After": asked})
    with pytest.raises(TryLater) as raised, told():
        raise discord_py.HTTPException(cast("Any", response), "<html>too many</html>")

    assert raised.value.seconds == seconds


async def test_what_discord_does_not_take_in_time_has_failed(scene: Scene) -> None:
    late = datetime.now(UTC) + timedelta(hours=25)
    old = await scene.writes("one", "two")
    scene.discord.fail_next(2, 503, only=sending())
    async with scene.outbox(now=lambda: late):
        assert await scene.settled(*old) == ["not taken within 24 h: Discord answers 503"] * 2
        # It was tried; what comes after it is, too.
        assert await scene.settled(*await scene.writes("three")) == ["delivered"]

    assert scene.shown() == ["**Alice**: three"]


async def test_what_was_taken_at_last_without_saying_so_is_not_called_failed(scene: Scene) -> None:
    late = datetime.now(UTC) + timedelta(hours=25)
    taken, unseen = await scene.writes("taken", "unseen")
    scene.discord.fail_next(1, 503, only=sending(), apply=True)
    async with scene.outbox(now=lambda: late):
        assert await scene.settled(taken) == ["delivered"]
        await scene.settled(unseen)
        # Of a channel whose history cannot be had, nobody knows better.
        scene.discord.fail_next(10_000, 503, only=reading)
        scene.discord.fail_next(1, 503, only=sending(), apply=True)
        assert await scene.settled(*await scene.writes("lost")) == ["not taken within 24 h: Discord answers 503"]

    assert scene.shown() == ["**Alice**: taken", "**Alice**: unseen", "**Alice**: lost"]
    assert (await scene.delivery(taken)).discord_message_ids == (scene.discord.messages(scene.channel)[0].id,)


async def test_a_token_that_discord_does_not_know_ends_the_outbox(scene: Scene) -> None:
    async with logged_in(scene.discord.token) as rest:
        outbox = Outbox(scene.log, scene.models.deliveries, scene.bridging, rest, give_up=DAY, pauses=PAUSES)
        scene.discord.fail_next(1, 401, body={"message": "401: Unauthorized", "code": 0})
        [delivery] = await scene.writes("one")
        with pytest.raises(ExceptionGroup) as raised:
            await outbox.run()

    assert raised.group_contains(NotAuthorised)
    assert (await scene.delivery(delivery)).status == "waiting"
    with pytest.raises(NotAuthorised):
        async with logged_in("a wrong token"):
            pass


# Once


async def sends_with_its_answer_lost(scene: Scene, *texts: str) -> None:
    scene.discord.fail_next(1, None, only=sending(), apply=True)
    async with scene.outbox():
        await scene.settled(*await scene.writes(*texts))


async def test_a_message_whose_answer_was_lost_is_known_by_its_nonce(scene: Scene) -> None:
    scene.discord.fail_next(10_000, 403, only=reading, body={"message": "Missing Access", "code": 50001})

    await sends_with_its_answer_lost(scene, "one", "two")

    assert scene.shown() == ["**Alice**: one", "**Alice**: two"]
    assert [request.status for request in scene.discord.requests if sending()(request)] == [None, 200, 200]


@pytest.mark.usefixtures("no_nonces")
async def test_a_message_whose_answer_was_lost_is_found_in_the_history_beyond_the_time_of_nonces(scene: Scene) -> None:
    await sends_with_its_answer_lost(scene, "one", "two")

    assert scene.shown() == ["**Alice**: one", "**Alice**: two"]


@pytest.mark.usefixtures("no_nonces")
async def test_what_an_earlier_life_sent_is_found_and_the_rest_is_sent(scene: Scene) -> None:
    """Of a long text the first part was taken, and of the next its answer was lost with the process."""
    delivery_ids = await scene.writes("the same", LONG, "the same")
    first, rest = delivery_ids[0], delivery_ids[1:]
    sent = 0

    def third(request: Request) -> bool:
        nonlocal sent
        sent += sending()(request)
        return sending()(request) and sent == 2

    with scene.discord.hold(third, applied=True) as hold:
        async with scene.outbox():
            await until(lambda: hold.waiting)
    assert len(scene.shown()) == 2
    assert await scene.settled(first) == ["delivered"]

    async with scene.outbox():
        await scene.settled(*rest)

    shown = scene.shown()
    assert (len(shown), shown[0], shown[3]) == (4, "**Alice**: the same", "**Alice**: the same")
    assert shown[1:3] == outgoing("Alice", LONG)
    ids = [(await scene.delivery(each)).discord_message_ids for each in delivery_ids]
    assert [each for part in ids for each in part or ()] == [
        message.id for message in scene.discord.messages(scene.channel)
    ]


async def test_only_the_oldest_is_looked_for_in_the_history(scene: Scene) -> None:
    waiting = await scene.writes(*map(str, range(5)))
    async with scene.outbox():
        await scene.settled(*waiting, *await scene.writes("later"))

    assert len([request for request in scene.discord.requests if reading(request)]) == 1


@pytest.mark.usefixtures("no_nonces")
async def test_equal_texts_are_different_messages(scene: Scene) -> None:
    """Also where the first one is looked for in the history, which has an older equal one."""
    async with scene.outbox():
        await scene.settled(*await scene.writes("hi"))
    again = await scene.writes("hi", "hi")
    async with scene.outbox():
        await scene.settled(*again)

    assert scene.shown() == ["**Alice**: hi"] * 3


async def test_what_others_wrote_is_not_taken_for_a_delivery(scene: Scene) -> None:
    waiting = await scene.writes("hi")
    scene.discord.says(scene.discord.person("mallory"), scene.channel, "**Alice**: hi")
    async with scene.outbox():
        await scene.settled(*waiting)

    assert scene.shown() == ["**Alice**: hi"] * 2


@pytest.mark.usefixtures("no_nonces")
async def test_an_equal_text_that_is_to_go_and_cannot_is_not_taken_for_one_that_was_not_sent(scene: Scene) -> None:
    await scene.bridges()
    async with scene.outbox():
        [first] = await scene.says("hi")
        await until(scene.shown)
        scene.discord.hide(scene.channel)
        await scene.commands.delete_message(scene.alice, first, "request")
        await scene.until_no_copy_is_doomed()
        scene.discord.unlock(scene.channel)
        scene.discord.fail_next(1, 503, only=sending())

        await scene.says("hi")
        await until(lambda: len(scene.shown()) == 2)
        await scene.until_nothing_waits()


@pytest.mark.usefixtures("no_nonces")
async def test_what_was_refused_at_last_and_done_before_is_looked_for(scene: Scene) -> None:
    scene.discord.fail_next(1, 429, only=sending(), apply=True, body="<html>too many</html>")
    async with scene.outbox():
        await scene.settled(*await scene.writes("one"))

    assert scene.shown() == ["**Alice**: one"]


@pytest.mark.usefixtures("no_nonces")
async def test_a_text_is_found_although_discord_changed_what_nobody_sees_of_it(scene: Scene) -> None:
    [delivery] = await scene.writes("one \u200b\r\n two")
    with scene.discord.hold(sending(), applied=True) as hold:
        async with scene.outbox():
            await until(lambda: hold.waiting)
    scene.discord.edits(scene.discord.messages(scene.channel)[0], "**Alice**: one\n two")

    async with scene.outbox():
        assert await scene.settled(delivery) == ["delivered"]

    assert len(scene.shown()) == 1


@pytest.mark.usefixtures("no_nonces")
async def test_a_history_is_read_no_further_back_than_to_what_is_known(scene: Scene) -> None:
    other = scene.discord.person("otto")
    for number in range(120):
        scene.discord.says(other, scene.channel, str(number))
    async with scene.outbox():
        await scene.settled(*await scene.writes("known"))
        before = len(scene.discord.requests)
        scene.discord.fail_next(1, None, only=sending(), apply=True)
        await scene.settled(*await scene.writes("lost"))

    assert sum(map(reading, scene.discord.requests[before:])) == 1
    assert scene.shown()[120:] == ["**Alice**: known", "**Alice**: lost"]


@pytest.mark.usefixtures("no_nonces")
async def test_a_text_is_found_behind_much_that_others_said(scene: Scene) -> None:
    [delivery] = await scene.writes("one")
    with scene.discord.hold(sending(), applied=True) as hold:
        async with scene.outbox():
            await until(lambda: hold.waiting)
    for number in range(220):
        scene.discord.says(scene.discord.world.owner, scene.channel, str(number))

    async with scene.outbox():
        assert await scene.settled(delivery) == ["delivered"]

    assert scene.shown().count("**Alice**: one") == 1


def test_nonces_are_as_short_as_discord_wants_and_those_of_two_logs_differ() -> None:
    def delivery(delivery_id: int, stream: str) -> Delivery:
        fields: dict[str, Any] = dict.fromkeys(Delivery.__struct_fields__)
        return Delivery(**fields | {"delivery_id": delivery_id, "stream": stream, "destination": Destination(1, None)})

    long = nonce(delivery(2**63 - 1, "message-1"), 3)
    assert len(long) == 25
    assert long.startswith(f"{2**63 - 1}-3")
    assert nonce(delivery(7, "message-1"), 0) != nonce(delivery(7, "message-2"), 0)
    assert nonce(delivery(7, "message-1"), 0) != nonce(delivery(7, "message-1"), 1)


# Withdrawing


async def test_what_is_deleted_or_erased_here_is_deleted_there(scene: Scene) -> None:
    await scene.bridges()
    async with scene.outbox():
        kept, deleted, erased = await scene.says("kept", "deleted", "erased")
        await until(lambda: len(scene.shown()) == 3)
        await scene.commands.delete_message(scene.alice, deleted, "request")
        await until(lambda: scene.shown() == ["**Alice**: kept", "**Alice**: erased"])
        await Erasure(scene.log, scene.models, Traces(scene.log.reader)).erase_message(erased, "", "")
        await until(lambda: scene.shown() == ["**Alice**: kept"])
        await scene.until_no_copy_is_doomed()
        assert kept


async def test_what_was_deleted_while_it_waited_is_not_sent(scene: Scene) -> None:
    await scene.bridges()
    [first, second] = await scene.says("first", "second")
    await scene.commands.delete_message(scene.alice, first, "request")
    async with scene.outbox():
        await until(scene.shown)

    assert scene.shown() == ["**Alice**: second"]
    assert second


async def test_what_is_deleted_in_a_pause_is_not_tried_again(scene: Scene) -> None:
    await scene.bridges()
    scene.discord.fail_next(1, 503, only=sending())
    async with scene.outbox(pauses=(0.2, 0.2)):
        first, _ = await scene.says("first", "second")
        await until(lambda: any(map(sending(), scene.discord.requests)))
        await scene.commands.delete_message(scene.alice, first, "request")
        await until(scene.shown)

    assert [request.status for request in scene.discord.requests if sending()(request)] == [503, 200]
    assert scene.shown() == ["**Alice**: second"]


async def test_what_was_deleted_while_it_was_on_its_way_does_not_stay(scene: Scene) -> None:
    """Its answer was lost, so nobody here knows yet that it arrived."""
    await scene.bridges()
    async with scene.outbox():
        await scene.settled(*await scene.writes("first"))
        scene.discord.fail_next(1, 503, only=sending(), apply=True)
        with scene.discord.hold(reading) as hold:
            [message] = await scene.says("oops")
            await until(lambda: hold.waiting)
            assert scene.shown() == ["**Alice**: first", "**Alice**: oops"]
            await scene.commands.delete_message(scene.alice, message, "request")
            # While it is looked for, too.
            scene.discord.fail_next(3, 503, only=reading)

        await until(lambda: scene.shown() == ["**Alice**: first"])
        await scene.until_no_copy_is_doomed()


async def test_a_withdrawal_waits_for_discord_and_then_for_nothing(scene: Scene) -> None:
    await scene.bridges()
    async with scene.outbox():
        one, two = await scene.says("one", "two")
        await until(lambda: len(scene.shown()) == 2)
        scene.discord.fail_next(3, 503, only=lambda request: request.method == "DELETE")
        # Somebody on Discord was faster.
        scene.discord.deletes(scene.discord.messages(scene.channel)[1])
        await scene.commands.delete_message(scene.alice, one, "request")
        await scene.commands.delete_message(scene.alice, two, "request")

        await until(lambda: not scene.shown())
        await scene.until_no_copy_is_doomed()


async def test_a_channel_that_lets_nothing_be_deleted_holds_no_other_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_DOOMED", 2)
    other = scene.discord.text_channel(scene.discord.guild("Others"), "general")
    await scene.bridges((f"other-{other.id}", other))
    scene.discord.fail_next(10_000, 503, only=deleting(scene.channel))
    async with scene.outbox():
        first = await scene.says(*map(str, range(7)))
        last = await scene.commands.send_message(scene.alice, f"other-{other.id}", "behind them", "request")
        await scene.until_nothing_waits()
        assert (len(scene.shown()), len(scene.shown(other))) == (7, 1)
    for message_id in (*first, last.first_position):
        await scene.commands.delete_message(scene.alice, message_id, "request")

    async with scene.outbox():
        await until(lambda: not scene.shown(other))

        assert len(scene.shown()) == 7


async def test_a_withdrawal_is_not_asked_for_again_before_discord_takes_it(scene: Scene) -> None:
    other = scene.discord.text_channel(scene.discord.guild("Patient"), "general")
    await scene.bridges((f"patient-{other.id}", other))
    async with scene.outbox():
        [here] = await scene.says("here")
        there = await scene.commands.send_message(scene.alice, f"patient-{other.id}", "there", "request")
        await until(lambda: scene.shown() and scene.shown(other))
        scene.discord.fail_next(1, 429, only=deleting(scene.channel), retry_after=31_536_000)
        scene.discord.fail_next(12, 503, only=deleting(other))
        await scene.commands.delete_message(scene.alice, here, "request")
        await until(lambda: not scene.discord.plans[0].times)
        await scene.commands.delete_message(scene.alice, there.first_position, "request")

        # Meanwhile there was time for many a try.
        await until(lambda: not scene.shown(other))
        assert scene.shown() == ["**Alice**: here"]


async def test_what_cannot_be_removed_is_not_tried_for_ever(scene: Scene) -> None:
    await scene.bridges()
    async with scene.outbox():
        [message] = await scene.says("one")
        await until(scene.shown)
        scene.discord.hide(scene.channel)
        await scene.commands.delete_message(scene.alice, message, "request")

        await scene.until_no_copy_is_doomed()
