"""What the settings change for listeners, and what becomes of one that does not keep up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from tests.listeners import Chat, End, Listener, Refused, eventually, message_texts, own_chat, own_server, ready
from tests.servers import Server
from tests.v3client import own_loop

LIMIT = 5
BACKLOG = 200_000
# As many bytes as a text can have.
LARGE = "😀" * 3900


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(
        cluster,
        tmp_path_factory.mktemp("server"),
        rate_limit=LIMIT,
        channel_event="said",
        recovery_window=0,
        audit_key=None,
    )


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


@pytest.mark.gen_test
async def test_the_event_of_a_channel_message_has_the_name_that_was_set(chat: Chat) -> None:
    operator, ann, bob = await chat.operator(), await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    listener = await chat.listens(bob)

    await ann.sends(channel, "in the channel")
    await operator.does("sendmessage", channel="announce", message="to everyone")
    await ann.writes_to(bob, "to Bob")

    assert [(name, told["message"]) for name, told in await listener.events(3)] == [
        ("said", "in the channel"),
        ("said", "to everyone"),
        ("new_dm", "to Bob"),
    ]


@pytest.mark.gen_test
async def test_the_rate_limit_is_one_for_all_ways_to_send(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    first, second = await chat.listens(ann), await chat.listens(ann)
    ways = [
        lambda text: first.call("send_message", {"channel": channel, "message": text}),
        lambda text: second.call("send_dm", {"username": bob.username, "message": text}),
    ]

    answers = [await ways[number % 2](str(number)) for number in range(LIMIT + 2)]
    by_rest = await ann.does("sendmessage", channel=channel, message="by REST")

    assert [status for _, status in answers] == [200] * LIMIT + [429] * 2
    assert answers[-1] == [by_rest.body, by_rest.status] == [{"message": "Too many requests!"}, 429]
    # Reading is not limited, and other people are not concerned.
    assert (await first.call("read", {"name": channel, "count": 10}))[1] == 200
    assert (await bob.does("sendmessage", channel=channel, message="of Bob")).status == 200


@pytest.mark.gen_test
async def test_who_was_away_for_longer_than_the_window_is_told_so_and_begins_anew(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener = await chat.connected(recovery=True, token=bob.token)
    *_, offset = await listener.event()
    listener.drop()
    await ann.writes_to(bob, "missed")

    async def is_offline() -> bool:
        return not await chat.is_online(bob)

    await eventually(is_offline, "the end is recorded")
    again = await chat.connected(recovery=True, pid=listener.pid, offset=offset, token=bob.token)

    assert again.pid != listener.pid
    assert (await again.event())[:2] == ["recovery_failed", {"reason": "the recovery window has passed"}]
    assert (await again.event())[:2] == ["ready", ready(bob)]
    await ann.writes_to(bob, "live")
    assert message_texts([await again.event()]) == ["live"]


@pytest.mark.gen_test
async def test_the_window_holds_for_who_was_not_registered_yet_too(chat: Chat) -> None:
    bob = await chat.person()
    listener = await chat.connected(recovery=True)
    listener.drop()

    again = await chat.connected(recovery=True, pid=listener.pid)

    assert (await again.event())[:2] == ["recovery_failed", {"reason": "the recovery window has passed"}]
    assert (await again.registers(bob))[:2] == ["ready", ready(bob)]


@pytest.mark.parametrize("key", [None, "", "None"])
@pytest.mark.gen_test
async def test_without_a_key_the_log_is_read_by_nobody(chat: Chat, key: str | None) -> None:
    listener = await chat.opened("/log")

    with pytest.raises(Refused, match="Invalid audit key!"):
        await listener.connect({"key": key, "since": 0})


# --- Who does not keep up --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow_server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(cluster, tmp_path_factory.mktemp("narrow"), max_backlog=BACKLOG)


@pytest.fixture
def narrow(io_loop: IOLoop, narrow_server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, narrow_server)


async def closed_for_its_backlog(chat: Chat) -> float:
    """How many connections the metrics say were closed since their clients did not keep up."""
    found = [
        line.split()[-1]
        for line in (await chat.metrics()).splitlines()
        if 'reason="backlog"' in line and "_created" not in line
    ]
    return float(found[0]) if found else 0.0


@pytest.mark.gen_test
async def test_a_listener_that_never_reads_is_closed_and_costs_others_nothing(narrow: Chat) -> None:
    ann, bob = await narrow.person(), await narrow.person()
    channel = await narrow.channel_of(ann, bob)
    readers = [await narrow.listens(bob) for _ in range(5)]
    sender = await narrow.listens(ann)
    idle = await narrow.opened(receive_buffer=4096)
    await idle.connect({"token": bob.token})
    assert await closed_for_its_backlog(narrow) == 0
    sent = 0

    async def talk() -> None:
        nonlocal sent
        while not narrow.server.logged("a connection was closed"):
            body, status = await sender.call("send_message", {"channel": channel, "message": f"{sent} {LARGE}"})
            assert status == 200, body
            sent += 1
            assert sent < 2000, "so much fits in no socket"
        await sender.call("send_message", {"channel": channel, "message": "the end"})

    async def all_of_it(reader: Listener) -> list[str]:
        events = await reader.events_until(lambda event: event[1].get("message") == "the end")
        return message_texts(events)

    *heard, _ = await asyncio.gather(*(all_of_it(reader) for reader in readers), talk())

    assert heard == [[*(f"{number} {LARGE}" for number in range(sent)), "the end"]] * 5
    [line] = narrow.server.logged("a connection was closed")
    assert (line["reason"], line["level"]) == ("backlog", "warning")
    assert await closed_for_its_backlog(narrow) == 1
    # What had reached its socket is there to be read; then comes the end, and no DISCONNECT.
    ended: End = await idle.end()
    assert 1 <= len(message_texts(ended.events)) < sent
    assert not ended.by_disconnect
