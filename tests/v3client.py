"""V3 over HTTP for tests: a client, people who use it, and a world for them that a whole module shares.

A database of its own for every test costs more than most tests of the contract take; so a module makes one world and
its tests use names that nobody else has (`fresh`). The module gives pytest-tornado a loop that lives as long:

    @pytest.fixture(scope="module")
    def io_loop() -> Iterator[IOLoop]:
        yield from own_loop()

    @pytest.fixture(scope="module")
    def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
        yield from own_world(io_loop, cluster)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo
from tornado.httpclient import AsyncHTTPClient
from tornado.httputil import HTTPHeaders
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop
from tornado.testing import bind_unused_port

import projections
from chat.commands import Commands
from chat.connections import Connections
from chat.passwords import PasswordHasher
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from handlers.app import make_app
from handlers.services import Services
from projections.models import ReadModels
from tests.conftest import NODE, OPERATOR, SECRET, make_services
from tests.fronts import make_server

PASSWORD = "Passw0rd!"
# An answer that takes longer counts as a hang.
ANSWERS_WITHIN = 10.0
_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name that nobody else in this run has."""
    return f"{prefix}{next(_numbers)}"


class Answer(NamedTuple):
    """What a server answered: its body is a JSON object."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def said(self) -> tuple[int, dict[str, Any]]:
        """Status and body, which is what the document tells of an answer."""
        return self.status, self.body

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.headers["X-Request-Id"]


class V3:
    """Calls the endpoints of a server."""

    def __init__(self, url: str, http: AsyncHTTPClient) -> None:
        self.url = url
        self._http = http

    async def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Answer:
        """Sends a request; the answer must be a JSON object, and come in good time."""
        response = await self._http.fetch(
            self.url + path,
            method=method,
            body=body,
            headers=headers and dict(headers),
            raise_error=False,
            request_timeout=ANSWERS_WITHIN,
            allow_nonstandard_methods=True,
        )
        assert response.code != 599, f"no answer: {response.error}"
        answered = json.loads(response.body)
        assert isinstance(answered, dict)
        return Answer(response.code, answered, response.headers)

    async def call(self, endpoint: str, headers: Mapping[str, str] | None = None, **fields: object) -> Answer:
        """Calls an endpoint, with the body's fields as keywords."""
        return await self.ask(f"/api/v3/{endpoint}/", json.dumps(fields).encode(), headers)

    async def person(self, username: str | None = None) -> Person:
        """Somebody new, registered and with a token."""
        name = username or fresh("Person")
        registered = await self.call("register", username=name, password=PASSWORD)
        assert registered.status == 201, registered
        return await self.known_person(name)

    async def known_person(self, username: str) -> Person:
        """Somebody who has registered before, with a fresh token."""
        made = await self.call("generatetoken", username=username, password=PASSWORD)
        assert made.status == 200, made
        return Person(self, username, made.body["token"])


class Person(NamedTuple):
    """Somebody with a token; what they do is a call of an endpoint with it."""

    v3: V3
    username: str
    token: str

    async def does(self, endpoint: str, headers: Mapping[str, str] | None = None, **fields: object) -> Answer:
        """Calls an endpoint with this person's token."""
        return await self.v3.call(endpoint, headers, token=self.token, **fields)

    async def makes(self, channel: str | None = None) -> str:
        """Makes a channel; its name."""
        name = channel or fresh("den")
        made = await self.does("makechannel", name=name)
        assert made.status == 200, made
        return name

    async def brings(self, other: Person, channel: str) -> None:
        """Adds somebody to a channel."""
        added = await self.does("addusertochannel", name=channel, username=other.username)
        assert added.status == 200, added

    async def sends(self, channel: str, text: str) -> int:
        """Sends a message to a channel; its id."""
        sent = await self.does("sendmessage", channel=channel, message=text)
        assert sent.status == 200, sent
        return int((await self.newest(channel))["message_id"])

    async def newest(self, channel: str) -> dict[str, Any]:
        """The newest message of a channel."""
        return dict((await self.reads(channel, 1))[0])

    async def reads(self, channel: str, count: object = 1000) -> list[dict[str, Any]]:
        """The newest messages of a channel."""
        read = await self.does("readmessagesfromchannel", name=channel, count=count)
        assert read.status == 200, read
        return list(read.body["messages"])

    async def writes_to(self, other: Person, text: str) -> int:
        """Sends a direct message; its id."""
        sent = await self.does("senddm", username=other.username, message=text)
        assert sent.status == 200, sent
        return int((await self.dms(1))[0]["message_id"])

    async def dms(self, count: object = 1000) -> list[dict[str, Any]]:
        """The newest direct messages of this person."""
        read = await self.does("getdms", count=count)
        assert read.status == 200, read
        return list(read.body["dms"])


class World(NamedTuple):
    """A server on a log of its own, without limits."""

    v3: V3
    port: int
    log: EventLog
    services: Services

    @property
    def commands(self) -> Commands:
        """The commands."""
        return self.services.commands

    async def person(self) -> Person:
        """Somebody new."""
        return await self.v3.person()

    async def operator(self) -> Person:
        """The one who may write announcements, with a fresh token."""
        await self.v3.call("register", username=OPERATOR, password=PASSWORD)
        return await self.v3.known_person(OPERATOR)

    async def events_after(self, position: int) -> list[RecordedEvent]:
        """What was recorded behind a position."""
        return await self.log.read(after=position)


