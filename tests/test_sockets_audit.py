"""The auditors' stream, namespace `/log`: the log as it stands there, from any position, and live from then on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from tests.listeners import AUDIT_KEY, Chat, Event, Listener, Refused, own_chat, own_server, rows
from tests.servers import Server, minutebook
from tests.v3client import own_loop


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(cluster, tmp_path_factory.mktemp("server"))


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


async def auditor(chat: Chat, receive_buffer: int | None = None, **wanted: object) -> Listener:
    listener = await chat.opened("/log", receive_buffer)
    await listener.connect({"key": AUDIT_KEY, **wanted})
    return listener


async def head(chat: Chat) -> int:
    """The last position of the log."""
    [(position,)] = rows(chat.server, "SELECT max(position) FROM events")
    return int(position)


async def tailed(chat: Chat, *arguments: str) -> list[str]:
    """The lines of `minutebook tail`."""
    done = await asyncio.to_thread(
        minutebook, "tail", *arguments, log_level="warning", database_url=chat.server.database_url
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


async def lines(listener: Listener, count: int) -> list[str]:
    """The next events as the lines that they are in `minutebook tail`."""
    return [line(event) for event in await listener.events(count)]


def line(event: Event) -> str:
    name, shown = event
    assert name == "event"
    return json.dumps(shown, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        (None, "Invalid audit key!"),
        ({}, "Invalid audit key!"),
        ({"since": 0}, "Invalid audit key!"),
        ({"key": "wrong"}, "Invalid audit key!"),
        ({"key": AUDIT_KEY[:-1]}, "Invalid audit key!"),
        ({"key": f"{AUDIT_KEY} "}, "Invalid audit key!"),
        ({"key": "\ud800"}, "Invalid audit key!"),
        ({"key": [AUDIT_KEY]}, "Invalid audit key!"),
        ({"key": None}, "Invalid audit key!"),
        ({"key": AUDIT_KEY, "since": -1}, "since"),
        ({"key": AUDIT_KEY, "since": "1"}, "since"),
        ({"key": AUDIT_KEY, "since": 1 << 63}, "since"),
        ({"key": AUDIT_KEY, "types": "MessageSent"}, "types"),
        ({"key": AUDIT_KEY, "types": [1]}, "types"),
    ],
)
@pytest.mark.gen_test
async def test_who_has_no_key_or_asks_badly_is_refused(
    chat: Chat, auth: dict[str, object] | None, message: str
) -> None:
    listener = await chat.opened("/log")

    with pytest.raises(Refused) as refused:
        await listener.connect(auth)

    assert message in refused.value.args[0]["message"]
    assert listener.early == []


@pytest.mark.gen_test
async def test_the_token_of_an_operator_is_no_key(chat: Chat) -> None:
    operator = await chat.operator()
    listener = await chat.opened("/log")

    with pytest.raises(Refused, match="Invalid audit key!"):
        await listener.connect({"key": operator.token, "token": operator.token, "since": 0})


@pytest.mark.gen_test
async def test_the_whole_log_comes_as_tail_prints_it_and_goes_on_live(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    await ann.sends(channel, 'a "quoted" ünïcode ✓ 😀 text')
    until_now = await head(chat)

    listener = await auditor(chat, since=0)

    old = await lines(listener, until_now)
    await ann.sends(channel, "live")
    await ann.writes_to(bob, "live, too")
    new = await lines(listener, await head(chat) - until_now)
    assert old + new == await tailed(chat)
    assert [json.loads(each)["data"].get("text") for each in new][-2:] == ["live", "live, too"]


@pytest.mark.gen_test
async def test_it_begins_behind_a_position_or_now(chat: Chat) -> None:
    ann = await chat.person()
    channel = await ann.makes()
    await ann.sends(channel, "old")
    since = await head(chat)
    await ann.sends(channel, "new")

    behind, from_now = await auditor(chat, since=since), await auditor(chat)
    await ann.sends(channel, "newest")

    assert [event[1]["data"]["text"] for event in await behind.events(2)] == ["new", "newest"]
    assert (await from_now.event())[1]["data"]["text"] == "newest"


@pytest.mark.gen_test
async def test_only_the_types_that_are_asked_for_come(chat: Chat) -> None:
    types = ["ChannelCreated", "DirectMessageSent"]
    listener = await auditor(chat, since=0, types=types)
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    await ann.sends(channel, "of another type")
    await ann.writes_to(bob, "of the type")

    expected = await tailed(chat, *(word for kind in types for word in ("--type", kind)))

    assert await lines(listener, len(expected)) == expected


@pytest.mark.gen_test
async def test_an_auditor_is_no_listener(chat: Chat) -> None:
    ann = await chat.person()
    listener = await auditor(chat, types=["DirectMessageSent"])

    await listener.emit("api_v3_connect", {"token_api_v3": ann.token})
    await listener.emit("send_dm", {"username": ann.username, "message": "never"})
    await ann.writes_to(ann, "to myself")

    assert (await listener.event())[1]["data"]["text"] == "to myself"
    assert not await chat.is_online(ann)


def memory(server: Server) -> int:
    """The bytes of memory that the server's process has."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.gen_test
async def test_a_slow_auditor_costs_no_memory_and_loses_nothing(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    # With nobody who listens.
    senders = [await chat.listens(ann) for _ in range(8)]
    since = await head(chat)
    slow = [await auditor(chat, receive_buffer=4096, since=since) for _ in range(6)]

    async def send(sender: Listener, number: int) -> None:
        for count in range(75):
            text = f"{number} {count} ".ljust(4000, "😀")
            assert (await sender.call("send_dm", {"username": bob.username, "message": text}))[1] == 200

    before = memory(chat.server)
    await asyncio.gather(*(send(sender, number) for number, sender in enumerate(senders)))

    # Each of them has 9.6 MB to get, which is more than waits in sockets and than may wait in the server.
    growth = memory(chat.server) - before
    assert growth < 40_000_000, f"{growth / 1e6:.1f} MB"
    expected = await tailed(chat, "--since", str(since))
    assert len(expected) >= 600
    received = await asyncio.gather(*(lines(listener, len(expected)) for listener in slow))
    assert all(got == expected for got in received)
