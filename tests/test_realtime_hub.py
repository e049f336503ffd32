"""The hub over real sockets: order, slow clients, and descriptors that the system gives to the next connection."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

from realtime import hub as hub_module
from realtime.engineio import Packet
from realtime.hub import Hub, Outlet, Parcel, Room
from realtime.links import SocketLink
from tests.conftest import until

ENDLESS = 1 << 30
SMALL = 4096


class Client(Outlet):
    """A client and the hub's side of it: over a socket, or one that polls."""

    def __init__(self, hub: Hub, *, polls: bool = False, small: bool = False) -> None:
        super().__init__()
        self.hub = hub
        self.given_up_for: list[str] = []
        self.polled: list[Packet] = []
        self.received = bytearray()
        self.peer: socket.socket | None = None
        self.when_given_up: Callable[[], None] = lambda: None
        if not polls:
            ours, self.peer = socket.socketpair()
            self.peer.setblocking(False)
            if small:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            ours.setblocking(False)
            self.link = SocketLink(ours.detach())
            self.go_direct()

    def given_up(self, reason: str) -> None:
        self.given_up_for.append(reason)
        self.hub.drop(self)
        self.when_given_up()

    def poll(self) -> None:
        """Takes what waits, as the answer to a poll does."""
        self.polled += self.packets
        self.packets = []
        self.took(self.waiting)

    def read(self, size: int = 1 << 20) -> int:
        """The client reads so much at most; how much there was."""
        assert self.peer is not None
        try:
            data = self.peer.recv(size)
        except (BlockingIOError, ConnectionResetError):
            return 0
        self.received += data
        return len(data)

    def cut(self) -> None:
        """The client goes away."""
        if self.peer is not None:
            self.peer.close()

    def end(self) -> None:
        """Ends both sides."""
        if self.link is not None:
            self.hub.drop(self)
        self.cut()

    def texts(self) -> list[str]:
        """What has reached the client in whole messages."""
        return texts_of(bytes(self.received)) if self.peer is not None else [str(packet) for packet in self.polled]


def texts_of(data: bytes) -> list[str]:
    """The texts of a server's whole frames."""
    found: list[str] = []
    while len(data) >= 2:
        length, header = data[1], 2
        if length >= 126:
            header = 4 if length == 126 else 10
            length = int.from_bytes(data[2:header])
        if len(data) < header + length:
            break
        assert data[0] == 0x81, "this is not the beginning of a frame"
        found.append(data[header : header + length].decode())
        data = data[header + length :]
    return found


def parcel(text: str, offset: int | None = None) -> Parcel:
    return Parcel([text], offset)


async def turn() -> None:
    """Lets the loop go round: flushes, and what sockets have become ready for."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture(scope="module", autouse=True)
def without_pauses() -> Iterator[None]:
    """Under load the hub waits a little between flushes; a test that wants to see what a turn does cannot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_module, "_LONG_FLUSH", math.inf)
        yield


@pytest.fixture
def hub() -> Hub:
    return Hub(max_backlog=ENDLESS)


@pytest.fixture
def clients(io_loop: IOLoop) -> Iterator[list[Client]]:
    """Clients that are ended after the test."""
    found: list[Client] = []
    yield found

    async def end() -> None:
        for client in found:
            client.end()

    io_loop.run_sync(end)


# --- Order -----------------------------------------------------------------------------------------------------------

CLIENTS, ROOMS = st.integers(0, 5), st.integers(0, 2)
SIZES = st.sampled_from([0, 1, 100, 5000, 70_000])
STEPS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(["plain", "small", "polls"])),
    st.tuples(st.just("join"), CLIENTS, ROOMS),
    st.tuples(st.just("leave"), CLIENTS, ROOMS),
    st.tuples(st.just("send"), CLIENTS, SIZES),
    st.tuples(st.just("publish"), ROOMS, SIZES, st.none() | CLIENTS, st.booleans()),
    st.tuples(st.just("hold"), CLIENTS),
    st.tuples(st.just("release"), CLIENTS, st.integers(0, 60)),
    st.tuples(st.just("drop"), CLIENTS),
    st.tuples(st.just("cut"), CLIENTS),
    st.tuples(st.just("read"), CLIENTS, st.sampled_from([1, 1000, 1 << 20])),
)
START = [("open", "plain"), ("open", "small"), ("open", "polls"), *(("join", each, 0) for each in range(3))]


@dataclass
class Expected:
    """What a client must get: all of it in the end, if it stays; the beginning of it, if not."""

    client: Client
    texts: list[str] = field(default_factory=list)
    rooms: set[int] = field(default_factory=set)
    held: list[tuple[str, int | None]] | None = None
    stays: bool = True


