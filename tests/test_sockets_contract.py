"""The chat over Socket.IO to the letter of the contract: registering, what listeners are told, and in what order.

That somebody is told nothing is seen by what comes next: something else, which was sent later.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import socketio
from tornado.ioloop import IOLoop

from tests.listeners import Chat, End, Listener, Refused, message_texts, own_chat, own_server, ready
from tests.servers import Server
from tests.v3client import own_loop

ANNOUNCE = "announce"
INVALID = ["error", {"message": "Invalid token!"}]
SENDERS = 16


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(cluster, tmp_path_factory.mktemp("server"))


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


# --- Registering -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_connection_is_registered_by_a_token(chat: Chat) -> None:
    ann = await chat.person()
    listener = await chat.connected()

    assert await listener.registers(ann) == [
        "ready",
        f"Server has accepted the connection and registered you as : {ann.username}",
    ]


@pytest.mark.gen_test
async def test_a_token_among_the_connect_payload_registers_at_once(chat: Chat) -> None:
    ann = await chat.person()
    listener = await chat.connected(token=ann.token)

    assert listener.reply.keys() == {"sid"}
    assert await listener.event() == ["ready", ready(ann)]


@pytest.mark.parametrize("token", ["nobody's", "", "\ud800", "\0", 1, ["token"], None])
@pytest.mark.gen_test
async def test_a_bad_token_is_an_error_after_which_a_good_one_registers(chat: Chat, token: object) -> None:
    ann = await chat.person()
    listener = await chat.connected()

    await listener.emit("api_v3_connect", {"token_api_v3": token})

    assert await listener.event() == INVALID
    assert await listener.registers(ann) == ["ready", ready(ann)]


@pytest.mark.parametrize("arguments", [[], [None], ["token"], [[]], [{}], [{"token": "token"}], [1, 2]])
@pytest.mark.gen_test
async def test_a_registration_without_a_token_is_one_with_a_bad_token(chat: Chat, arguments: list[Any]) -> None:
    ann = await chat.person()
    listener = await chat.connected()

    await listener.emit("api_v3_connect", *arguments)

    assert await listener.event() == INVALID
    assert await listener.registers(ann) == ["ready", ready(ann)]


@pytest.mark.parametrize("token", ["nobody's", "", 1, {"token": 1}])
@pytest.mark.gen_test
async def test_a_bad_token_among_the_connect_payload_refuses_the_connection(chat: Chat, token: object) -> None:
    listener = await chat.opened()

    with pytest.raises(Refused) as refused:
        await listener.connect({"token": token})

    assert refused.value.args == ({"message": "Invalid token!"},)
    assert listener.early == []
    # The transport is still there, and another try may be better.
    ann = await chat.person()
    await listener.connect({"token": ann.token})
    assert await listener.event() == ["ready", ready(ann)]


@pytest.mark.gen_test
async def test_a_connection_registers_once(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener = await chat.listens(ann)

    for person in (ann, bob):
        assert await listener.registers(person) == ["error", {"message": "Already registered!"}]

    await bob.writes_to(ann, "you are Ann still")
    assert message_texts([await listener.event()]) == ["you are Ann still"]


@pytest.mark.parametrize("device", [1, ["phone"], "x" * 257])
@pytest.mark.gen_test
async def test_a_device_that_is_none_is_named_and_nobody_is_registered(chat: Chat, device: object) -> None:
    ann = await chat.person()
    listener = await chat.connected()

    [name, error] = await listener.registers(ann, device=device)

    assert name == "error"
    assert "device" in error["message"]
    assert await listener.registers(ann, device="phone") == ["ready", ready(ann)]


@pytest.mark.gen_test
async def test_a_changed_token_ends_the_connections_that_it_opened_and_only_those(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    first, second, of_bob = await chat.listens(ann), await chat.connected(), await chat.listens(bob)
    unregistered = await chat.connected()
    await second.registers(ann)

    changed = await chat.v3.known_person(ann.username)

    for listener in (first, second):
        assert await listener.end() == End([["error", {"message": "The token has ended!"}]], by_disconnect=True)
    assert await unregistered.registers(ann) == INVALID
    again = await unregistered.registers(changed)
    assert again == ["ready", ready(ann)]
    await bob.writes_to(changed, "hello")
    await changed.writes_to(bob, "hello")
    assert message_texts([await unregistered.event(), await of_bob.event()]) == ["hello", "hello"]


# --- What listeners are told -----------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_direct_message_goes_to_all_connections_of_its_recipient_alone(chat: Chat) -> None:
    ann, bob, cid = [await chat.person() for _ in range(3)]
    of_bob = [await chat.listens(bob) for _ in range(3)]
    others = [await chat.listens(ann), await chat.listens(cid)]

    await ann.writes_to(bob, "for Bob")
    await bob.writes_to(ann, "for Ann")
    await bob.writes_to(cid, "for Cid")

    told = {"sender": ann.username, "message": "for Bob", "recipient": bob.username}
    assert [await listener.event() for listener in of_bob] == [["new_dm", told]] * 3
    assert message_texts([await listener.event() for listener in others]) == ["for Ann", "for Cid"]


@pytest.mark.gen_test
async def test_a_channel_message_goes_to_all_connections_of_all_members(chat: Chat) -> None:
    ann, bob, cid = [await chat.person() for _ in range(3)]
    channel = await chat.channel_of(ann, bob)
    members = [await chat.listens(person) for person in (ann, ann, bob, bob)]
    other = await chat.listens(cid)

    await ann.sends(channel, "for members")
    await ann.writes_to(cid, "for Cid")

    shown = (await bob.reads(channel))[0]
    told = {"sender": ann.username, "message": "for members", "channel": channel, "timestamp": shown["timestamp"]}
    assert [await listener.event() for listener in members] == [["new_message", told]] * 4
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told["timestamp"])
    assert message_texts([await other.event()]) == ["for Cid"]


@pytest.mark.gen_test
async def test_an_announcement_goes_to_everyone_registered(chat: Chat) -> None:
    operator, ann = await chat.operator(), await chat.person()
    registered = [await chat.listens(person) for person in (operator, ann, ann)]
    unregistered = await chat.connected()

    await operator.does("sendmessage", channel=ANNOUNCE, message="hear, hear")

    for listener in registered:
        name, told = await listener.event()
        assert (name, told["channel"], told["message"]) == ("new_message", ANNOUNCE, "hear, hear")
    assert await unregistered.registers(ann) == ["ready", ready(ann)]


@pytest.mark.gen_test
async def test_who_is_not_registered_is_told_nothing(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    unregistered = await chat.connected()
    witness = await chat.listens(bob)

    await ann.sends(channel, "one")
    await ann.writes_to(bob, "two")
    assert message_texts(await witness.events(2)) == ["one", "two"]

    assert await unregistered.registers(bob) == ["ready", ready(bob)]
    await ann.sends(channel, "three")
    assert message_texts([await unregistered.event()]) == ["three"]


@pytest.mark.gen_test
async def test_a_member_is_told_of_what_comes_after_its_coming(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    of_ann, of_bob = await chat.listens(ann), await chat.listens(bob)

    channel = await ann.makes()
    await ann.sends(channel, "before")
    await ann.brings(bob, channel)
    await ann.sends(channel, "after")

    assert message_texts(await of_ann.events(2)) == ["before", "after"]
    assert message_texts([await of_bob.event()]) == ["after"]


# --- Order -----------------------------------------------------------------------------------------------------------


async def flood(senders: list[Listener], channel: str, count: int) -> None:
    """Sends so many messages for each sender, all senders at once, each as fast as it is answered."""

    async def send(number: int, sender: Listener) -> None:
        for message in range(count):
            body, status = await sender.call("send_message", {"channel": channel, "message": f"{number} {message}"})
            assert status == 200, body

    await asyncio.gather(*(send(number, sender) for number, sender in enumerate(senders)))


def numbered(channel_messages: list[dict[str, Any]]) -> list[str]:
    return [message["message"] for message in channel_messages]


@pytest.mark.gen_test
async def test_members_get_the_messages_of_many_senders_in_the_order_of_the_log(chat: Chat) -> None:
    people = [await chat.person() for _ in range(4)]
    channel = await chat.channel_of(*people)
    senders = [await chat.listens(people[number % 4]) for number in range(SENDERS)]
    watchers = [await chat.listens(person) for person in people]
    total = SENDERS * 50

    flooding = asyncio.create_task(flood(senders, channel, 50))
    received = await asyncio.gather(*(each.events(total) for each in watchers))
    await flooding

    in_the_log = numbered(await people[0].reads(channel))
    assert len(set(in_the_log)) == total
    assert [message_texts(events) for events in received] == [in_the_log] * 4
    # The senders are members too; they have read what came along with their answers.
    for sender in senders:
        assert message_texts(await sender.events(total)) == in_the_log


@pytest.mark.gen_test
async def test_who_registers_in_the_midst_of_a_flood_gets_everything_behind_its_ready(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    witness = await chat.listens(bob, recovery=True)
    senders = [await chat.listens(ann) for _ in range(SENDERS)]
    floods = [asyncio.create_task(flood(senders, channel, 20))]
    received = []

    # Some by an event, some by their CONNECT; with offsets, so that it is known where each began.
    for number in range(20):
        if floods[-1].done():
            floods.append(asyncio.create_task(flood(senders, channel, 20)))
        listener = await chat.connected(recovery=True, **({"token": bob.token} if number % 2 else {}))
        if not number % 2:
            await listener.emit("api_v3_connect", {"token_api_v3": bob.token})
        received.append(listener)
    await asyncio.gather(*floods)
    await ann.sends(channel, "the end")

    everything = await witness.events_until(lambda event: event[1]["message"] == "the end")
    for listener in received:
        (name, words, offset), *events = await listener.events_until(lambda event: "the end" in str(event))
        assert (name, words) == ("ready", ready(bob))
        assert events == [event for event in everything if int(event[-1]) > int(offset)]


# --- A client of a library -------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_python_client_talks_and_listens(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    came: asyncio.Queue[tuple[str, tuple[Any, ...]]] = asyncio.Queue()
    client = socketio.AsyncClient()
    client.on("*", lambda name, *arguments: came.put_nowait((name, arguments)))

    await client.connect(chat.v3.url)
    await client.emit("api_v3_connect", {"token_api_v3": bob.token})
    assert await asyncio.wait_for(came.get(), 10) == ("ready", (ready(bob),))
    body, status = await client.call("send_message", {"channel": channel, "message": "from Python"})
    await ann.writes_to(bob, "to Python")

    assert (status, body) == (200, {"message": "Message sent!"})
    told = [await asyncio.wait_for(came.get(), 10) for _ in range(2)]
    assert [(name, arguments[0]["message"]) for name, arguments in told] == [
        ("new_message", "from Python"),
        ("new_dm", "to Python"),
    ]
    await client.disconnect()
