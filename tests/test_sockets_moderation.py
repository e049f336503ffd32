"""What operators do to somebody takes effect on the connections that are there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from tornado.ioloop import IOLoop

from tests.listeners import Chat, End, Listener, Refused, eventually, message_texts, own_chat, own_server, ready
from tests.servers import Server
from tests.v3client import PASSWORD, own_loop


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(cluster, tmp_path_factory.mktemp("server"))


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


async def commands(chat: Chat, text: str) -> None:
    """Has the operator say something to the bot, and waits for its answer."""
    operator = await chat.operator()
    listener = await chat.listens(operator)
    den = await operator.makes()
    await operator.sends(den, text)
    assert len(await listener.events(2)) == 2


@pytest.mark.gen_test
async def test_a_kick_ends_all_connections_of_one_who_can_come_back(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    kicked = [await chat.listens(bob), await chat.listens(bob)]
    other = await chat.listens(ann)

    await commands(chat, f"!kick {bob.username} enough")

    for listener in kicked:
        assert await listener.end() == End([["error", {"message": "You were kicked!"}]], by_disconnect=True)
    again = await chat.listens(bob)
    await ann.writes_to(bob, "welcome back")
    await bob.writes_to(ann, "thanks")
    assert message_texts([await again.event(), await other.event()]) == ["welcome back", "thanks"]


@pytest.mark.gen_test
async def test_who_is_kicked_while_it_is_registered_comes_back_without_a_gap(chat: Chat) -> None:
    operator, ann, bob = await chat.operator(), await chat.person(), await chat.person()
    listener = await chat.connected(recovery=True)

    # What is sent to its rooms is held back until its channels are known, for which this lock is needed.
    with psycopg.connect(chat.server.database_url) as connection:
        connection.execute("LOCK TABLE members IN ACCESS EXCLUSIVE MODE")
        first = await listener.registers(bob)
        await ann.writes_to(bob, "held back")
        await operator.does("senddm", username="FokaBot", message=f"!kick {bob.username} now")
        ended = await listener.end()

    assert [event[:2] for event in ended.events] == [["error", {"message": "You were kicked!"}]]
    offsets = [event[-1] for event in (first, *ended.events) if isinstance(event[-1], str)]
    again = await chat.connected(recovery=True, pid=listener.pid, offset=offsets[-1])
    assert message_texts(again.early) == ["held back"]


@pytest.mark.gen_test
async def test_a_ban_ends_the_token_and_all_connections(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    banned = [await chat.listens(bob), await chat.listens(bob)]
    waiting, other = await chat.connected(), await chat.listens(ann)

    await commands(chat, f"!ban {bob.username} spam")

    for listener in banned:
        assert await listener.end() == End([["error", {"message": "The token has ended!"}]], by_disconnect=True)
    assert await waiting.registers(bob) == ["error", {"message": "Invalid token!"}]
    with pytest.raises(Refused, match="Invalid token!"):
        await chat.connected(token=bob.token)
    login = await chat.v3.call("generatetoken", username=bob.username, password=PASSWORD)
    assert login.said == (403, {"message": "You are banned!"})

    async def is_offline() -> bool:
        return not await chat.is_online(bob)

    await eventually(is_offline, "the ends are recorded")
    assert await chat.is_online(ann)
    await commands(chat, f"!unban {bob.username}")
    back = await chat.v3.known_person(bob.username)
    assert await waiting.registers(back) == ["ready", ready(bob)]
    assert other.early == []


@pytest.mark.gen_test
async def test_a_silenced_account_hears_and_may_not_write(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    listener, other = await chat.listens(bob), await chat.listens(ann)

    await commands(chat, f"!silence {bob.username} 10 m noise")

    for event, place in (("send_message", {"channel": channel}), ("send_dm", {"username": ann.username})):
        body, status = await listener.call(event, {"message": "psst", **place})
        assert status == 403
        found = re.fullmatch(r"You are silenced for (\d+) seconds!", body["message"])
        assert found
        assert 590 <= int(found[1]) <= 600
    assert (await listener.call("read", {"name": channel, "count": 1}))[1] == 200
    await ann.writes_to(bob, "can you hear me?")
    assert message_texts([await listener.event()]) == ["can you hear me?"]

    await commands(chat, f"!removesilence {bob.username}")
    assert (await listener.call("send_message", {"channel": channel, "message": "yes"}))[1] == 200
    assert message_texts([await other.event()]) == ["yes"]


@pytest.mark.gen_test
async def test_the_bot_talks_to_listeners_as_everybody_does(chat: Chat) -> None:
    bob = await chat.person()
    listener: Listener = await chat.listens(bob)

    assert (await listener.call("send_dm", {"username": "FokaBot", "message": "!roll 1"}))[1] == 200

    name, told = await listener.event()
    assert (name, told["sender"], told["recipient"]) == ("new_dm", "FokaBot", bob.username)
    assert "1" in told["message"]
