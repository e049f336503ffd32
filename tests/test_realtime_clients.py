"""Two real clients, JavaScript's and Python's, over each transport: both have the same conversation with the server."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import socketio
from tornado.netutil import bind_sockets
from tornado.web import Application

from http1.server import HttpServer
from realtime.server import Namespace, Refuse, Server, Socket
from tests.fronts import make_server
from tests.servers import NODE

PATH = "/socket.io/"
CONVERSATION = Path(__file__).parent / "javascript" / "conversation.js"
WITHIN = 20.0


def talkative() -> Server:
    """The server that the clients talk to."""
    server = Server(cors_origin="*")
    _talk(server.namespace("/"))
    _guard(server.namespace("/admin"))
    return server


def _talk(main: Namespace) -> None:
    @main.on_connect
    def welcome(socket: Socket, auth: dict[str, Any]) -> None:
        socket.emit("welcome", auth)

    @main.on_event("echo")
    def echo(socket: Socket, *arguments: Any) -> Any:
        socket.emit("echo-back", *arguments)
        return arguments[0] if arguments else None

    @main.on_event("ask-me")
    async def ask(socket: Socket) -> None:
        socket.emit("you-said", await socket.call("question", 1, b"\1\2"))

    @main.on_event("count-to")
    async def count(socket: Socket, end: int) -> int:
        for number in range(end):
            socket.emit("number", number)
            if number % 50 == 0:
                await asyncio.sleep(0)
        return end

    main.on_event("join")(lambda socket, room: socket.join(room))
    main.on_event("leave")(lambda socket, room: socket.leave(room))
    main.on_event("say")(lambda _socket, room, text: main.emit("said", text, room=room))
    main.on_event("say-to-others")(lambda socket, room, text: main.emit("said", text, room=room, skip=socket))


def _guard(admin: Namespace) -> None:
    @admin.on_connect
    async def admit(socket: Socket, auth: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if auth.get("token") != "open":
            raise Refuse("not you", {"code": 7})
        socket.emit("greeting", "hello", b"\0")

    admin.on_event("put-me-out")(lambda socket: socket.disconnect())


class Place:
    """A server on a port that it keeps when it starts again."""

    def __init__(self) -> None:
        self.port = 0
        self._server: Server
        self._http: HttpServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serves, on the same port as before."""
        sockets = bind_sockets(self.port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self._server = talkative()
        self._http = make_server(Application(self._server.routes(PATH)), self._server.door(PATH))
        self._http.add_sockets(sockets)

    async def stop(self) -> None:
        """Ends everything, as a server does that is stopped."""
        self._http.stop()
        await self._server.close()
        await self._http.close_all_connections()

    async def restart(self) -> None:
        """Ends everything and begins anew."""
        await self.stop()
        self.start()


@asynccontextmanager
async def serving() -> AsyncIterator[Place]:
    """A server, until the end of the block."""
    place = Place()
    place.start()
    try:
        yield place
    finally:
        await place.stop()


Restart = Callable[[], Awaitable[None]]


async def javascript(url: str, how: str, restart: Restart) -> list[Any]:
    """The conversation by socket.io-client."""
    client = await asyncio.create_subprocess_exec(str(NODE), str(CONVERSATION), url, how, stdout=PIPE, limit=1 << 20)
    try:
        assert client.stdout is not None
        assert await client.stdout.readline() == b"now\n"
        await restart()
        seen: list[Any] = json.loads(await client.stdout.readline())
        assert await client.wait() == 0
        return seen
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()


class Heard:
    """A client of python-socketio, and a queue for each event that it hears."""

    def __init__(self, transports: list[str], namespaces: tuple[str, ...] = ("/",)) -> None:
        self.client = socketio.AsyncClient(reconnection_delay=0.02, reconnection_delay_max=0.05)
        self._queues: dict[str, asyncio.Queue[list[Any]]] = {}
        self._transports = transports
        for namespace in namespaces:
            self.client.on("*", self._note, namespace=namespace)
            for name in ("disconnect", "connect_error"):
                self._on(name, namespace)

    def _on(self, name: str, namespace: str) -> None:
        async def note(*arguments: Any) -> None:
            await self._note(name, *arguments)

        self.client.on(name, note, namespace=namespace)

    async def connect(self, url: str, namespace: str = "/", auth: Any = None) -> None:
        await self.client.connect(url, transports=self._transports, namespaces=[namespace], auth=auth)

    async def _note(self, name: str, *arguments: Any) -> None:
        await self._queue(name).put(list(arguments))

    def _queue(self, name: str) -> asyncio.Queue[list[Any]]:
        return self._queues.setdefault(name, asyncio.Queue())

    async def next(self, name: str) -> list[Any]:
        """The next event of a name: its arguments."""
        return await self._queue(name).get()

    def all(self, name: str) -> list[list[Any]]:
        """All events of a name that came."""
        queue = self._queue(name)
        return [queue.get_nowait() for _ in range(queue.qsize())]


def plain(value: Any) -> Any:
    """The value with bytes as JSON can hold them."""
    if isinstance(value, bytes):
        return {"bytes": list(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


async def python(url: str, how: str, restart: Restart) -> list[Any]:
    """The conversation by python-socketio."""
    seen: list[Any] = []
    transports = ["polling", "websocket"] if how == "upgrade" else [how]
    first, second = Heard(transports), Heard(transports)
    third, fourth = Heard(transports, ("/admin",)), Heard(transports, ("/unknown",))
    everybody = [first, second, third, fourth]

    def note(*what: Any) -> None:
        seen.append(plain(what))

    try:
        socket, other = first.client, second.client
        await first.connect(url, auth={"token": "abc"})
        note("welcome", *await first.next("welcome"))
        note("transport", socket.transport())

        await socket.emit("echo", (1, "two", {"three": [True, None]}, "ü😀"))
        note("echo-back", *await first.next("echo-back"))
        await socket.emit("echo", (b"\1\2\3", {"deep": [b""]}))
        note("echo-back", *await first.next("echo-back"))
        await socket.emit("echo", "x" * 200_000)
        note("long", await first.next("echo-back") == ["x" * 200_000])

        note("acknowledged", await socket.call("echo", {"a": 1}))
        note("acknowledged", await socket.call("echo", b"\7"))
        socket.on("question", lambda number, data: ("answer", number, data))
        await socket.emit("ask-me")
        note("you-said", *await first.next("you-said"))

        end = await socket.call("count-to", 500)
        numbers = first.all("number")
        note("numbers", end, len(numbers) == 500, numbers == [[number] for number in range(500)])

        await second.connect(url)
        note("welcome", *await second.next("welcome"))
        await socket.call("join", "room")
        await other.call("join", "room")
        await socket.call("say", ("room", "to all"))
        await other.call("say-to-others", ("room", "to the first"))
        await other.call("leave", "room")
        await socket.call("say", ("room", "to who is left"))
        await other.call("echo")
        heard = [[name, *each] for name, who in (("first", first), ("second", second)) for each in who.all("said")]
        note("heard", sorted(heard))

        with pytest.raises(socketio.exceptions.ConnectionError):
            await third.connect(url, "/admin", auth={"token": "wrong"})
        (error,) = await third.next("connect_error")
        note("refused", error["message"], error["data"])
        with pytest.raises(socketio.exceptions.ConnectionError):
            await fourth.connect(url, "/unknown")
        note("unknown", (await fourth.next("connect_error"))[0]["message"])

        await third.connect(url, "/admin", auth={"token": "open"})
        note("admin", *await third.next("greeting"))
        await third.client.emit("put-me-out", namespace="/admin")
        await third.next("disconnect")
        note("put out", "io server disconnect", socket.connected)
        await other.disconnect()

        first.all("disconnect")
        await restart()
        await first.next("disconnect")
        note("lost", "transport close")
        note("welcome", *await first.next("welcome"))
        note("acknowledged", await socket.call("echo", "again"))
        return seen
    finally:
        for each in everybody:
            await each.client.shutdown()


def expected(how: str) -> list[Any]:
    """What both clients must see."""
    return [
        ["welcome", {"token": "abc"}],
        ["transport", "polling" if how == "polling" else "websocket"],
        ["echo-back", 1, "two", {"three": [True, None]}, "ü😀"],
        ["echo-back", {"bytes": [1, 2, 3]}, {"deep": [{"bytes": []}]}],
        ["long", True],
        ["acknowledged", {"a": 1}],
        ["acknowledged", {"bytes": [7]}],
        ["you-said", ["answer", 1, {"bytes": [1, 2]}]],
        ["numbers", 500, True, True],
        ["welcome", {}],
        ["heard", [["first", "to all"], ["first", "to the first"], ["first", "to who is left"], ["second", "to all"]]],
        ["refused", "not you", {"code": 7}],
        ["unknown", "Invalid namespace"],
        ["admin", "hello", {"bytes": [0]}],
        ["put out", "io server disconnect", True],
        ["lost", "transport close"],
        ["welcome", {"token": "abc"}],
        ["acknowledged", "again"],
    ]


@pytest.mark.parametrize("how", ["polling", "websocket", "upgrade"])
@pytest.mark.parametrize("client", [javascript, python], ids=["javascript", "python"])
@pytest.mark.gen_test
async def test_a_client_has_its_conversation_and_comes_back_when_the_server_does(
    client: Callable[[str, str, Restart], Awaitable[list[Any]]], how: str
) -> None:
    async with serving() as place, asyncio.timeout(WITHIN):
        seen = await client(place.url, how, place.restart)

    assert seen == expected(how)
