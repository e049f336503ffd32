"""No frame ever reaches a connection that it was not meant for, though descriptors' numbers are used again at once.

The clients here are sockets without any library between; they open and close in the same process as the server, so
that every number that becomes free is taken by the next one, whichever side it is of.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.web import Application

from realtime.server import Namespace, Server, Socket
from tests.conftest import until
from tests.fronts import make_server
from tests.wire import CLOSE, TEXT, UPGRADE, Place, frame

PATH = "/socket.io/"
ROOMS = 3


@pytest.fixture
def server() -> Server:
    return Server(ping_interval=0.15, ping_timeout=0.1, max_backlog=60_000)


@pytest.fixture
def chat(server: Server) -> Namespace:
    """Each client tells its name and its room at connecting; it is meant to see these two only."""
    chat = server.namespace("/")

    @chat.on_connect
    def connect(socket: Socket, auth: dict[str, Any]) -> None:
        socket.data = auth
        socket.join(f"room-{auth['room']}")

    @chat.on_event("put-me-out")
    def put_out(socket: Socket) -> None:
        socket.disconnect(close=True)

    @chat.on_event("move")
    def move(socket: Socket) -> None:
        # The last word of the old room, in the same turn as the first of the new.
        room = socket.data["room"]
        chat.emit("to", "room", room, room=f"room-{room}")
        socket.leave(f"room-{room}")
        chat.emit("to", "room", room, room=f"room-{room}")

    @chat.on_disconnect
    def disconnect(socket: Socket, reason: str) -> None:
        # An application that speaks when somebody goes: within the flush that found it out.
        chat.emit("to", "room", socket.data["room"], room=f"room-{socket.data['room']}")

    return chat


@pytest.fixture(params=["by the door", "by HTTP"])
def place(request: pytest.FixtureRequest, io_loop: IOLoop, server: Server, chat: Namespace) -> Iterator[Place]:
    door = server.door(PATH) if request.param == "by the door" else None
    http = make_server(Application(server.routes(PATH)), door)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    http.add_sockets([listening])
    yield Place(listening.getsockname()[1], PATH)
    http.stop()
    io_loop.run_sync(server.close)
    io_loop.run_sync(http.close_all_connections)


class Client:
    """A client that checks that everything that it gets is its own."""

    def __init__(self, port: int, name: int) -> None:
        self.name = name
        self.room = name % ROOMS
        self.seen = 0
        self.is_open = True
        self.is_in = False
        self._data = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._port = port

    async def open(self) -> None:
        """Connects and enters; nothing is waited for after that."""
        await self._loop.sock_connect(self.socket, ("127.0.0.1", self._port))
        headers = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        target = Place(0, PATH).target("websocket")
        await self._loop.sock_sendall(self.socket, f"GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        while b"\r\n\r\n" not in self._data:
            self._data += await self._loop.sock_recv(self.socket, 4096)
        self._data = self._data.partition(b"\r\n\r\n")[2]
        await self.say("40" + json.dumps({"name": self.name, "room": self.room}))

    async def say(self, packet: str) -> None:
        """Sends a packet, if it still can."""
        try:
            await self._loop.sock_sendall(self.socket, frame(TEXT, packet.encode()))
        except OSError:
            self.is_open = False

    def listen(self) -> None:
        """Reads what has come, and checks it."""
        while self.is_open:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.is_open = bool(data)
            self._data += data
        self._check()

    def _check(self) -> None:
        while len(self._data) >= 4:
            length, header = self._data[1], 2
            assert length <= 126, "the stream of frames is out of step"
            if length == 126:
                length, header = int.from_bytes(self._data[2:4]), 4
            if len(self._data) < header + length:
                return
            opcode, payload = self._data[0] & 15, self._data[header : header + length]
            self._data = self._data[header + length :]
            if opcode == TEXT:
                self._check_packet(payload.decode())
            else:
                assert opcode == CLOSE, "the stream of frames is out of step"

    def _check_packet(self, packet: str) -> None:
        if packet.startswith("42"):
            assert self.is_in, f"client {self.name}, in no room yet, got {packet}"
            to, kind, number, *_ = json.loads(packet[2:])
            assert to == "to"
            mine = {"name": self.name, "room": self.room, "everybody": 0}
            assert number == mine[kind], f"client {self.name} got {packet}"
            self.seen += 1
        else:
            self.is_in = self.is_in or packet.startswith("40{")
            assert packet == "2" or packet[:2] in ("0{", "40", "41"), packet

    def reset(self) -> None:
        """Ends the connection without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.is_open = False
        self.socket.close()


