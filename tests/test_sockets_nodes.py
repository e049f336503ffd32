"""Several nodes on one log: listeners hear of everything wherever they are, and nobody stays online at a lost node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest
from tornado.ioloop import IOLoop

from tests.conftest import CI_KEY, own_database
from tests.listeners import (
    SETTINGS,
    Chat,
    End,
    Ended,
    Listener,
    eventually,
    message_texts,
    own_chat,
    ready,
    rows,
)
from tests.servers import Server
from tests.v3client import Person, Wire, own_loop, request, until

ENDS_WITHIN = 10.0
# What clients are told when all nodes are asked to restart.
RESTART = ["server_restart", {"reconnect_in": 10}]


class Nodes(NamedTuple):
    """Two nodes, and the chat at each of them."""

    here: Chat
    there: Chat


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def servers(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    folder = tmp_path_factory.mktemp("nodes")
    with (
        contextlib.contextmanager(own_database)(cluster) as database,
        Server(folder / "here", **SETTINGS, database_url=database) as here,
        Server(folder / "there", **SETTINGS, database_url=database) as there,
    ):
        yield here, there


@pytest.fixture
def nodes(io_loop: IOLoop, servers: tuple[Server, Server]) -> Iterator[Nodes]:
    for server in servers:
        if server.process.poll() is not None:
            server.start()
    for here in own_chat(io_loop, servers[0]):
        yield Nodes(here, here.at(servers[1]))


def at(chat: Chat, person: Person) -> Person:
    """Somebody who calls this node."""
    return person._replace(v3=chat.v3)


# --- Listening -------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_what_is_said_at_one_node_is_heard_at_the_other(nodes: Nodes) -> None:
    here, there = nodes
    ann, bob = await here.person(), await there.person()
    channel = await here.channel_of(ann, bob)
    of_ann, of_bob = await here.listens(ann), await there.listens(bob)
    assert await here.is_online(bob)
    assert await there.is_online(ann)

    await ann.sends(channel, "from here")
    await at(there, ann).sends(channel, "from there")
    await ann.writes_to(bob, "to Bob")

    assert message_texts(await of_ann.events(2)) == ["from here", "from there"]
    assert message_texts(await of_bob.events(3)) == ["from here", "from there", "to Bob"]
    # A token that is changed at one node ends what it opened at the other.
    await here.v3.known_person(bob.username)
    assert await of_bob.end() == End([["error", {"message": "The token has ended!"}]], by_disconnect=True)


@pytest.mark.gen_test
async def test_listeners_at_all_nodes_hear_the_same_in_the_same_order(nodes: Nodes) -> None:
    here, there = nodes
    ann, bob = await here.person(), await there.person()
    channel = await here.channel_of(ann, bob)
    watchers = [await chat.listens(bob) for chat in nodes]

    async def talk(number: int) -> None:
        sender = await nodes[number % 2].listens(ann)
        for count in range(40):
            body, status = await sender.call("send_message", {"channel": channel, "message": f"{number} {count}"})
            assert status == 200, body

    talking = asyncio.gather(*map(talk, range(10)))
    first, second = await asyncio.gather(*(watcher.events(400) for watcher in watchers))
    await talking

    in_the_log = [message["message"] for message in await bob.reads(channel)]
    assert message_texts(first) == message_texts(second) == in_the_log


# --- Recovery --------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_that_goes_from_node_to_node_misses_nothing(nodes: Nodes) -> None:
    here = nodes.here
    ann, bob = await here.person(), await here.person()
    channel = await here.channel_of(ann, bob)
    witness = await here.listens(bob, recovery=True)
    listener = await here.connected(recovery=True, token=bob.token)
    *_, offset = await listener.event()
    received = []
    is_over = asyncio.Event()

    async def talk() -> int:
        sender, sent = await here.listens(ann), 0
        while not is_over.is_set():
            assert (await sender.call("send_message", {"channel": channel, "message": str(sent)}))[1] == 200
            sent += 1
        return sent

    talking = asyncio.create_task(talk())
    for number in range(20):
        received += await listener.events(5)
        if number % 2:
            # Else the node that it left does not know yet that it has.
            listener.drop()
        other = await nodes[(number + 1) % 2].connected(recovery=True, pid=listener.pid, offset=received[-1][-1])
        assert other.pid == listener.pid
        if not number % 2:
            assert not (await listener.end()).by_disconnect
        listener = other
    is_over.set()
    sent = await talking

    while len(received) < sent:
        received.append(await listener.event())
    assert message_texts(received) == [str(number) for number in range(sent)]
    assert received == await witness.events(sent)
    assert int(offset) < int(received[0][-1])


@pytest.mark.gen_test
async def test_a_javascript_client_goes_on_at_the_other_node(nodes: Nodes) -> None:
    here, there = nodes
    ann, bob = await here.person(), await here.person()
    line = await here.line()
    client = await here.javascript(line.port, transports=["websocket"], auth={"recovery": True, "token": bob.token})
    await client.has(1)

    line.cut()
    await ann.writes_to(bob, "missed")
    await line.lay(there.server.port)

    assert await client.connected(times=2)
    await ann.writes_to(bob, "live")
    await client.has(3)
    assert client.events[0][:2] == ["ready", ready(bob)]
    assert message_texts(client.events) == ["missed", "live"]


# --- Lost nodes ------------------------------------------------------------------------------------------------------


def let_its_lease_lapse(server: Server) -> None:
    """As if the node had not renewed it for a minute."""
    node_id = (server.data_dir / "node").read_text().strip()
    ago = "UPDATE node_leases SET renewed_at = renewed_at - interval '1 minute' WHERE node_id = %s RETURNING 1"
    assert rows(server, ago, node_id) == [(1,)]


async def goes_offline(chat: Chat, person: Person) -> None:
    async def is_offline() -> bool:
        return not await chat.is_online(person)

    await eventually(is_offline, "the connections of the lost node are closed", within=15)


@pytest.mark.slow
@pytest.mark.gen_test
async def test_nobody_stays_online_at_a_node_that_was_lost(nodes: Nodes) -> None:
    here, there = nodes
    ann, bob = await here.person(), await here.person()
    await there.listens(bob)
    of_ann = await here.listens(ann)
    there.server.kill()
    assert await here.is_online(bob), "nobody knows yet"

    let_its_lease_lapse(there.server)

    await goes_offline(here, bob)
    assert await here.is_online(ann)
    await bob.writes_to(ann, "is anybody there?")
    assert message_texts([await of_ann.event()]) == ["is anybody there?"]


@pytest.mark.slow
@pytest.mark.gen_test
async def test_a_connection_that_was_taken_for_lost_is_closed_and_can_be_recovered(nodes: Nodes) -> None:
    here, there = nodes
    ann, bob = await here.person(), await here.person()
    listener = await there.connected(recovery=True, token=bob.token)
    *_, offset = await listener.event()
    there.server.process.send_signal(signal.SIGSTOP)
    try:
        let_its_lease_lapse(there.server)
        await goes_offline(here, bob)
        await ann.writes_to(bob, "missed")
    finally:
        there.server.process.send_signal(signal.SIGCONT)

    ended = await listener.end()
    assert not ended.by_disconnect
    again = await there.connected(recovery=True, pid=listener.pid, offset=offset)
    assert again.pid == listener.pid
    assert message_texts(await again.events(1)) == ["missed"]
    assert await here.is_online(bob)
    assert there.server.logged("a connection was closed: it is not ours any more")


# --- Restart ---------------------------------------------------------------------------------------------------------


async def exit_codes(nodes: Nodes) -> list[int]:
    """What the processes end with, which they must do in time."""
    waiting = (asyncio.to_thread(chat.server.process.wait, ENDS_WITHIN) for chat in nodes)
    return list(await asyncio.gather(*waiting))


async def trigger(chat: Chat) -> None:
    assert await chat.bancho("ciTrigger", k=CI_KEY) == {"status": 200, "message": "ok"}


@pytest.mark.gen_test
async def test_a_restart_that_is_asked_for_at_one_node_restarts_all(nodes: Nodes) -> None:
    here = nodes.here
    person = await here.person()
    listeners = [await chat.listens(person) for chat in nodes] + [await chat.connected() for chat in nodes]

    await trigger(here)

    for listener in listeners:
        assert await listener.end() == End([RESTART], by_disconnect=False)
    assert await exit_codes(nodes) == [0, 0]
    for chat in nodes:
        assert [line for line in chat.server.log if line["level"] in ("error", "critical")] == []


class Sender:
    """Sends texts of its own until its node is gone, and keeps those that were acknowledged."""

    def __init__(self, name: str) -> None:
        self.acknowledged: list[str] = []
        self._name = name

    async def by_rest(self, port: int, token: str, channel: str) -> None:
        wire = Wire(port)
        with contextlib.suppress(OSError, ValueError):
            while True:
                body = {"token": token, "channel": channel, "message": self._text()}
                answer = await wire.ask(request("/api/v3/sendmessage", json.dumps(body).encode()))
                self._note(answer.status)
        wire.close()

    async def by_socket(self, listener: Listener, channel: str) -> None:
        with contextlib.suppress(Ended):
            while True:
                _, status = await listener.call("send_message", {"channel": channel, "message": self._text()})
                self._note(status)

    def _text(self) -> str:
        return f"{self._name} {len(self.acknowledged)}"

    def _note(self, status: int) -> None:
        assert status == 200
        self.acknowledged.append(self._text())


@pytest.mark.gen_test
async def test_a_restart_under_load_loses_nothing_that_was_acknowledged(nodes: Nodes) -> None:
    here, there = nodes
    ann = await here.person()
    channel = await ann.makes()
    senders, sending = [], []
    for number in range(8):
        chat = nodes[number % 2]
        senders += [Sender(f"rest {number}"), Sender(f"socket {number}")]
        sending += [
            asyncio.create_task(senders[-2].by_rest(chat.server.port, ann.token, channel)),
            asyncio.create_task(senders[-1].by_socket(await chat.listens(ann), channel)),
        ]
    await until(lambda: all(len(sender.acknowledged) > 20 for sender in senders), "all send")
    began = time.monotonic()

    await trigger(there)

    assert await exit_codes(nodes) == [0, 0]
    assert time.monotonic() - began < ENDS_WITHIN
    await asyncio.gather(*sending)
    recorded = [text for (text,) in rows(here.server, "SELECT text FROM messages")]
    ours = [text for text in recorded if text.startswith(("rest ", "socket "))]
    assert len(set(ours)) == len(ours)
    assert {text for sender in senders for text in sender.acknowledged} <= set(ours)


@pytest.mark.gen_test
async def test_who_is_being_registered_hears_of_the_restart_too(nodes: Nodes) -> None:
    ann = await nodes.there.person()
    listener = await nodes.there.connected()

    # It is told that it is ready, and then its channels are looked up, for which this lock is needed.
    with psycopg.connect(nodes.there.server.database_url) as connection:
        connection.execute("LOCK TABLE members IN ACCESS EXCLUSIVE MODE")
        assert await listener.registers(ann) == ["ready", ready(ann)]
        await until(lambda: is_waited_for(connection), "the registration waits for the lock")
        nodes.there.server.process.send_signal(signal.SIGTERM)
        await until(lambda: bool(nodes.there.server.logged("stopping")), "the server stops")

    assert await listener.end() == End([["server_restart", {"reconnect_in": 5}]], by_disconnect=False)
    assert await asyncio.to_thread(nodes.there.server.process.wait, ENDS_WITHIN) == 0


@pytest.mark.gen_test
async def test_while_it_restarts_nobody_is_registered_and_what_is_in_flight_ends(nodes: Nodes) -> None:
    here, there = nodes
    ann = await here.person()
    channel = await ann.makes()
    await ann.sends(channel, "to be read")
    waiting, late = await there.connected(), await there.opened()
    by_rest, reader = Wire(there.server.port), Wire(there.server.port)
    assert (await by_rest.ask(status_request())).body["result"] == 1
    body = json.dumps({"token": ann.token, "name": channel, "count": 1}).encode()

    # A request that takes as long as this lock is held.
    with psycopg.connect(there.server.database_url) as connection:
        connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        reading = asyncio.create_task(reader.ask(request("/api/v3/readmessagesfromchannel", body)))
        await until(lambda: is_waited_for(connection), "the request waits for the lock")
        await trigger(here)
        assert await waiting.event() == RESTART
        refused = await waiting.registers(ann)
        with pytest.raises(Ended):
            await late.connect({"token": ann.token})
        status = (await by_rest.ask(status_request())).body["result"]
        assert there.server.process.poll() is None

    answer = await reading
    assert refused == ["error", {"message": "The server restarts!"}]
    assert status == -1
    assert (answer.status, [message["message"] for message in answer.body["messages"]]) == (200, ["to be read"])
    assert await exit_codes(nodes) == [0, 0]
    by_rest.close()
    reader.close()


def status_request() -> bytes:
    return b"GET /api/v1/serverStatus HTTP/1.1\r\nHost: x\r\n\r\n"


def is_waited_for(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether somebody waits for a lock of this connection."""
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    [count] = connection.execute(query).fetchone() or (0,)
    return bool(count)
