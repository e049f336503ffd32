"""Listeners for tests: clients of the chat over Socket.IO, and the lines that they are connected by.

A `Listener` is spoken by hand, packet by packet, so that a test sees everything that its server sends and in what
order, and can do what no library would. A `JavaScript` is the client that browsers use. A `Line` lies between clients
and a server and can be cut, or laid to another server.

A module's tests share one server process:

    @pytest.fixture(scope="module")
    def io_loop() -> Iterator[IOLoop]:
        yield from own_loop()

    @pytest.fixture(scope="module")
    def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        yield from own_server(cluster, tmp_path_factory.mktemp("server"))

    @pytest.fixture
    def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
        yield from own_chat(io_loop, server)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import psycopg
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

from tests.conftest import CI_KEY, OPERATOR, own_database
from tests.servers import NODE, ROOT, Server
from tests.v3client import PASSWORD, V3, Person, until
from tests.wire import Closed, Place, WebSocket, Wire

LISTENER = ROOT / "tests" / "javascript" / "listener.js"
AUDIT_KEY = "the key of the auditors"
SECRET = "a secret that the nodes share"
# Within this everything comes that is to come.
WITHIN = 10.0

Event = list[Any]


def ready(person: Person) -> str:
    """What a connection is told when it is registered (document, "Socket.IO")."""
    return f"Server has accepted the connection and registered you as : {person.username}"


class End(NamedTuple):
    """How a connection ended: the events that came before, and whether Socket.IO's DISCONNECT was sent."""

    events: list[Event]
    by_disconnect: bool


class Packet(NamedTuple):
    """A packet of Socket.IO: its type as a digit, its data, and the number of what it acknowledges."""

    kind: str
    data: Any
    ack_id: int | None


CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = "01234"


class Refused(Exception):
    """The server answered by CONNECT_ERROR; `args` is its data."""


class Ended(Exception):
    """The server has ended the connection."""


class Listener:
    """A client in one namespace, over a websocket. It reads only when it is asked for something."""

    def __init__(self, websocket: WebSocket, namespace: str = "/") -> None:
        self.reply: dict[str, Any] = {}
        self._websocket = websocket
        self._prefix = "" if namespace == "/" else f"{namespace},"
        self._numbers = itertools.count(1)
        self._events: deque[Event] = deque()

    @property
    def pid(self) -> str:
        """What it comes back by."""
        return str(self.reply["pid"])

    async def connect(self, auth: Mapping[str, Any] | None = None) -> None:
        """Enters the namespace; raises `Refused` and `Ended`. Events before the reply are `early`."""
        await self._websocket.send(f"40{self._prefix}{'' if auth is None else json.dumps(auth)}")
        packet = await self._until(CONNECT, CONNECT_ERROR)
        if packet.kind == CONNECT_ERROR:
            raise Refused(packet.data)
        self.reply = packet.data

    @property
    def early(self) -> list[Event]:
        """The events that have come and that nobody has asked for."""
        return list(self._events)

    async def event(self) -> Event:
        """The next event: its name and its arguments."""
        if not self._events:
            await self._until(EVENT)
        return self._events.popleft()

    async def events(self, count: int) -> list[Event]:
        """The next events."""
        return [await self.event() for _ in range(count)]

    async def events_until(self, is_last: Callable[[Event], object]) -> list[Event]:
        """The next events up to the one that is looked for."""
        found = [await self.event()]
        while not is_last(found[-1]):
            found.append(await self.event())
        return found

    async def emit(self, name: str, *arguments: object) -> None:
        """Sends an event."""
        await self._websocket.send(f"42{self._prefix}{json.dumps([name, *arguments])}")

    async def call(self, name: str, *arguments: object) -> list[Any]:
        """Sends an event; what the server acknowledges it with."""
        number = next(self._numbers)
        await self._websocket.send(f"42{self._prefix}{number}{json.dumps([name, *arguments])}")
        packet = await self._until(ACK)
        assert packet.ack_id == number
        acknowledged: list[Any] = packet.data
        return acknowledged

    async def registers(self, person: Person, **fields: object) -> Event:
        """Registers the connection; what comes next."""
        await self.emit("api_v3_connect", {"token_api_v3": person.token, **fields})
        return await self.event()

    async def end(self) -> End:
        """Waits until the server ends the connection."""
        by_disconnect = False
        while (packet := await self._packet()) is not None:
            assert packet.kind in (EVENT, DISCONNECT), packet
            by_disconnect = by_disconnect or packet.kind == DISCONNECT
        events, self._events = list(self._events), deque()
        return End(events, by_disconnect)

    async def leave(self) -> None:
        """Leaves the namespace, by a DISCONNECT."""
        await self._websocket.send(f"41{self._prefix}")

    async def close(self) -> None:
        """Closes the connection, as Engine.IO has it."""
        await self._websocket.send("1")

    def drop(self) -> None:
        """Breaks the connection off."""
        self._websocket.abort()

    async def _until(self, *kinds: str) -> Packet:
        """The next packet of these kinds; events on the way are kept."""
        while True:
            packet = await self._packet()
            if packet is None:
                raise Ended
            if packet.kind in kinds:
                return packet
            assert packet.kind == EVENT, packet

    async def _packet(self) -> Packet | None:
        """The next packet, None at the end; the server's pings are answered on the way."""
        while True:
            message = await self._websocket.receive()
            if isinstance(message, Closed) or message == "1":
                return None
            assert isinstance(message, str)
            if message == "2":
                await self._websocket.send("3")
                continue
            packet = parsed(message, self._prefix)
            if packet.kind == EVENT:
                self._events.append(packet.data)
            return packet


