"""The API of applications, with clients that speak Socket.IO 5 by hand: packets are compared as texts."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.web import Application

from realtime.server import Disconnected, Namespace, Refuse, Server, Socket
from realtime.socketio import RESERVED_EVENTS
from tests.conftest import until
from tests.wire import Closed, Place, PollingSession, WebSocket, Wire, own_place, own_wire

PATH = "/socket.io/"


@pytest.fixture
def server() -> Server:
    return Server(connect_timeout=30.0, max_backlog=1 << 18)


@pytest.fixture
def main(server: Server) -> Namespace:
    return server.namespace("/")


@pytest.fixture
def place(io_loop: IOLoop, server: Server, main: Namespace) -> Iterator[Place]:
    yield from own_place(io_loop, Application(server.routes(PATH)), PATH)
    io_loop.run_sync(server.close)


@pytest.fixture
def wire(io_loop: IOLoop, place: Place) -> Iterator[Wire]:
    """Made after the server, and so ended before it: a server that closes waits for its clients."""
    yield from own_wire(io_loop)


@pytest.fixture
def sockets(main: Namespace) -> list[Socket]:
    """The sockets that connected, in order."""
    found: list[Socket] = []

    @main.on_connect
    def connect(socket: Socket, auth: dict[str, Any]) -> None:
        found.append(socket)

    return found


class Client:
    """A client that speaks by hand, over a WebSocket."""

    def __init__(self, websocket: WebSocket) -> None:
        self.websocket = websocket

    async def send(self, *packets: str | bytes) -> None:
        """Sends packets of Socket.IO, and attachments."""
        await self.websocket.send(*("4" + each if isinstance(each, str) else each for each in packets))

    async def receive(self) -> str | bytes | Closed:
        """The next packet of Socket.IO, attachment, or the end."""
        message = await self.websocket.receive()
        if isinstance(message, str):
            assert message[0] == "4", message
            return message[1:]
        return message

    async def receive_many(self, count: int) -> list[str | bytes | Closed]:
        return [await self.receive() for _ in range(count)]

    async def enter(self, packet: str = "0") -> str:
        """Connects to a namespace, the main one by default; the sid that the client is given."""
        await self.send(packet)
        answer = await self.receive()
        assert isinstance(answer, str)
        assert answer.startswith(packet.partition("{")[0])
        return str(json.loads(answer[answer.index("{") :])["sid"])

    async def is_closed(self) -> bool:
        """Whether the server ends the connection, with nothing before."""
        return isinstance(await self.receive(), Closed)


async def client(wire: Wire, place: Place, *, receive_buffer: int | None = None) -> Client:
    """A client that is in no namespace yet."""
    return Client(await wire.websocket_session(place, receive_buffer))


async def connected(wire: Wire, place: Place, packet: str = "0") -> Client:
    """A client that is in a namespace."""
    made = await client(wire, place)
    await made.enter(packet)
    return made


# --- Connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_gets_an_id_of_its_own_in_each_namespace(wire: Wire, server: Server, place: Place) -> None:
    server.namespace("/admin")
    opened = await wire.websocket(place)
    engine_sid = json.loads((await opened.receive_text())[1:])["sid"]
    someone = Client(opened)

    sids = {await someone.enter("0"), await someone.enter("0/admin,")}

    # The session's id is a secret, since it is all that one needs to take a polling session over.
    assert len({*sids, engine_sid}) == 3


@pytest.mark.parametrize(
    ("packet", "auth"),
    [("0", {}), ('0{"token":"abc","n":[1,null]}', {"token": "abc", "n": [1, None]}), ("0{}", {}), ("0/,", {})],
)
@pytest.mark.gen_test
async def test_the_application_sees_what_the_client_gives_at_connecting(
    wire: Wire, main: Namespace, place: Place, packet: str, auth: dict[str, Any]
) -> None:
    seen: list[tuple[dict[str, Any], str, bool]] = []

    @main.on_connect
    def connect(socket: Socket, auth: dict[str, Any]) -> None:
        seen.append((auth, socket.address, socket.connected))

    await (await client(wire, place)).enter(packet if packet != "0/," else "0")

    assert seen == [(auth, "127.0.0.1", False)]


@pytest.mark.gen_test
async def test_a_namespace_that_nobody_made_is_refused_and_the_connection_stays(wire: Wire, place: Place) -> None:
    someone = await client(wire, place)

    await someone.send("0/random")

    assert await someone.receive() == '4/random,{"message":"Invalid namespace"}'
    await someone.enter()


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (Refuse("not you"), '{"message":"not you"}'),
        (Refuse("not you", {"code": 7, "why": ["x"]}), '{"message":"not you","data":{"code":7,"why":["x"]}}'),
        (Refuse("ü"), '{"message":"ü"}'),
        (KeyError("secret"), '{"message":"Internal error"}'),
    ],
    ids=["a refusal", "with data", "beyond ASCII", "a fault"],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.gen_test
async def test_a_client_that_is_refused_is_told_why(
    wire: Wire, server: Server, place: Place, refusal: Exception, told: str, kind: str
) -> None:
    gone: list[str] = []
    admin = server.namespace("/admin")

    def refuse(socket: Socket, auth: dict[str, Any]) -> None:
        socket.emit("you should not see this")
        raise refusal

    async def refuse_later(socket: Socket, auth: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        refuse(socket, auth)

    admin.on_connect(refuse if kind == "sync" else refuse_later)

    @admin.on_disconnect
    def disconnect(socket: Socket, reason: str) -> None:
        gone.append(reason)

    someone = await client(wire, place)
    await someone.send("0/admin,")

    assert await someone.receive() == f"4/admin,{told}"
    # It may try again, or go elsewhere.
    await someone.send("0/admin,")
    assert await someone.receive() == f"4/admin,{told}"
    await someone.enter()
    assert gone == []
    assert admin.sockets() == []


@pytest.mark.gen_test
async def test_what_a_connect_handler_emits_comes_after_the_connect_packet(
    wire: Wire, main: Namespace, place: Place
) -> None:
    @main.on_connect
    async def connect(socket: Socket, auth: dict[str, Any]) -> None:
        socket.emit("early", 1)
        await asyncio.sleep(0.01)
        socket.join("room")
        main.emit("to the room", room="room")
        socket.emit("early", 2)

    someone = await client(wire, place)
    await someone.send("0")

    first = await someone.receive()
    assert isinstance(first, str)
    assert first.startswith('0{"sid":"')
    rest = await someone.receive_many(2)
    assert '2["early",1]' in rest
    assert rest.index('2["early",1]') == 0 or rest[0] == '2["to the room"]'


@pytest.mark.gen_test
async def test_events_that_come_while_a_client_is_let_in_are_handled_after_it(
    wire: Wire, main: Namespace, place: Place
) -> None:
    steps: list[str] = []

    @main.on_connect
    async def connect(socket: Socket, auth: dict[str, Any]) -> None:
        await asyncio.sleep(0.05)
        steps.append("connected")

    @main.on_event("hello")
    def hello(socket: Socket) -> None:
        steps.append("hello")

    someone = await client(wire, place)
    await someone.send("0", '2["hello"]')
    await until(lambda: "hello" in steps)

    assert steps == ["connected", "hello"]


@pytest.mark.gen_test
async def test_connecting_twice_closes_the_connection(wire: Wire, place: Place) -> None:
    someone = await connected(wire, place)

    await someone.send("0")

    assert await someone.is_closed()


WITHOUT_CONNECT = [
    '2["hello"]',
    "31[]",
    '51-["hello",{"_placeholder":true,"num":0}]',
    "1",
    b"\1",
    '4{"message":"no"}',
    "abc",
    "",
    "2",
]


@pytest.mark.parametrize("packet", WITHOUT_CONNECT)
@pytest.mark.gen_test
async def test_anything_but_connect_from_a_client_in_no_namespace_closes_the_connection(
    wire: Wire, place: Place, packet: str | bytes
) -> None:
    someone = await client(wire, place)

    await someone.send(packet, b"\1")

    assert await someone.is_closed()


@pytest.mark.parametrize("packet", ['2/admin,["hello"]', "3/admin,1[]"])
@pytest.mark.gen_test
async def test_a_packet_to_a_namespace_that_was_never_connected_closes_the_connection(
    wire: Wire, server: Server, place: Place, packet: str
) -> None:
    server.namespace("/admin")
    someone = await connected(wire, place)

    await someone.send(packet)

    assert await someone.is_closed()
    assert server.statistics["closed"] == {"parse error": 1}


@pytest.mark.parametrize(
    "packet",
    ["2{}", "2[]", '2abc["hello"]', '2["hello"', "7", "x", "0[]", b"\1", '511-["hello"]', "5-[]", "61-[]"]
    + [f'2["{name}"]' for name in sorted(RESERVED_EVENTS)],
)
@pytest.mark.gen_test
async def test_what_is_no_packet_closes_the_connection(
    wire: Wire, server: Server, main: Namespace, place: Place, packet: str | bytes
) -> None:
    reasons: list[str] = []
    main.on_disconnect(lambda _socket, reason: reasons.append(reason))
    someone = await connected(wire, place)

    await someone.send(packet)

    assert await someone.is_closed()
    assert reasons == ["parse error"]


@pytest.mark.gen_test
async def test_a_text_in_place_of_an_attachment_closes_the_connection(wire: Wire, place: Place) -> None:
    someone = await connected(wire, place)

    await someone.send('51-["hello",{"_placeholder":true,"num":0}]', '2["hello"]')

    assert await someone.is_closed()


# --- Without connecting ----------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(io_loop: IOLoop) -> Iterator[tuple[Server, Place]]:
    """A server with long pings that waits 0.4 s for a client to connect."""
    server = Server(connect_timeout=0.4)
    server.namespace("/")
    for place in own_place(io_loop, Application(server.routes(PATH)), PATH):
        yield server, place


@pytest.mark.gen_test
async def test_a_connection_that_enters_no_namespace_is_closed(wire: Wire, impatient: tuple[Server, Place]) -> None:
    server, place = impatient
    by_websocket = await client(wire, place)
    polling = await wire.session(place)

    assert await by_websocket.is_closed()
    response = await polling.poll()
    assert response.status == 400 or response.text == "1"
    await until(lambda: server.statistics["closed"] == {"connect timeout": 2})


@pytest.mark.gen_test
async def test_a_connection_that_was_refused_everywhere_is_closed_too(
    wire: Wire, impatient: tuple[Server, Place]
) -> None:
    server, place = impatient

    @server.namespace("/").on_connect
    def refuse(socket: Socket, auth: dict[str, Any]) -> None:
        raise Refuse("no")

    someone = await client(wire, place)
    await someone.send("0", "0/random")

    assert await someone.receive_many(2) == ['4{"message":"no"}', '4/random,{"message":"Invalid namespace"}']
    assert await someone.is_closed()


@pytest.mark.gen_test
async def test_a_connection_that_is_in_a_namespace_stays(wire: Wire, impatient: tuple[Server, Place]) -> None:
    server, place = impatient
    server.namespace("/").on_event("ping-me")(lambda _socket: "here")
    someone = await connected(wire, place)

    await asyncio.sleep(0.6)
    await someone.send('20["ping-me"]')

    assert await someone.receive() == '30["here"]'


# --- Events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "acknowledged"),
    [
        (None, "[]"),
        ("one", '["one"]'),
        (("two", 2), '["two",2]'),
        ((), "[]"),
        ([1, 2], "[[1,2]]"),
        (False, "[false]"),
        ({"z": 1, "a": None}, '[{"z":1,"a":null}]'),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.gen_test
async def test_what_a_handler_returns_acknowledges_the_event(
    wire: Wire, main: Namespace, place: Place, result: object, acknowledged: str, kind: str
) -> None:
    async def later(socket: Socket) -> object:
        await asyncio.sleep(0)
        return result

    main.on_event("ask")(later if kind == "async" else lambda _socket: result)
    someone = await connected(wire, place)

    await someone.send('2["ask"]', '20["ask"]', '2123456789["ask"]')

    assert await someone.receive_many(2) == [f"30{acknowledged}", f"3123456789{acknowledged}"]


@pytest.mark.gen_test
async def test_bytes_travel_both_ways_in_events_and_acknowledgements(wire: Wire, main: Namespace, place: Place) -> None:
    @main.on_event("bytes")
    def give_back(socket: Socket, *arguments: Any) -> tuple[Any, ...]:
        assert arguments == (b"\1\2", {"deep": [b""]})
        socket.emit("back", *arguments)
        return arguments

    someone = await connected(wire, place)
    await someone.send(
        '52-7["bytes",{"_placeholder":true,"num":0},{"deep":[{"_placeholder":true,"num":1}]}]', b"\1\2", b""
    )

    assert await someone.receive_many(6) == [
        '52-["back",{"_placeholder":true,"num":0},{"deep":[{"_placeholder":true,"num":1}]}]',
        b"\1\2",
        b"",
        '62-7[{"_placeholder":true,"num":0},{"deep":[{"_placeholder":true,"num":1}]}]',
        b"\1\2",
        b"",
    ]


@pytest.mark.gen_test
async def test_slow_handlers_of_a_socket_run_in_order_and_those_of_others_beside_them(
    wire: Wire, main: Namespace, place: Place
) -> None:
    done: list[tuple[str, int]] = []
    released: dict[str, asyncio.Event] = {"a": asyncio.Event(), "b": asyncio.Event()}

    @main.on_event("work")
    async def work(socket: Socket, name: str, number: int) -> int:
        if number % 2 == 0:
            await released[name].wait()
        done.append((name, number))
        return number

    first, second = await connected(wire, place), await connected(wire, place)
    for number in range(6):
        await first.send(f'2{number}["work","a",{number}]')
        await second.send(f'2{number}["work","b",{number}]')
    released["b"].set()

    assert await second.receive_many(6) == [f"3{number}[{number}]" for number in range(6)]
    assert [name for name, _ in done] == ["b"] * 6
    released["a"].set()
    assert await first.receive_many(6) == [f"3{number}[{number}]" for number in range(6)]
    assert done[6:] == [("a", number) for number in range(6)]


@pytest.mark.gen_test
async def test_handlers_that_wait_and_those_that_do_not_keep_one_order(
    wire: Wire, main: Namespace, place: Place
) -> None:
    seen: list[int] = []

    @main.on_event("slow")
    async def slow(socket: Socket, number: int) -> None:
        await asyncio.sleep(0.01)
        seen.append(number)

    main.on_event("quick")(lambda _socket, number: seen.append(number))
    someone = await connected(wire, place)

    await someone.send(*(f'2["{"slow" if number % 3 == 0 else "quick"}",{number}]' for number in range(40)))
    await until(lambda: len(seen) == 40)

    assert seen == list(range(40))


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.gen_test
async def test_a_handler_that_fails_is_logged_and_the_socket_goes_on(
    wire: Wire, main: Namespace, place: Place, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(socket: Socket) -> None:
        raise ValueError("what happened")

    async def fail_later(socket: Socket) -> None:
        await asyncio.sleep(0)
        fail(socket)

    main.on_event("fail")(fail if kind == "sync" else fail_later)
    main.on_event("ask")(lambda _socket: "fine")
    someone = await connected(wire, place)

    await someone.send('21["fail"]', '22["ask"]')

    assert await someone.receive() == '32["fine"]'
    assert "what happened" in capsys.readouterr().out


@pytest.mark.gen_test
async def test_an_event_that_nobody_handles_does_nothing(wire: Wire, main: Namespace, place: Place) -> None:
    main.on_event("ask")(lambda _socket: "fine")
    someone = await connected(wire, place)

    await someone.send('21["unknown"]', "2[5]", '23["ask"]')

    assert await someone.receive() == '33["fine"]'


@pytest.mark.parametrize("packet", ['2["ask","too","many"]', '21["ask","too","many"]'])
@pytest.mark.gen_test
async def test_arguments_that_do_not_fit_a_handler_harm_nobody(
    wire: Wire, main: Namespace, place: Place, packet: str
) -> None:
    main.on_event("ask")(lambda _socket: "fine")
    someone = await connected(wire, place)

    await someone.send(packet, '22["ask"]')

    assert await someone.receive() == '32["fine"]'


@pytest.mark.gen_test
async def test_data_nested_deeply_harm_nobody(wire: Wire, main: Namespace, place: Place) -> None:
    main.on_event("echo")(lambda _socket, data: data)
    for depth in (100, 800, 930, 960, 990, 5000):
        deep, other = await connected(wire, place), await connected(wire, place)
        await deep.send(f'21["echo",{"[" * depth}{"]" * depth}]')
        await deep.send(f'51-2["echo",{"[" * depth}{{"_placeholder":true,"num":0}}{"]" * depth}]', b"\1")
        await other.send('23["echo","fine"]')
        assert await other.receive() == '33["fine"]'


@pytest.mark.parametrize("name", sorted(RESERVED_EVENTS))
def test_names_that_are_the_libraries_own_cannot_be_used(main: Namespace, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        main.emit(name)
    with pytest.raises(ValueError, match=name):
        main.on_event(name)


@pytest.mark.gen_test
async def test_nor_by_a_socket(wire: Wire, sockets: list[Socket], place: Place) -> None:
    await connected(wire, place)

    with pytest.raises(ValueError, match="disconnect"):
        sockets[0].emit("disconnect")
    with pytest.raises(ValueError, match="connect_error"):
        await sockets[0].call("connect_error")


@pytest.mark.parametrize("name", ["admin", "", "/a,b"])
def test_a_namespace_begins_with_a_slash_and_has_no_comma(server: Server, name: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        server.namespace(name)


# --- Calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_call_returns_what_the_client_acknowledges(wire: Wire, sockets: list[Socket], place: Place) -> None:
    someone = await connected(wire, place)

    calls = [asyncio.create_task(sockets[0].call("ask", number, b"\0" * number)) for number in range(2)]
    assert await someone.receive_many(3) == [
        '51-1["ask",0,{"_placeholder":true,"num":0}]',
        b"",
        '51-2["ask",1,{"_placeholder":true,"num":0}]',
    ]
    assert await someone.receive() == b"\0"
    # In another order than they were asked in, the first of them with bytes.
    await someone.send('61-2["b",{"_placeholder":true,"num":0}]', b"\7", '31["a"]')

    assert await asyncio.gather(*calls) == [["a"], ["b", b"\7"]]


@pytest.mark.gen_test
async def test_a_call_that_is_not_acknowledged_times_out(wire: Wire, sockets: list[Socket], place: Place) -> None:
    someone = await connected(wire, place)

    with pytest.raises(TimeoutError):
        await sockets[0].call("ask", timeout=0.05)

    # What comes too late, or was never asked for, does no harm.
    await someone.send("31[]", "399[]", "30[]")
    assert await someone.receive() == '21["ask"]'
    call = asyncio.create_task(sockets[0].call("again"))
    assert await someone.receive() == '22["again"]'
    await someone.send('32["fine"]')
    assert await call == ["fine"]


@pytest.mark.gen_test
async def test_a_call_ends_with_the_connection(wire: Wire, sockets: list[Socket], place: Place) -> None:
    someone = await connected(wire, place)
    call = asyncio.create_task(sockets[0].call("ask"))
    assert await someone.receive() == '21["ask"]'

    someone.websocket.abort()

    with pytest.raises(Disconnected):
        await call


@pytest.mark.gen_test
async def test_a_call_to_a_client_that_is_gone_ends_at_once(wire: Wire, sockets: list[Socket], place: Place) -> None:
    someone = await connected(wire, place)
    someone.websocket.abort()
    await until(lambda: not sockets[0].connected)

    with pytest.raises(Disconnected):
        async with asyncio.timeout(2):
            await sockets[0].call("ask", timeout=5)


@pytest.mark.gen_test
async def test_a_handler_may_call_its_own_client(wire: Wire, main: Namespace, place: Place) -> None:
    @main.on_event("ask")
    async def ask(socket: Socket) -> list[Any]:
        return await socket.call("what?")

    someone = await connected(wire, place)
    await someone.send('25["ask"]')

    assert await someone.receive() == '21["what?"]'
    await someone.send('31["this"]')
    assert await someone.receive() == '35[["this"]]'


# --- Rooms -----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_room_s_events_reach_its_members_but_the_one_to_skip(
    wire: Wire, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    clients = [await connected(wire, place) for _ in range(4)]
    for socket in sockets[:3]:
        socket.join("room")

    main.emit("one", 1, room="room")
    main.emit("two", room="room", skip=sockets[1])
    main.emit("everybody")
    main.emit("others", skip=sockets[0])
    main.emit("nobody", room="no such room")
    main.emit("not a member", room="room", skip=sockets[3])

    everything = ['2["one",1]', '2["two"]', '2["everybody"]', '2["others"]', '2["not a member"]']
    assert await clients[0].receive_many(4) == [e for e in everything if "others" not in e]
    assert await clients[1].receive_many(4) == [e for e in everything if "two" not in e]
    assert await clients[2].receive_many(5) == everything
    assert await clients[3].receive_many(2) == ['2["everybody"]', '2["others"]']


@pytest.mark.gen_test
async def test_who_leaves_a_room_gets_what_was_sent_before_and_nothing_after(
    wire: Wire, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    someone = await connected(wire, place)
    (socket,) = sockets
    socket.join("a")
    socket.join("b")
    assert socket.rooms == {"a", "b"}

    main.emit("before", room="a")
    socket.leave("a")
    main.emit("after", room="a")
    main.emit("still", room="b")
    socket.join("a")
    socket.join("a")
    main.emit("back", room="a")
    socket.leave("never joined")

    assert await someone.receive_many(3) == ['2["before"]', '2["still"]', '2["back"]']
    assert socket.rooms == {"a", "b"}


@pytest.mark.gen_test
async def test_rooms_of_one_name_in_two_namespaces_are_two(
    wire: Wire, server: Server, main: Namespace, place: Place
) -> None:
    admin = server.namespace("/admin")
    for namespace in (main, admin):
        namespace.on_connect(lambda socket, _auth: socket.join("room"))
    someone = await connected(wire, place)
    await someone.enter("0/admin,")

    main.emit("one", room="room")
    admin.emit("two", room="room")
    admin.emit("bytes", b"\1", room="room")

    assert await someone.receive_many(4) == [
        '2["one"]',
        '2/admin,["two"]',
        '51-/admin,["bytes",{"_placeholder":true,"num":0}]',
        b"\1",
    ]


@pytest.mark.gen_test
async def test_polling_clients_and_websockets_share_rooms(
    wire: Wire, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    by_websocket = await connected(wire, place)
    polling = await wire.session(place)
    await polling.post("40")
    assert (await polling.packets())[0].startswith("40{")
    for socket in sockets:
        socket.join("room")

    for number in range(3):
        main.emit("event", number, b"\1", room="room")

    text = '51-["event",%d,{"_placeholder":true,"num":0}]'
    assert await by_websocket.receive_many(6) == [each for number in range(3) for each in (text % number, b"\1")]
    assert await polling.gather(6) == [each for number in range(3) for each in ("4" + text % number, "bAQ==")]


@pytest.mark.gen_test
async def test_a_room_is_forgotten_with_its_last_member(
    wire: Wire, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    await connected(wire, place)
    leaving = await connected(wire, place)
    for socket in sockets:
        socket.join("room")
    assert main.sockets("room") == sockets

    sockets[0].leave("room")
    assert main.has_listeners("room")
    leaving.websocket.abort()

    await until(lambda: not main.has_listeners("room"))
    assert main.sockets("room") == []
    assert main.sockets() == sockets[:1]


# --- The end ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends(main: Namespace) -> list[tuple[Socket, str]]:
    """Who went, and why."""
    found: list[tuple[Socket, str]] = []
    main.on_disconnect(lambda socket, reason: found.append((socket, reason)))
    return found


ENDS: dict[str, tuple[Callable[[Client], Any], str]] = {
    "a packet": (lambda someone: someone.send("1"), "client namespace disconnect"),
    "a close packet": (lambda someone: someone.websocket.send("1"), "transport close"),
    "a reset": (lambda someone: _call(someone.websocket.abort), "transport close"),
    "a broken packet": (lambda someone: someone.send("x"), "parse error"),
}


async def _call(action: Callable[[], None]) -> None:
    action()


@pytest.mark.parametrize(("end", "reason"), ENDS.values(), ids=list(ENDS))
@pytest.mark.gen_test
async def test_the_application_hears_once_that_a_client_went_and_why(
    wire: Wire,
    main: Namespace,
    sockets: list[Socket],
    ends: list[tuple[Socket, str]],
    place: Place,
    end: Callable[[Client], Any],
    reason: str,
) -> None:
    someone = await connected(wire, place)
    (socket,) = sockets
    socket.join("room")

    await end(someone)

    await until(lambda: ends)
    assert ends == [(socket, reason)]
    assert not socket.connected
    assert socket.rooms == set()
    main.emit("nobody", room="room")
    socket.emit("nobody")
    socket.join("room")
    assert not main.has_listeners("room")
    someone.websocket.abort()
    await asyncio.sleep(0.02)
    assert len(ends) == 1


@pytest.mark.gen_test
async def test_a_client_that_left_a_namespace_stays_connected_and_may_come_back(
    wire: Wire, server: Server, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    main.on_event("ask")(lambda _socket: "fine")
    server.namespace("/admin").on_event("ask")(lambda _socket: "admin")
    someone = await connected(wire, place)
    await someone.enter("0/admin,")

    # What was sent before the client knew, or just after, is no fault.
    await someone.send("1", '21["ask"]', '2/admin,2["ask"]')
    assert await someone.receive() == '3/admin,2["admin"]'
    await someone.enter()
    await someone.send('23["ask"]')
    assert await someone.receive() == '33["fine"]'
    assert [socket.connected for socket in sockets] == [False, True]


@pytest.mark.gen_test
async def test_a_socket_that_is_disconnected_is_told_so_and_its_connection_stays(
    wire: Wire, sockets: list[Socket], ends: list[tuple[Socket, str]], place: Place
) -> None:
    someone = await connected(wire, place)

    sockets[0].emit("last")
    sockets[0].disconnect()
    sockets[0].emit("too late")

    assert await someone.receive_many(2) == ['2["last"]', "1"]
    assert [reason for _, reason in ends] == ["server namespace disconnect"]
    await someone.send('2["sent before it knew"]')
    await someone.enter()


@pytest.mark.gen_test
async def test_a_socket_may_be_disconnected_together_with_its_connection(
    wire: Wire, server: Server, sockets: list[Socket], ends: list[tuple[Socket, str]], place: Place
) -> None:
    someone = await connected(wire, place)

    sockets[0].emit("last")
    sockets[0].disconnect(close=True)

    assert await someone.receive_many(3) == ['2["last"]', "1", Closed(1000)]
    assert [reason for _, reason in ends] == ["server namespace disconnect"]
    assert server.statistics["closed"] == {"forced close": 1}


@pytest.mark.gen_test
async def test_a_handler_may_disconnect_its_own_client(
    wire: Wire, main: Namespace, ends: list[tuple[Socket, str]], place: Place
) -> None:
    @main.on_event("leave")
    def leave(socket: Socket) -> None:
        socket.disconnect(close=True)

    heard: list[str] = []
    main.on_event("more")(lambda _socket: heard.append("more"))
    someone = await connected(wire, place)
    await someone.send('21["leave"]', '2["more"]')

    assert await someone.receive() == "1"
    assert await someone.is_closed()
    assert heard == []
    assert len(ends) == 1


@pytest.mark.gen_test
async def test_a_connect_handler_may_disconnect_its_client(
    wire: Wire, main: Namespace, ends: list[tuple[Socket, str]], place: Place
) -> None:
    @main.on_connect
    async def connect(socket: Socket, auth: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        socket.disconnect(close=True)

    someone = await client(wire, place)
    await someone.send("0")

    assert await someone.is_closed()
    assert ends == []
    assert main.sockets() == []


@pytest.mark.gen_test
async def test_a_client_that_goes_while_it_is_let_in_is_never_a_member(
    wire: Wire, server: Server, main: Namespace, ends: list[tuple[Socket, str]], place: Place
) -> None:
    steps: list[str] = []
    may_go_on = asyncio.Event()

    @main.on_connect
    async def connect(socket: Socket, auth: dict[str, Any]) -> None:
        steps.append("begun")
        await may_go_on.wait()
        socket.join("room")
        steps.append("ended")

    someone = await client(wire, place)
    await someone.send("0")
    await until(lambda: steps == ["begun"])
    someone.websocket.abort()
    await until(lambda: server.statistics["open"] == 0)
    may_go_on.set()

    await until(lambda: steps == ["begun", "ended"])
    assert not main.has_listeners("room")
    assert main.sockets() == []
    assert ends == []


@pytest.mark.gen_test
async def test_a_server_that_closes_says_so_by_the_transport_alone(
    wire: Wire, server: Server, sockets: list[Socket], ends: list[tuple[Socket, str]], place: Place
) -> None:
    someone = await connected(wire, place)
    sockets[0].emit("last")

    closing = asyncio.create_task(server.close())

    # A DISCONNECT packet would keep clients from coming back.
    assert await someone.receive_many(2) == ['2["last"]', Closed(1001)]
    someone.websocket.abort()
    await closing
    assert [reason for _, reason in ends] == ["server shutting down"]


# --- Too much --------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_that_floods_a_slow_handler_waits_and_nothing_is_lost(
    wire: Wire, server: Server, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    handled: list[int] = []
    go_on = asyncio.Event()

    @main.on_event("work")
    async def work(socket: Socket, number: int, ballast: str) -> None:
        await go_on.wait()
        handled.append(number)

    someone = await connected(wire, place)
    other = await connected(wire, place)
    total = 3000

    async def flood() -> None:
        for number in range(total):
            await someone.send(f'2["work",{number},"{"x" * 10_000}"]')

    flooding = asyncio.create_task(flood())
    session = sockets[0]._session
    await until(lambda: session.is_paused)
    await asyncio.sleep(0.2)
    # 30 MB are on their way; what the server has taken of them is a few events, the rest waits at the client.
    gc.collect()
    assert not flooding.done()
    assert len(sockets[0]._inbox or ()) < 100
    await other.send('21["nobody"]')
    main.emit("hello", skip=sockets[0])
    assert await other.receive() == '2["hello"]'

    go_on.set()
    await flooding
    await until(lambda: len(handled) == total)
    assert handled == list(range(total))


@pytest.mark.gen_test
async def test_a_polling_client_that_floods_a_slow_handler_waits_for_its_answer(
    wire: Wire, main: Namespace, place: Place
) -> None:
    handled: list[int] = []
    go_on = asyncio.Event()

    @main.on_event("work")
    async def work(socket: Socket, number: int) -> None:
        await go_on.wait()
        handled.append(number)

    session: PollingSession = await wire.session(place)
    await session.post("40")
    posting = asyncio.create_task(session.post(*(f'42["work",{number}]' for number in range(100))))
    await asyncio.sleep(0.1)
    assert not posting.done()

    go_on.set()

    assert (await posting).status == 200
    await until(lambda: len(handled) == 100)
    assert handled == list(range(100))


@pytest.mark.parametrize("kind", ["websocket", "polling"])
@pytest.mark.gen_test
async def test_a_client_that_does_not_read_is_closed_and_nobody_else_is_disturbed(
    wire: Wire,
    server: Server,
    main: Namespace,
    sockets: list[Socket],
    ends: list[tuple[Socket, str]],
    place: Place,
    kind: str,
) -> None:
    if kind == "websocket":
        slow = await client(wire, place, receive_buffer=4096)
        await slow.enter()
        slow.websocket.pause_reading()
    else:
        polling = await wire.session(place)
        await polling.post("40")
    other = await connected(wire, place)
    ballast = "x" * 10_000

    sent = 0
    while not ends:
        main.emit("event", sent, ballast)
        assert await other.receive() == f'2["event",{sent},"{ballast}"]'
        sent += 1
        assert sent < 2000, "nothing bounds what waits for the client"

    assert ends == [(sockets[0], "backlog")]
    assert server.statistics["closed"] == {"backlog": 1}
    assert server.statistics["open"] == 1
    main.emit("after")
    assert await other.receive() == '2["after"]'


@pytest.mark.gen_test
async def test_a_client_that_reads_slowly_gets_every_byte_in_order(
    wire: Wire, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    slow = await client(wire, place, receive_buffer=4096)
    await slow.enter()
    slow.websocket.pause_reading()
    # More than sockets take at once, less than the bound.
    events = [f'2["event",{number},"{"x" * (number * 37 % 5000)}"]' for number in range(80)]
    for number in range(80):
        if number % 3:
            main.emit("event", number, "x" * (number * 37 % 5000))
        else:
            sockets[0].emit("event", number, "x" * (number * 37 % 5000))
        await asyncio.sleep(0)
    assert not sockets[0]._session.closed

    slow.websocket.resume_reading()

    assert await slow.receive_many(80) == events
    await sockets[0].drained()


@pytest.mark.gen_test
async def test_the_statistics_tell_what_happened(
    wire: Wire, server: Server, main: Namespace, sockets: list[Socket], place: Place
) -> None:
    first, second = await connected(wire, place), await connected(wire, place)
    before = server.statistics

    main.emit("event")
    await first.receive()
    await second.receive()
    first.websocket.abort()
    await until(lambda: server.statistics["open"] == 1)

    after = server.statistics
    assert (after["opened"], after["closed"]) == (2, {"transport close": 1})
    assert after["delivered"] - before["delivered"] == 2
    assert after["delivered_bytes"] - before["delivered_bytes"] == 2 * len('??42["event"]')