class World:
    """A hub with rooms and clients, and beside it what must come of each step."""

    def __init__(self) -> None:
        self.hub = Hub(max_backlog=ENDLESS)
        self.rooms = [Room() for _ in range(3)]
        self.all: list[Expected] = []
        self.number = 0

    def text(self, size: int) -> str:
        self.number += 1
        return f"{self.number}:{'x' * size}"

    def do(self, step: Sequence[Any]) -> None:
        """Does a step of any kind; nothing, if there is nobody to do it to."""
        kind, *arguments = step
        if kind == "open":
            made = Client(self.hub, polls=arguments[0] == "polls", small=arguments[0] == "small")
            self.all.append(Expected(made))
        elif kind == "publish":
            self.publish(*arguments)
        elif self.all:
            who = self.all[arguments[0] % len(self.all)]
            if who.stays:
                getattr(self, kind)(who, *arguments[1:])

    def join(self, who: Expected, room: int) -> None:
        self.hub.join(who.client, self.rooms[room])
        who.rooms.add(room)

    def leave(self, who: Expected, room: int) -> None:
        self.hub.leave(who.client, self.rooms[room])
        who.rooms.discard(room)

    def send(self, who: Expected, size: int) -> None:
        text = self.text(size)
        self.hub.send(who.client, parcel(text))
        who.texts.append(text)

    def publish(self, room: int, size: int, skip: int | None, has_offset: bool) -> None:
        text = self.text(size)
        skipped = None if skip is None or not self.all else self.all[skip % len(self.all)]
        offset = self.number if has_offset else None
        self.hub.publish(self.rooms[room], parcel(text, offset), None if skipped is None else skipped.client)
        for who in self.all:
            if room in who.rooms and who.stays and who is not skipped:
                if who.held is None:
                    who.texts.append(text)
                else:
                    who.held.append((text, offset))

    def hold(self, who: Expected) -> None:
        self.hub.hold(who.client)
        who.held = who.held or []

    def release(self, who: Expected, after: int) -> None:
        if who.held is not None:
            self.hub.release(who.client, after)
            who.texts += [text for text, offset in who.held if offset is None or offset > after]
            who.held = None

    def drop(self, who: Expected) -> None:
        self.hub.drop(who.client)
        who.stays = False

    def cut(self, who: Expected) -> None:
        # The hub hears of it when it writes the next time, if ever.
        if who.client.peer is not None:
            who.client.read()
            who.client.cut()
            who.stays = False

    def read(self, who: Expected, size: int) -> None:
        if who.client.peer is not None:
            who.client.read(size)
        else:
            who.client.poll()

    async def finish(self) -> None:
        """Everybody who is still there reads to the end."""
        for who in self.all:
            if who.stays:
                self.release(who, 0)
        for _ in range(10_000):
            await turn()
            self.hub.flush()
            if not sum(self._took(who.client) for who in self.all if who.stays) and not self._waiting():
                return
        raise AssertionError("it never ends")

    def _took(self, client: Client) -> int:
        if client.peer is not None:
            return client.read()
        waited = len(client.packets)
        client.poll()
        return waited

    def _waiting(self) -> int:
        return sum(who.client.waiting for who in self.all if who.stays)


async def lived(turns: Sequence[Sequence[Sequence[Any]]]) -> World:
    """The world after some turns of the loop, with steps in each."""
    world = World()
    try:
        for steps in [START, *turns]:
            for step in steps:
                world.do(step)
            await asyncio.sleep(0)
        await world.finish()
    finally:
        for who in world.all:
            who.client.end()
    return world


@given(turns=st.lists(st.lists(STEPS, max_size=8), max_size=12))
@settings(deadline=None, max_examples=250)
def test_everybody_gets_what_was_meant_for_them_in_the_order_in_which_it_was_sent(
    turns: list[list[tuple[Any, ...]]],
) -> None:
    with asyncio.Runner() as runner:
        world = runner.run(lived(turns))

    for who in world.all:
        received = who.client.texts()
        if who.stays:
            assert received == who.texts
            assert who.client.given_up_for == []
        else:
            assert received == who.texts[: len(received)]


