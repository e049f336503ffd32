"""Discord over Socket.IO: commands as by REST, and how a delivery ended told to its sender, live and as missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest
from tornado.ioloop import IOLoop

import projections
from chat.bridging import Bridging
from chat.commands import Commands
from chat.passwords import PasswordHasher
from eventstore.log import EventLog
from projections.models import ReadModels
from tests.bridged import Bridge, fresh_id
from tests.listeners import SECRET, Chat, Event, own_chat, own_server
from tests.servers import Server
from tests.v3client import Person, fresh, own_loop

CHANNEL = fresh_id()
# More than what is read at once of what was missed.
MANY = 520


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Without a token: it takes what is to go to Discord, and another process delivers it.
    yield from own_server(cluster, tmp_path_factory.mktemp("server"), discord_channel=CHANNEL)


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


@contextlib.asynccontextmanager
async def bridging(database: str) -> AsyncIterator[Bridge]:
    """The bridge in a process of its own, as far as its database tells."""
    passwords = PasswordHasher(cost=4)
    async with EventLog(database, projections.ALL) as log:
        models = ReadModels(log)
        commands = Commands(log, models, passwords, SECRET.encode())
        bridge = Bridging(log, models, commands, SECRET.encode(), default_channel=CHANNEL, configured=True)
        yield Bridge(bridge, commands, models)
    passwords.close()


@pytest.fixture
def bridge(server: Server, enter: Callable[[AbstractAsyncContextManager[Bridge]], Bridge]) -> Bridge:
    return enter(bridging(server.database_url))


async def many_deliveries(person: Person, bridge: Bridge, count: int) -> None:
    """Somebody sends as many texts to Discord, and all are taken."""
    account = await bridge.account(person)
    texts = (bridge.bridging.send_to_default(account, "flood", f"flood {number}") for number in range(count))
    asked = {appended.first_position for appended in await asyncio.gather(*texts)}
    found = await bridge.models.deliveries.of_sender(account.account_id, count)
    assert {delivery.delivery_id for delivery in found} == asked
    await asyncio.gather(*(bridge.bridging.delivered(delivery, CHANNEL, [fresh_id()]) for delivery in found))


@pytest.mark.gen_test
async def test_messages_go_to_discord_and_codes_are_made_as_by_rest(chat: Chat, bridge: Bridge) -> None:
    ann = await chat.person()
    known, listener = await bridge.meets(), await chat.listens(ann)

    posted = await listener.call("post_to_discord", {"message": "to all", "idempotency_key": "once"})
    again = await ann.does("senddcmsgwithtoken", {"Idempotency-Key": "once"}, message="to all")
    sent = await listener.call("send_to_discord", {"channel": known.username, "message": "to one"})
    nobody = await listener.call("send_to_discord", {"channel": fresh("nobody"), "message": "to one"})
    code, status = await listener.call("link_discord")

    assert posted == [again.body, 200] == [{"message": "Sent message!"}, 200]
    assert (sent, nobody[1]) == ([{"message": "Dm message sent!"}, 200], 400)
    assert (status, code["message"], code["expires_in"]) == (200, "Link code made!", 600)
    by_rest = await ann.v3.ask("/api/v3/deliveries", headers={"Authorization": f"Bearer {ann.token}"}, method="GET")
    assert await listener.call("read_deliveries") == [by_rest.body, 200]
    assert [each["message"] for each in by_rest.body["deliveries"]] == ["to all", "to one"]
    newest, _ = await listener.call("read_deliveries", {"count": 1})
    assert newest["deliveries"] == by_rest.body["deliveries"][1:]


@pytest.mark.gen_test
async def test_how_a_delivery_ended_is_told_to_all_connections_of_its_sender_and_to_nobody_else(
    chat: Chat, bridge: Bridge
) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    await bridge.joins(ann, channel)
    first, second, other = [await chat.listens(person) for person in (ann, ann, bob)]
    part = fresh_id()

    message_id = await ann.sends(channel, "hello")
    taken = await bridge.delivers(ann, part)
    await ann.does("senddcmsgwithtoken", message="hello")
    lost = await bridge.fails(ann, "unknown channel")
    await bob.sends(channel, "the end")

    told = [await listener.events(4) for listener in (first, second)]
    assert told[0] == told[1]
    hello, delivered, failed, end = told[0]
    assert [hello[1]["message"], end[1]["message"]] == ["hello", "the end"]
    assert delivered == [
        "discord_delivery",
        {
            "delivery_id": taken.delivery_id,
            "message_id": message_id,
            "status": "delivered",
            "discord_message_ids": [str(part)],
            "reason": None,
            "settled_at": delivered[1]["settled_at"],
        },
    ]
    assert failed[1] | {"settled_at": ""} == {
        "delivery_id": lost.delivery_id,
        "message_id": None,
        "status": "failed",
        "discord_message_ids": [],
        "reason": "unknown channel",
        "settled_at": "",
    }
    known, _ = await first.call("read_deliveries")
    for event, each in zip((delivered, failed), known["deliveries"], strict=True):
        assert event[1].items() <= each.items()
    assert [event[1]["message"] for event in await other.events(2)] == ["hello", "the end"]


@pytest.mark.gen_test
async def test_deliveries_that_were_missed_come_in_their_places_as_if_nothing_had_broken(
    chat: Chat, bridge: Bridge
) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    await bridge.joins(ann, channel)
    watcher, leaver = [await chat.connected(recovery=True, token=ann.token) for _ in range(2)]
    await watcher.event()
    *_, offset = await leaver.event()

    leaver.drop()
    await ann.sends(channel, "one")
    await bob.writes_to(ann, "two")
    await bridge.delivers(ann, fresh_id())
    await bob.sends(channel, "three")
    await ann.does("senddcmsgwithtoken", message="four")
    await bridge.fails(ann, "unknown channel")
    await bob.writes_to(ann, "five")
    # Alone, a page of deliveries reaches less far than one of messages.
    await many_deliveries(ann, bridge, MANY)
    await bob.writes_to(ann, "six")
    back = await chat.connected(recovery=True, pid=leaver.pid, offset=offset)

    assert back.reply["pid"] == leaver.pid
    missed: list[Event] = back.early
    assert [event[0] for event in missed] == [
        *("new_message", "new_dm", "discord_delivery", "new_message", "discord_delivery", "new_dm"),
        *["discord_delivery"] * MANY,
        "new_dm",
    ]
    assert missed == await watcher.events(len(missed))


@pytest.mark.gen_test
async def test_a_delivery_that_is_all_that_was_missed_comes_too(chat: Chat, bridge: Bridge) -> None:
    ann = await chat.person()
    await ann.does("senddcmsgwithtoken", message="hello")
    leaver = await chat.connected(recovery=True, token=ann.token)
    *_, offset = await leaver.event()

    leaver.drop()
    taken = await bridge.delivers(ann, fresh_id())
    back = await chat.connected(recovery=True, pid=leaver.pid, offset=offset)

    [(name, told, _)] = back.early
    assert (name, told["delivery_id"]) == ("discord_delivery", taken.delivery_id)
