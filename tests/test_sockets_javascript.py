"""Recovery as browsers have it: `socket.io-client` comes back by itself and finds nothing lost and nothing doubled.

The clients' connections go over a line that can be cut; the server is stopped, killed and started anew behind it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest
from tornado.ioloop import IOLoop

from tests.listeners import SETTINGS, Chat, JavaScript, Line, message_texts, own_chat, ready
from tests.servers import Server
from tests.v3client import Person, Wire, own_loop, request

SENDERS = 16

TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]]
by_each_transport = pytest.mark.parametrize("transports", TRANSPORTS, ids="-then-".join)


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture
def server(start_server: Callable[..., Server], database: str) -> Server:
    return start_server(**SETTINGS, database_url=database)


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


async def listening(chat: Chat, line: Line, person: Person, transports: list[str]) -> JavaScript:
    """A client that is registered by its token, and that can be recovered."""
    client = await chat.javascript(line.port, transports=transports, auth={"recovery": True, "token": person.token})
    assert not await client.connected()
    await client.has(1)
    assert client.events[0][:2] == ["ready", ready(person)]
    return client


async def restarted(chat: Chat, line: Line) -> Chat:
    """Starts the server anew and lays the line to it."""
    await asyncio.to_thread(chat.server.start)
    await line.lay(chat.server.port)
    return chat.at(chat.server)


async def got(client: JavaScript, text: str, within: float = 10) -> None:
    """Waits until the client has got this message."""
    await client.until(lambda: text in message_texts(client.events[-3:]), f"{text!r} comes", within)


@by_each_transport
@pytest.mark.gen_test
async def test_a_client_goes_on_where_it_was(chat: Chat, server: Server, transports: list[str]) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    line = await chat.line()
    client = await listening(chat, line, bob, transports)
    await ann.sends(channel, "before")
    await got(client, "before")

    # Its line is cut.
    line.cut()
    await ann.sends(channel, "missed while cut off")
    await ann.writes_to(bob, "and another")
    await line.lay(server.port)
    assert await client.connected(times=2)
    await ann.sends(channel, "after the cut")
    await got(client, "after the cut")

    # The server is restarted as it should be.
    assert await asyncio.to_thread(server.stop) == 0
    line.cut()
    chat = await restarted(chat, line)
    assert await client.connected(times=3)
    ann = ann._replace(v3=chat.v3)
    await ann.sends(channel, "after the restart")
    await got(client, "after the restart")

    # And as it should not be.
    server.kill()
    line.cut()
    chat = await restarted(chat, line)
    ann = ann._replace(v3=chat.v3)
    await ann.sends(channel, "after the crash")
    assert await client.connected(times=4)
    await got(client, "after the crash")

    events = [event for event in client.events if event[0] != "server_restart"]
    assert [event[0] for event in events].count("ready") == 1
    assert message_texts(events) == [
        "before",
        "missed while cut off",
        "and another",
        "after the cut",
        "after the restart",
        "after the crash",
    ]
    assert all(isinstance(event[-1], str) for event in client.events)
    # It sends, too, on the connection as it is now.
    client.do(call=["send_message", {"channel": channel, "message": "from JavaScript"}])
    await got(client, "from JavaScript")
    await client.until(lambda: bool(client.all("acknowledged")), "it is acknowledged")
    assert client.all("acknowledged") == [[{"message": "Message sent!"}, 200]]


@pytest.mark.gen_test
async def test_before_it_goes_down_the_server_says_so_and_clients_come_back_by_themselves(
    chat: Chat, server: Server
) -> None:
    bob, line = await chat.person(), await chat.line()
    # Neither recoverable, and one of them not even registered.
    clients = [
        await chat.javascript(line.port, transports=["websocket"]),
        await chat.javascript(line.port, transports=["polling"], auth={"token": bob.token}),
    ]
    for client in clients:
        await client.connected()

    assert await asyncio.to_thread(server.stop) == 0
    for client in clients:
        await client.disconnected()
        assert client.events[-1] == ["server_restart", {"reconnect_in": 5}]
        # "io server disconnect" would mean that it stays away.
        assert client.all("disconnected") in (["transport close"], ["transport error"])

    await restarted(chat, line)

    for client in clients:
        assert not await client.connected(times=2)
    await clients[1].until(lambda: clients[1].events[-1] == ["ready", ready(bob)], "it is registered again")


class Sender:
    """Sends numbered messages by REST, each again and again until it is acknowledged."""

    def __init__(self, server: Server, token: str, channel: str, count: int) -> None:
        self.failed = 0
        self._server = server
        self._token = token
        self._channel = channel
        self._numbers = iter(range(count))

    async def send_all(self) -> None:
        await asyncio.gather(*(self._send_some() for _ in range(SENDERS)))

    async def _send_some(self) -> None:
        port = self._server.port
        wire = Wire(port)
        for number in self._numbers:
            body = json.dumps({"token": self._token, "channel": self._channel, "message": f"message {number}"})
            asked = request("/api/v3/sendmessage", body.encode(), b"Idempotency-Key: key-%d" % number)
            while not await self._is_acknowledged(wire, asked):
                self.failed += 1
                await asyncio.sleep(0.1)
                if self._server.start_line and self._server.port != port:
                    port = self._server.port
                    wire.close()
                    wire = Wire(port)
        wire.close()

    @staticmethod
    async def _is_acknowledged(wire: Wire, asked: bytes) -> bool:
        try:
            return (await wire.ask(asked)).status == 200
        except (OSError, ValueError, EOFError):
            return False


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "count"), [("polling", 3_000), ("websocket", 10_000)])
@pytest.mark.gen_test(timeout=120)
async def test_a_kill_in_the_midst_of_thousands_of_messages_loses_none_and_doubles_none(
    chat: Chat, server: Server, transport: str, count: int
) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    line = await chat.line()
    client = await listening(chat, line, bob, [transport])
    sender = Sender(server, ann.token, channel, count)
    sending = asyncio.create_task(sender.send_all())

    for fraction in (0.3, 0.6):
        await client.has(int(fraction * count), within=60)
        server.kill()
        await restarted(chat, line)
    await sending
    await client.has(count + 1, within=30)

    assert sender.failed >= SENDERS, "the kill came in the midst of requests"
    assert await client.connected(times=3)
    assert all(connected["recovered"] for connected in client.all("connected")[1:])
    texts = message_texts(client.events)
    assert len(texts) == count
    assert set(texts) == {f"message {number}" for number in range(count)}
    offsets = [int(event[-1]) for event in client.events]
    assert offsets == sorted(set(offsets))
    bob = bob._replace(v3=chat.at(server).v3)
    assert texts[-1000:] == [message["message"] for message in await bob.reads(channel, 1000)]