@pytest.mark.gen_test
async def test_what_a_turn_sends_leaves_in_one_write(
    hub: Hub, clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients += [Client(hub) for _ in range(3)]
    room = Room()
    for client in clients:
        hub.join(client, room)
    written: list[int] = []
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        written.append(descriptor)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    hub.publish(room, parcel("one"))
    hub.send(clients[1], parcel("two"))
    hub.publish(room, parcel("three"))
    await turn()

    assert len(written) == 3
    for client in clients:
        client.read()
    assert [client.texts() for client in clients] == [["one", "three"], ["one", "two", "three"], ["one", "three"]]


@pytest.mark.gen_test
async def test_what_is_sent_after_a_long_flush_leaves_together_and_soon(
    hub: Hub, clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients.append(Client(hub))
    monkeypatch.setattr(hub_module, "_LONG_FLUSH", 0.0)
    monkeypatch.setattr(hub_module, "_PAUSE_SHARE", math.inf)
    hub.send(clients[0], parcel("one"))
    await turn()
    clients[0].read()
    assert clients[0].texts() == ["one"]

    for text in ("two", "three"):
        hub.send(clients[0], parcel(text))
        await asyncio.sleep(0)
    assert clients[0].read() == 0
    await until(clients[0].read, seconds=1)

    assert clients[0].texts() == ["one", "two", "three"]
    # A member that comes or goes does not wait: who was there gets what was said before.
    hub.send(clients[0], parcel("four"))
    hub.join(clients[0], Room())
    clients[0].read()
    assert clients[0].texts()[-1] == "four"


# --- Holding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polls", [False, True], ids=["by websocket", "by polling"])
@pytest.mark.gen_test
async def test_what_is_published_while_held_comes_after_the_release_and_what_was_missed_only_once(
    hub: Hub, clients: list[Client], polls: bool
) -> None:
    client = Client(hub, polls=polls)
    clients.append(client)
    room = Room()
    hub.join(client, room)

    hub.hold(client)
    hub.publish(room, parcel("seven", 7))
    hub.publish(room, parcel("eight", 8))
    hub.send(client, parcel("missed six"))
    hub.publish(room, parcel("nine", 9))
    await turn()
    hub.send(client, parcel("missed seven"))
    hub.release(client, after=7)
    hub.publish(room, parcel("ten", 10))
    await turn()
    client.poll() if polls else client.read()

    assert client.texts() == ["missed six", "missed seven", "eight", "nine", "ten"]
    assert client.waiting == 0


@pytest.mark.gen_test
async def test_a_polling_client_that_is_held_drains_when_it_has_polled(hub: Hub, clients: list[Client]) -> None:
    client = Client(hub, polls=True)
    clients.append(client)
    room = Room()
    hub.join(client, room)

    hub.hold(client)
    hub.publish(room, parcel("held", 1))
    hub.send(client, parcel("direct"))
    await turn()
    client.poll()
    hub.release(client, after=1)

    assert client.waiting == 0
    async with asyncio.timeout(1):
        await client.drained()


@pytest.mark.gen_test
async def test_what_is_held_counts_against_the_backlog(clients: list[Client]) -> None:
    hub = Hub(max_backlog=10_000)
    client = Client(hub)
    clients.append(client)
    room = Room()
    hub.join(client, room)
    hub.hold(client)

    for _ in range(11):
        hub.publish(room, parcel("x" * 1000))
        await turn()

    assert client.given_up_for == ["backlog"]


# --- Slow clients ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_that_reads_a_little_at_a_time_gets_every_byte(hub: Hub, clients: list[Client]) -> None:
    slow, other = Client(hub, small=True), Client(hub)
    clients += [slow, other]
    room = Room()
    hub.join(slow, room)
    hub.join(other, room)
    texts = [f"{number}:{'y' * (number * 7919 % 3000)}" for number in range(200)]

    for number, text in enumerate(texts):
        hub.publish(room, parcel(text))
        if number % 3 == 0:
            await turn()
            slow.read(777)
        other.read()
    await turn()
    other.read()
    assert other.texts() == texts
    assert slow.waiting > 0
    while slow.waiting:
        slow.read(777)
        await asyncio.sleep(0)
    while slow.read(777):
        pass

    assert slow.texts() == texts
    assert slow.backlog is None
    assert slow.fd >= 0, "it can be written to directly again"


@pytest.mark.gen_test
async def test_a_client_drains_when_it_has_taken_everything_and_when_it_is_gone(
    hub: Hub, clients: list[Client]
) -> None:
    staying, going = Client(hub, small=True), Client(hub, small=True)
    clients += [staying, going]
    for client in (staying, going):
        hub.send(client, parcel("x" * 1_000_000))
    await turn()
    waiting = [asyncio.create_task(client.drained()) for client in (staying, going)]
    await turn()
    assert not any(task.done() for task in waiting)

    hub.drop(going)
    await until(waiting[1].done)
    assert not waiting[0].done()
    while not waiting[0].done():
        staying.read()
        await asyncio.sleep(0)

    await staying.drained()


@pytest.mark.gen_test
async def test_a_client_above_the_bound_is_given_up_once_and_nobody_else_notices(clients: list[Client]) -> None:
    hub = Hub(max_backlog=50_000)
    slow, polling, other = Client(hub, small=True), Client(hub, polls=True), Client(hub)
    clients += [slow, polling, other]
    room = Room()
    for client in clients:
        hub.join(client, room)

    for _ in range(100):
        hub.publish(room, parcel("x" * 1000))
        if not slow.given_up_for:
            hub.send(slow, parcel("y"))
        await turn()
        other.read()

    assert slow.given_up_for == ["backlog"]
    assert polling.given_up_for == ["backlog"]
    assert list(room.members) == [other]
    assert len(other.texts()) == 100
    assert (slow.waiting, slow.backlog, polling.packets) == (0, None, [])


@pytest.mark.gen_test
async def test_clients_that_vanish_are_given_up_and_the_rest_of_the_room_is_served(
    hub: Hub, clients: list[Client]
) -> None:
    clients += [Client(hub) for _ in range(9)]
    room = Room()
    for client in clients:
        hub.join(client, room)
    for client in clients[::2]:
        client.cut()

    hub.publish(room, parcel("hello"))
    await turn()

    for number, client in enumerate(clients):
        if number % 2:
            client.read()
            assert client.texts() == ["hello"]
        assert client.given_up_for == ([] if number % 2 else ["transport error"])


# --- Descriptors that are used again ---------------------------------------------------------------------------------
#
# The system gives a new socket the lowest number that is free. Each test closes a connection, opens another one at
# once, makes sure that one of its ends got the number, and that nothing of the former one's reaches it.


Way = Callable[[Hub, Room, Client], Awaitable[None]]


async def it_is_dropped(hub: Hub, _room: Room, client: Client) -> None:
    hub.drop(client)


async def it_is_dropped_in_the_turn_of_an_event(hub: Hub, room: Room, client: Client) -> None:
    hub.publish(room, parcel("secret"))
    hub.send(client, parcel("secret"))
    hub.drop(client)


async def it_vanished_and_a_flush_finds_out(hub: Hub, room: Room, client: Client) -> None:
    client.cut()
    hub.publish(room, parcel("secret"))
    await turn()
    assert client.given_up_for == ["transport error"]


async def it_vanished_with_a_backlog(hub: Hub, _room: Room, client: Client) -> None:
    hub.send(client, parcel("secret" * 200_000))
    await turn()
    assert client.backlog
    client.cut()
    await until(lambda: client.given_up_for == ["transport error"])


async def it_falls_behind_too_far(hub: Hub, _room: Room, client: Client) -> None:
    hub.max_backlog = 1000
    hub.send(client, parcel("secret" * 200_000))
    await turn()
    assert client.given_up_for == ["backlog"]


async def it_vanished_while_it_was_held(hub: Hub, room: Room, client: Client) -> None:
    hub.hold(client)
    hub.publish(room, parcel("secret"))
    client.cut()
    hub.send(client, parcel("secret"))
    await turn()
    assert client.given_up_for == ["transport error"]


WAYS: list[Way] = [
    it_is_dropped,
    it_is_dropped_in_the_turn_of_an_event,
    it_vanished_and_a_flush_finds_out,
    it_vanished_with_a_backlog,
    it_falls_behind_too_far,
    it_vanished_while_it_was_held,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.gen_test
async def test_nothing_reaches_the_connection_that_gets_the_descriptor(
    hub: Hub, clients: list[Client], way: Way
) -> None:
    ending, other = Client(hub), Client(hub)
    clients += [ending, other]
    room, both = Room(), Room()
    for client in (ending, other):
        hub.join(client, room)
        hub.join(client, both)
    # Everything that is prepared once and used again is there: arrays of the rooms, callbacks of the loop.
    hub.publish(room, parcel("hello"))
    hub.publish(both, parcel("hello"))
    await turn()
    descriptor = ending.fd
    opened: list[Client] = []

    def open_next() -> None:
        opened.append(Client(hub))

    ending.when_given_up = open_next
    await way(hub, room, ending)
    if not opened:
        open_next()
    clients += opened
    (stranger,) = opened
    assert stranger.peer is not None
    assert descriptor in (stranger.fd, stranger.peer.fileno()), "the number was not used again"

    hub.publish(room, parcel("secret"))
    hub.publish(both, parcel("secret"))
    hub.send(ending, parcel("secret"))
    hub.publish(both, parcel("secret"), skip=other)
    await turn()
    stranger.read()
    # What somebody writes to the stranger's other end arrives at ours.
    with pytest.raises(BlockingIOError):
        os.read(stranger.fd, 100)

    assert stranger.texts() == []
    hub.send(stranger, parcel("for you"))
    await turn()
    stranger.read()
    assert stranger.texts() == ["for you"]
