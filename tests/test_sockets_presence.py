"""Who is online, by the connections that stand open, whatever ends them and whoever is away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from tornado.ioloop import IOLoop

from tests.listeners import SETTINGS, Chat, Ended, eventually, message_texts, own_chat, own_server, ready, rows
from tests.servers import Server
from tests.tables import Outage
from tests.v3client import Person, own_loop, until


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(cluster, tmp_path_factory.mktemp("server"))


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


async def online_users(chat: Chat) -> int:
    return int((await chat.bancho("onlineUsers"))["result"])


async def goes_offline(chat: Chat, *people: Person) -> None:
    """Returns when nobody of them is online any more."""

    async def are_offline() -> bool:
        return not any([await chat.is_online(person) for person in people])

    await eventually(are_offline, "they are offline")


async def only_the_bot_is_online(chat: Chat) -> None:
    async def is_alone() -> bool:
        return await online_users(chat) == 1

    await eventually(is_alone, "only the bot is online")


@pytest.mark.gen_test
async def test_accounts_are_online_while_they_have_a_registered_connection(chat: Chat) -> None:
    await only_the_bot_is_online(chat)
    ann, bob = await chat.person(), await chat.person()
    unregistered = await chat.connected()
    assert not await chat.is_online(ann)

    of_ann = [await chat.listens(ann) for _ in range(3)]
    of_bob = await chat.listens(bob)
    assert await chat.is_online(ann)
    assert await online_users(chat) == 3

    of_ann[0].drop()
    of_ann[1].drop()
    of_bob.drop()
    await goes_offline(chat, bob)
    assert await chat.is_online(ann)
    assert await online_users(chat) == 2

    of_ann[2].drop()
    await goes_offline(chat, ann)
    assert await online_users(chat) == 1
    assert (await unregistered.registers(ann)) == ["ready", ready(ann)]
    assert await chat.is_online(ann)


@pytest.mark.gen_test
async def test_a_connection_is_online_before_it_hears_that_it_is_registered(chat: Chat) -> None:
    for _ in range(10):
        person = await chat.person()
        await chat.listens(person)
        assert await chat.is_online(person)


@pytest.mark.gen_test
async def test_who_leaves_in_an_orderly_way_is_offline(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    by_packet, by_close = await chat.listens(ann), await chat.listens(bob)

    await by_packet.leave()
    await by_close.close()

    await goes_offline(chat, ann, bob)


@pytest.mark.gen_test
async def test_a_device_that_has_verified_another_account_flags_the_next(chat: Chat) -> None:
    ann, bob, cid = [await chat.person() for _ in range(3)]
    by_event, by_connect = await chat.connected(), await chat.connected(token=bob.token, device="the same phone")
    await by_connect.event()
    await by_event.registers(ann, device="the same phone")
    await chat.listens(cid)

    for person, expected in ((bob, 1), (ann, 0), (cid, 1)):
        [(account_id,)] = rows(chat.server, "SELECT account_id FROM accounts WHERE username = %s", person.username)
        assert (await chat.bancho("verifiedStatus", u=account_id))["result"] == expected


@pytest.mark.gen_test
async def test_after_a_crash_nobody_of_the_last_life_is_online(chat: Chat, server: Server) -> None:
    ann, bob = await chat.person(), await chat.person()
    for person in (ann, ann, bob):
        await chat.listens(person)
    assert await chat.is_online(bob)

    server.kill()
    await asyncio.to_thread(server.start)

    chat = chat.at(server)
    assert not await chat.is_online(ann)
    assert not await chat.is_online(bob)
    assert await online_users(chat) == 1
    [line] = server.logged("connections of this node's last life")
    assert line["count"] >= 3


@pytest.mark.gen_test
async def test_after_an_orderly_stop_every_end_is_in_the_log(chat: Chat, server: Server) -> None:
    people = [await chat.person() for _ in range(5)]
    for person in people:
        await chat.listens(person)

    assert await asyncio.to_thread(server.stop) == 0

    events = rows(server, "SELECT stream, type FROM events WHERE stream LIKE 'connection-%%' ORDER BY position")
    assert len(events) >= 10
    assert set(dict(events).values()) == {"ConnectionClosed"}
    assert not server.logged("ended connections were not recorded")
    await asyncio.to_thread(server.start)
    assert server.logged("connections of this node's last life") == []


@pytest.fixture
def fragile(io_loop: IOLoop, start_server: Callable[..., Server], database: str) -> Iterator[Chat]:
    """A chat whose database can be taken away."""
    yield from own_chat(io_loop, start_server(**SETTINGS, database_url=database))


@pytest.mark.gen_test
async def test_ends_during_an_outage_are_recorded_after_it(fragile: Chat, outage: Outage) -> None:
    ann, bob = await fragile.person(), await fragile.person()
    of_ann = [await fragile.listens(ann) for _ in range(3)]
    of_bob = await fragile.listens(bob)

    outage.begin()
    for listener in of_ann:
        listener.drop()
    await until(lambda: bool(fragile.server.logged("ended connections could not be recorded yet")), "they wait")
    outage.end()

    await goes_offline(fragile, ann)
    assert await fragile.is_online(bob), "nothing had ended it"
    await (await fragile.person()).writes_to(bob, "and it listens still")
    assert message_texts([await of_bob.event()]) == ["and it listens still"]
    closed = rows(fragile.server, "SELECT stream FROM events WHERE type = 'ConnectionClosed'")
    assert len(set(closed)) == len(closed) == 3


@pytest.mark.gen_test
async def test_who_registers_during_an_outage_is_told_so_and_can_try_again(fragile: Chat, outage: Outage) -> None:
    ann, bob = await fragile.person(), await fragile.person()
    registered, waiting = await fragile.listens(ann), await fragile.connected()
    outage.begin()

    [name, error] = await waiting.registers(bob)
    # A CONNECT_ERROR would keep clients away for good, where the end of the transport brings them back.
    with pytest.raises(Ended):
        await fragile.connected(token=bob.token)
    answered = await registered.call("send_dm", {"username": bob.username, "message": "too early"})
    outage.end()

    assert (name, error) == ("error", {"message": "The log cannot be reached now, try again!"})
    assert answered == [error, 503]

    async def is_registered() -> bool:
        return await waiting.registers(bob) == ["ready", ready(bob)]

    await eventually(is_registered, "it is registered")
    assert (await registered.call("send_dm", {"username": bob.username, "message": "in time"}))[1] == 200
    assert message_texts([await waiting.event()]) == ["in time"]
    assert await fragile.is_online(bob)


@pytest.mark.gen_test
async def test_a_javascript_client_that_comes_during_an_outage_is_registered_after_it(
    fragile: Chat, outage: Outage
) -> None:
    ann = await fragile.person()
    outage.begin()
    client = await fragile.javascript(transports=["websocket"], auth={"token": ann.token})
    await until(lambda: bool(fragile.server.logged("a connection could not be registered now")), "it has tried")
    outage.end()

    await client.until(lambda: ["ready", ready(ann)] in client.events, "it is registered")
    assert client.all("refused") == []