def parsed(message: str, prefix: str = "") -> Packet:
    """A packet out of an Engine.IO message."""
    kind, rest = message[1], message[2:]
    assert message[0] == "4", message
    assert rest.startswith(prefix), message
    rest = rest.removeprefix(prefix)
    digits = "".join(itertools.takewhile(str.isdecimal, rest))
    data = rest.removeprefix(digits)
    return Packet(kind, json.loads(data) if data else None, int(digits) if digits else None)


class JavaScript:
    """A client of socket.io-client in a process of Node; it comes back by itself as such clients do.

    `told` is all that it has told, `events` the events that it got.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.told: list[dict[str, Any]] = []
        self.events: list[Event] = []
        self._process = process
        self._reading = asyncio.create_task(self._read(), name="a JavaScript client's standard output")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.told.append(json.loads(line))
            if "event" in self.told[-1]:
                self.events.append(self.told[-1]["event"])

    def all(self, what: str) -> list[Any]:
        """What it has told of one kind."""
        return [told[what] for told in self.told if what in told]

    def do(self, **command: object) -> None:
        """Has it do something: `emit` or `call` an event."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(command)}\n".encode())

    async def until(self, condition: Callable[[], bool], what: str, within: float = WITHIN) -> None:
        """Waits for something that it is to tell."""
        try:
            await until(condition, what, within)
        except AssertionError as error:
            raise AssertionError(f"{error}; last it told {self.told[-5:]}") from None

    async def has(self, count: int, within: float = WITHIN) -> None:
        """Waits until it has got so many events."""
        await self.until(lambda: len(self.events) >= count, f"{count} events come", within)

    async def disconnected(self) -> None:
        """Waits until it has lost its connection once."""
        await self.until(lambda: bool(self.all("disconnected")), "it is disconnected")

    async def connected(self, times: int = 1, within: float = WITHIN) -> bool:
        """Waits until it is connected for this time in its life; whether it was recovered then."""
        await self.until(lambda: len(self.all("connected")) >= times, f"it is connected {times} times", within)
        return bool(self.all("connected")[times - 1]["recovered"])

    async def end(self) -> None:
        """Ends the process, which ends when nothing more can come on its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(WITHIN):
            await self._process.wait()
            await self._reading


class Line:
    """What lies between clients and a server: a port whose connections go on to the server's.

    Cut, it takes no connection until it is laid again, to the same server or to another.
    """

    def __init__(self) -> None:
        self.port = 0
        self._to: int | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()

    async def lay(self, to: int) -> None:
        """Lets connections through to this port."""
        self._to = to
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Breaks all connections off, at both ends."""
        self._to = None
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        """Cuts it for good."""
        self.cut()
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._to is not None:
                beyond, to_beyond = await asyncio.open_connection("127.0.0.1", self._to)
                self._writers.add(to_beyond)
                try:
                    await asyncio.gather(self._pass(reader, to_beyond), self._pass(beyond, writer))
                finally:
                    to_beyond.transport.abort()
                    self._writers.discard(to_beyond)
        except OSError:
            pass  # one end is gone, and so is the other
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
        writer.transport.abort()
        raise ConnectionAbortedError