async def live(port: int, chat: Namespace, source: random.Random, turns: int, everybody: list[Client]) -> None:
    """Opens, speaks, listens and ends in every way; the numbers are used again all the time."""
    clients: list[Client] = []
    speaking = asyncio.create_task(_speak_always(chat, source))

    async def open_one() -> None:
        client = Client(port, len(everybody))
        everybody.append(client)
        clients.append(client)
        await client.open()

    for _ in range(turns):
        # At once, so that the numbers that became free are taken before the server has dealt with everything.
        await asyncio.gather(*(open_one() for _ in range(30 - len(clients))))
        for client in source.sample(clients, 3):
            await _act(client, source)
        for client in [client for client in clients if not client.is_open]:
            clients.remove(client)
            client.close()
        if source.random() < 0.5:
            await asyncio.sleep(source.choice((0, 0, 0.002)))
    speaking.cancel()
    for client in clients:
        client.listen()


async def _speak_always(chat: Namespace, source: random.Random) -> None:
    """Speaks in every turn of the loop, so also between the end of a connection and the arrival of the next."""
    while True:
        _speak(chat, source)
        await asyncio.sleep(0)


def _speak(chat: Namespace, source: random.Random) -> None:
    """A turn's events: to rooms, to single ones, to all, with ballast now and then, and in no order."""
    for _ in range(source.choice((0, 0, 1, 2))):
        kind = source.choice((0, 1, 3, 3, 3)) if source.random() < 0.98 else 2
        ballast = "x" * source.choice((0, 0, 10, 30_000))
        if kind == 0:
            chat.emit("to", "everybody", 0, ballast)
        elif kind == 1 and (sockets := chat.sockets()):
            target = source.choice(sockets)
            target.emit("to", "name", target.data["name"], ballast)
        elif kind == 2 and (sockets := chat.sockets()):
            source.choice(sockets).disconnect(close=True)
        else:
            room = source.randrange(ROOMS)
            chat.emit("to", "room", room, ballast, room=f"room-{room}")


async def _act(client: Client, source: random.Random) -> None:
    """Something that a client may do; many only listen, some never do, so that they fall behind or miss their ping."""
    action = source.randrange(12)
    if action == 0:
        client.reset()
    elif action == 1:
        client.close()
    elif action == 2:
        await client.say("1")
    elif action == 3:
        await client.say("broken")
    elif action == 4:
        await client.say('42["put-me-out"]')
    elif action == 5:
        await client.say('42["move"]')
    else:
        client.listen()
        if client.is_open:
            await client.say("3")


@pytest.mark.gen_test
async def test_no_frame_reaches_a_stranger_while_connections_come_and_go(
    server: Server, chat: Namespace, place: Place
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    everybody: list[Client] = []
    try:
        await live(place.port, chat, random.Random(seed), 250, everybody)
    finally:
        for client in everybody:
            client.close()

    # The check is in the clients; that they had something to check is told by these.
    await until(lambda: server.statistics["open"] == 0)
    numbers = server.statistics
    assert sum(client.seen for client in everybody) > 1000, f"seed {seed}"
    assert len(everybody) > 150
    assert {*numbers["closed"]} >= {"transport close", "parse error", "forced close"}, numbers
    assert chat.sockets() == []