def credentials(username: str | None = None, password: str = PASSWORD) -> dict[str, Any]:
    """What somebody registers and logs in with, by default under a name that nobody has."""
    return {"username": fresh("Name") if username is None else username, "password": password}


async def registered(world: World, username: str | None = None) -> dict[str, Any]:
    """The credentials of somebody who has registered, and has no token yet."""
    made = credentials(username)
    answer = await world.v3.call("register", **made)
    assert answer.status == 201, answer
    return made


async def two_in_a_channel(world: World) -> tuple[Person, Person, str]:
    """Two people, and a channel that the first one made and both are in."""
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()
    await ann.brings(bob, channel)
    return ann, bob, channel


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """What messages say."""
    return [message["message"] for message in messages]


def keys(body: dict[str, Any]) -> list[str]:
    """The keys of an object, in the order of the alphabet."""
    return sorted(body)


@contextlib.asynccontextmanager
async def serving(services: Services) -> AsyncIterator[int]:
    """A server of the application; its port on 127.0.0.1."""
    socket, port = bind_unused_port()
    server = make_server(make_app(services))
    server.add_socket(socket)
    try:
        yield port
    finally:
        server.stop()
        await server.close_all_connections()


@contextlib.asynccontextmanager
async def _world(conninfo: str, discord_channel: int | None) -> AsyncIterator[World]:
    passwords = PasswordHasher(cost=4)
    async with EventLog(conninfo, projections.ALL) as log:
        await log.listening()
        models = ReadModels(log)
        commands = Commands(log, models, passwords, SECRET, operators=[OPERATOR])
        await commands.prepare()
        connections = Connections(log, models, SECRET, NODE)
        services = make_services(commands, connections, models, log, discord_channel)
        http = AsyncHTTPClient(force_instance=True)
        async with serving(services) as port:
            yield World(V3(f"http://127.0.0.1:{port}", http), port, log, services)
        http.close()
    passwords.close()


def own_loop() -> Iterator[IOLoop]:
    """A loop for the tests of one module."""
    loop = AsyncIOLoop(make_current=False)  # `IOLoop()` would first make a current one, which nobody closes
    asyncio.set_event_loop(loop.asyncio_loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close(all_fds=True)


def own_world(loop: IOLoop, cluster: str, discord_channel: int | None = None) -> Iterator[World]:
    """A world for the tests of one module, on a database of its own; with Discord, if it has a channel there."""
    name = fresh("world_")
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template_for_tests')
    manager = _world(make_conninfo(cluster, dbname=name), discord_channel)
    yield loop.run_sync(manager.__aenter__)
    loop.run_sync(lambda: manager.__aexit__(None, None, None))
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


async def until(condition: Callable[[], bool], what: str, within: float = 10.0) -> None:
    """Returns once the condition holds, which is looked at again and again."""
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - what is waited for tells nobody when it comes
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {within} s: {what}") from None


class Wire:
    """A connection to a server, on which bytes go as they are: for what a library of HTTP cannot send.

    It is kept from one answer to the next as long as the server keeps it.
    """

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._port = port
        self._source = source
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, *pieces: bytes) -> Answer:
        """Sends a request; its answer, which must be one of HTTP with a JSON object in it."""
        return parsed(await self.exchange(*pieces))

    async def exchange(self, *pieces: bytes) -> bytes:
        """Sends bytes; the answer (without a `100 Continue`), empty if the server closes without a word."""
        async with asyncio.timeout(ANSWERS_WITHIN):
            if self._streams is not None:
                # The server may have closed a connection that it kept: that is no answer to this request.
                with contextlib.suppress(ConnectionError):
                    if answer := await self._exchange(*self._streams, pieces):
                        return answer
                self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._source, 0))
            return await self._exchange(*self._streams, pieces)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pieces: Iterable[bytes]
    ) -> bytes:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        answer = await _read_answer(reader)
        if b"\r\nX-Request-Id: " not in answer or b"\r\nConnection: close\r\n" in answer:
            self.close()
        return answer

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    try:
        head = b"HTTP/1.1 100 "
        while head.startswith(b"HTTP/1.1 100 "):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    length = HTTPHeaders.parse(head.decode("latin1").partition("\r\n")[2]).get("Content-Length", "0")
    return head + await reader.readexactly(int(length))


def request(path: str, body: bytes, *headers: bytes, method: str = "POST") -> bytes:
    """The bytes of a request whose body has its length told."""
    lines = (b"Host: localhost", b"Content-Length: %d" % len(body), *headers)
    return b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method.encode(), path.encode(), b"\r\n".join(lines), body)


def parsed(answer: bytes) -> Answer:
    """An answer in bytes, which must be one of HTTP with a JSON object in it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, _, headers = head.decode("latin1").partition("\r\n")
    answered = json.loads(body)
    assert isinstance(answered, dict)
    return Answer(int(status_line.split(" ")[1]), answered, HTTPHeaders.parse(headers))