class Chat:
    """A server process, with people who talk over HTTP and listeners who listen."""

    def __init__(self, server: Server, http: AsyncHTTPClient) -> None:
        self.server = server
        self.v3 = V3(f"http://127.0.0.1:{server.port}", http)
        self.wire = Wire()
        self._http = http
        self._clients: list[JavaScript] = []
        self._lines: list[Line] = []

    @property
    def place(self) -> Place:
        """Where it listens."""
        return Place(self.server.port, "/socket.io/")

    def at(self, server: Server) -> Chat:
        """The same at another node, or at the same server that was started anew."""
        other = Chat(server, self._http)
        other.wire, other._clients, other._lines = self.wire, self._clients, self._lines
        return other

    async def person(self) -> Person:
        """Somebody new."""
        return await self.v3.person()

    async def operator(self) -> Person:
        """The operator, with a fresh token."""
        await self.v3.call("register", username=OPERATOR, password=PASSWORD)
        return await self.v3.known_person(OPERATOR)

    async def channel_of(self, *people: Person) -> str:
        """A channel that the first of the people has made, and all are in."""
        channel = await people[0].makes()
        for other in people[1:]:
            await people[0].brings(other, channel)
        return channel

    async def bancho(self, endpoint: str, **arguments: object) -> dict[str, Any]:
        """What the Bancho API answers."""
        return (await self.v3.ask(f"/api/v1/{endpoint}?{urlencode(arguments)}", method="GET")).body

    async def metrics(self) -> str:
        """What the node counts."""
        return (await self._http.fetch(f"{self.v3.url}/metrics")).body.decode()

    async def is_online(self, person: Person) -> bool:
        """Whether somebody is online, as the Bancho API has it."""
        return bool((await self.bancho("isOnline", u=person.username))["result"])

    async def opened(self, namespace: str = "/", receive_buffer: int | None = None) -> Listener:
        """A connection that is in no namespace yet."""
        return Listener(await self.wire.websocket_session(self.place, receive_buffer), namespace)

    async def connected(self, **auth: object) -> Listener:
        """A connection in the main namespace, with this CONNECT payload if any."""
        listener = await self.opened()
        await listener.connect(auth or None)
        return listener

    async def listens(self, person: Person, **auth: object) -> Listener:
        """A registered connection of somebody, `ready` read."""
        listener = await self.connected(token=person.token, **auth)
        assert (await listener.event())[:2] == ["ready", ready(person)]
        return listener

    async def javascript(self, port: int | None = None, **options: object) -> JavaScript:
        """A JavaScript client; `options` are those of socket.io-client."""
        quick = {"reconnectionDelay": 50, "reconnectionDelayMax": 200, **options}
        process = await asyncio.create_subprocess_exec(
            NODE,
            LISTENER,
            f"http://127.0.0.1:{port or self.server.port}",
            json.dumps(quick),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        self._clients.append(JavaScript(process))
        return self._clients[-1]

    async def line(self) -> Line:
        """A line to the server."""
        self._lines.append(Line())
        await self._lines[-1].lay(self.server.port)
        return self._lines[-1]

    async def close(self) -> None:
        """Ends all clients."""
        for client in self._clients:
            await client.end()
        for line in self._lines:
            await line.close()
        await self.wire.close()


SETTINGS: Mapping[str, Any] = {
    "operators": OPERATOR,
    "ci_key": CI_KEY,
    "audit_key": AUDIT_KEY,
    "secret": SECRET,
}


def own_server(cluster: str, folder: Path, **settings: Any) -> Iterator[Server]:
    """The body of a fixture: a server process on a database of its own, in which no fault may come to light.

    `settings` go before those of `SETTINGS`; None stands for the default.
    """
    given = {name: value for name, value in {**SETTINGS, **settings}.items() if value is not None}
    with (
        contextlib.contextmanager(own_database)(cluster) as database,
        Server(folder / "data", database_url=database, **given) as server,
    ):
        yield server
        assert [line for line in server.log if line["level"] == "error"] == []


def own_chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    """The body of a fixture: people and listeners of a server."""

    async def made() -> Chat:
        return Chat(server, AsyncHTTPClient(force_instance=True, max_clients=32))

    chat = io_loop.run_sync(made)
    yield chat
    io_loop.run_sync(chat.close)
    chat._http.close()


def rows(server: Server, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What stands in the server's database."""
    with psycopg.connect(server.database_url, autocommit=True) as connection:
        return connection.execute(query.encode(), values).fetchall()


async def eventually(ask: Callable[[], Awaitable[object]], what: str, within: float = WITHIN) -> None:
    """Returns once the answer is true, which is asked for again and again."""
    try:
        async with asyncio.timeout(within):
            while not await ask():  # noqa: ASYNC110 - what is waited for tells nobody when it comes
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within} s: {what}") from None


def message_texts(events: Iterable[Event]) -> list[str]:
    """What the messages among events say."""
    return [event[1]["message"] for event in events if event[0] in ("new_message", "new_dm")]
