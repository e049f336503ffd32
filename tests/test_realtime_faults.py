"""Faults that need several things at once: who dies while others come, who leaves while handlers work, who floods."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado.test
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port
from tornado.web import Application

from chat import nodes
from chat.commands import Account, Commands
from chat.connections import Connections
from chat.events import Event
from chat.refusals import Malformed
from eventstore.errors import LogUnavailable
from eventstore.leases import Leases
from eventstore.log import EventLog
from handlers.sockets import admission, endpoints
from handlers.sockets.audit_stream import AuditStream
from handlers.sockets.chat import ChatSockets, Options
from projections.models import ReadModels
from realtime.engine import Limits
from realtime.hub import Parcel
from realtime.links import READ_SIZE
from realtime.server import MAX_WAITING_EVENTS, Namespace, Server, Socket
from tests import tables
from tests.conformance.engine import Echo
from tests.conftest import NODE, SECRET, until
from tests.fronts import make_server
from tests.wire import PING, TEXT, Closed, Place, WebSocket, Wire, frame, own_place, own_wire

PATH = "/socket.io/"


class TlsWire(Wire):
    """Connections under TLS."""

    async def connect(
        self, port: int, receive_buffer: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, limit=receive_buffer or 1 << 20)
        self._writers.append(writer)
        return reader, writer


@pytest.fixture
def echo() -> Echo:
    return Echo(Limits())


@pytest.fixture
def tls_place(io_loop: IOLoop, echo: Echo) -> Iterator[Place]:
    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = Path(tornado.test.__file__).parent
    certificate.load_cert_chain(folder / "test.crt", folder / "test.key")
    server = make_server(echo.application(), tls=certificate)
    listening, port = bind_unused_port()
    server.add_socket(listening)
    yield Place(port)
    server.stop()
    io_loop.run_sync(server.close_all_connections)


@pytest.fixture
def tls_wire(io_loop: IOLoop, tls_place: Place) -> Iterator[TlsWire]:
    wire = TlsWire()
    yield wire
    io_loop.run_sync(wire.close)


@pytest.fixture
def server() -> Server:
    return Server(connect_timeout=30.0)


@pytest.fixture
def main(server: Server) -> Namespace:
    return server.namespace("/")


@pytest.fixture
def place(io_loop: IOLoop, server: Server, main: Namespace) -> Iterator[Place]:
    yield from own_place(io_loop, Application(server.routes(PATH)), PATH)
    io_loop.run_sync(server.close)


@pytest.fixture
def echo_place(io_loop: IOLoop, echo: Echo) -> Iterator[Place]:
    yield from own_place(io_loop, echo.application())


@pytest.fixture
def wire(io_loop: IOLoop, place: Place, echo_place: Place) -> Iterator[Wire]:
    yield from own_wire(io_loop)


async def connected(wire: Wire, place: Place) -> WebSocket:
    """A client in the main namespace."""
    websocket = await wire.websocket_session(place)
    await websocket.send("40")
    assert (await websocket.receive_text()).startswith("40{")
    return websocket


# --- Under TLS -------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_session_is_upgraded_under_tls_and_goes_on(tls_wire: TlsWire, tls_place: Place) -> None:
    session = await tls_wire.session(tls_place)
    websocket = await session.upgrade()

    await websocket.send("4one", "4two")

    assert await websocket.receive_many(2) == ["4one", "4two"]


@pytest.mark.gen_test
async def test_a_client_that_was_made_to_wait_under_tls_goes_on(
    tls_wire: TlsWire, tls_place: Place, echo: Echo
) -> None:
    websocket = await tls_wire.websocket_session(tls_place)
    await websocket.send("4before")
    assert await websocket.receive() == "4before"

    echo.opened[0].pause()
    await websocket.send("4meanwhile")
    await asyncio.sleep(0.05)
    assert "meanwhile" not in echo.heard
    echo.opened[0].resume()

    await websocket.send("4after")
    assert await websocket.receive_many(2) == ["4meanwhile", "4after"]


@pytest.mark.gen_test
async def test_the_last_words_reach_a_client_under_tls(tls_wire: TlsWire, tls_place: Place, echo: Echo) -> None:
    websocket = await tls_wire.websocket_session(tls_place)

    echo.opened[0].send(Parcel(["4goodbye"]))
    echo.opened[0].close("forced close")

    assert await websocket.receive() == "4goodbye"


# --- Who dies while others come and go -------------------------------------------------------------------------------


@pytest.fixture
def members(main: Namespace) -> list[Socket]:
    """The sockets that connected, all of them in one room."""
    found: list[Socket] = []

    @main.on_connect
    def connect(socket: Socket, auth: dict[str, Any]) -> None:
        found.append(socket)
        socket.join("room")

    return found


async def dies(member: Socket, websocket: WebSocket) -> None:
    """The client goes away, and the server has not noticed when this returns."""
    link = member._session.link
    assert link is not None
    link.stop_reading()
    websocket.abort()
    await asyncio.sleep(0.02)
    assert member.connected


@pytest.mark.gen_test
async def test_who_enters_a_room_while_its_last_member_dies_is_in_it(
    wire: Wire, place: Place, main: Namespace, members: list[Socket]
) -> None:
    last, newcomer = await connected(wire, place), await connected(wire, place)
    members[1].leave("room")
    await dies(members[0], last)

    # What is published finds the last member dead, and that in the turn in which somebody enters.
    main.emit("unheard", room="room")
    members[1].join("room")
    assert not members[0].connected

    main.emit("heard", room="room")
    assert await newcomer.receive() == '42["heard"]'


@pytest.mark.gen_test
async def test_who_is_found_dead_while_it_moves_is_in_no_room(
    wire: Wire, place: Place, main: Namespace, members: list[Socket]
) -> None:
    moves: list[Callable[[Socket], None]] = [lambda member: member.leave("room"), lambda member: member.join("other")]
    for move in moves:
        websocket = await connected(wire, place)
        await dies(members[-1], websocket)

        members[-1].emit("unheard")
        move(members[-1])

        assert not members[-1].connected
        assert members[-1].rooms == set()
        assert not any(main.has_listeners(room) for room in ("room", "other", None))
        assert members[-1]._session.rooms == set()


# --- Who leaves while handlers work ----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_who_leaves_and_returns_again_and_again_starts_no_more_handlers_than_it_may(
    wire: Wire, place: Place, main: Namespace
) -> None:
    go_on, at_work = asyncio.Event(), 0

    @main.on_connect
    async def connect(socket: Socket, auth: dict[str, Any]) -> None:
        nonlocal at_work
        at_work += 1
        await go_on.wait()

    websocket = await wire.websocket_session(place)
    pair = frame(TEXT, b"40") + frame(TEXT, b"41")
    visits = 10 * READ_SIZE // len(pair)
    await websocket.send_bytes(pair * visits)
    await until(lambda: at_work >= MAX_WAITING_EVENTS)
    await asyncio.sleep(0.05)
    some = at_work
    go_on.set()

    # What came in one read may exceed it, and all the rest waits until handlers are done.
    assert some <= 2 * READ_SIZE // len(pair)
    await until(lambda: at_work == visits)


@pytest.mark.gen_test
async def test_what_was_held_for_one_that_left_keeps_nobody_else_waiting(
    wire: Wire, place: Place, main: Namespace, members: list[Socket]
) -> None:
    websocket = await connected(wire, place)
    members[0].hold()
    main.emit("unheard", room="room", offset=1)
    await websocket.send("41", "40")
    assert (await websocket.receive_text()).startswith("40{")

    members[0].hold()
    main.emit("heard", room="room", offset=2)

    assert await websocket.receive() == '42["heard"]'


@pytest.mark.gen_test
async def test_an_answer_that_cannot_be_encoded_costs_nothing_of_what_came_with_it(
    wire: Wire, place: Place, main: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    @main.on_event("bad")
    def bad(socket: Socket) -> object:
        return object()

    @main.on_event("good")
    def good(socket: Socket) -> str:
        return "good"

    websocket = await connected(wire, place)
    await websocket.send_bytes(frame(TEXT, b'421["bad"]') + frame(TEXT, b'422["good"]'))

    assert await websocket.receive() == '432["good"]'


# --- Who floods ------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_request_full_of_packets_lets_others_have_their_turn(
    wire: Wire, place: Place, main: Namespace, server: Server
) -> None:
    session = await wire.session(place)
    # Each a refusal to send: what they are answered with comes to more than may wait.
    packets = ["40/x,"] * 150_000

    posting = asyncio.ensure_future(session.post(*packets))
    await until(lambda: server._engine.sessions[session.sid].waiting)
    assert not posting.done()

    await posting
    assert session.sid not in server._engine.sessions


@pytest.mark.gen_test
async def test_events_of_one_request_wait_in_it_rather_than_in_the_server(
    wire: Wire, place: Place, main: Namespace
) -> None:
    go_on = asyncio.Event()
    sockets: list[Socket] = []

    @main.on_event("slow")
    async def slow(socket: Socket) -> None:
        sockets.append(socket)
        await go_on.wait()

    session = await wire.session(place)
    await session.post("40")
    posting = asyncio.ensure_future(session.post(*['42["slow"]'] * 10_000))
    await until(lambda: sockets)
    await asyncio.sleep(0.05)

    inbox = sockets[0]._inbox
    assert inbox is not None
    assert len(inbox) < 100

    go_on.set()
    assert (await posting).text == "ok"
    await until(lambda: len(sockets) == 10_000)


@pytest.mark.gen_test
async def test_a_probe_that_does_not_read_takes_nothing_over(wire: Wire, echo_place: Place, echo: Echo) -> None:
    session = await wire.session(echo_place)
    websocket = await wire.websocket(echo_place, session.sid, receive_buffer=4096)
    websocket.pause_reading()
    await until(lambda: echo.opened[0]._probe)
    probe = echo.opened[0]._probe
    assert probe is not None
    while probe.backlog is None:
        await websocket.send_bytes(frame(PING, bytes(125)) * 50)
        await asyncio.sleep(0)

    # Were it taken over, the loop would be woken for ever by a descriptor that nobody writes to.
    await websocket.send("2probe", "5")

    await until(lambda: probe.link is None)
    assert echo.opened[0].transport == "polling"
    assert echo.opened[0].closed is None


# --- Who is taken for dead -------------------------------------------------------------------------------------------


ALICE = Account(1000, "alice")


def let_lapse(database: str) -> None:
    """Puts all leases back, as if nobody had been able to renew his for a minute."""
    with tables.connect(database) as connection:
        connection.execute("UPDATE node_leases SET renewed_at = renewed_at - interval '1 minute'")


@pytest.mark.gen_test
async def test_who_is_back_first_after_an_outage_takes_neither_itself_nor_others_for_dead(
    database: str, log: EventLog, models: ReadModels, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "RENEW_SECONDS", 0.05)
    own, other = Leases(database, NODE), Leases(database, "slower")
    for lease in (own, other):
        await lease.renew()
    await connections.open(ALICE, 1, "here", "c")
    await Connections(log, models, SECRET, "slower").open(ALICE, 1, "there", "c")
    await Connections(log, models, SECRET, "dead").open(ALICE, 1, "nowhere", "c")
    looks = 0

    async def open_nodes() -> list[str]:
        # The other one is back between the first look and the second.
        nonlocal looks
        looks += 1
        if looks == 2:
            await other.renew()
        return await models.presence.nodes()

    let_lapse(database)
    watching = asyncio.ensure_future(nodes.watch_others(own, connections, open_nodes))
    await until(lambda: looks >= 4)
    watching.cancel()

    assert sorted(await models.presence.nodes()) == ["slower", NODE]
    for lease in (own, other):
        await lease.close()


# --- Who comes in while other things happen --------------------------------------------------------------------------


AUDIT_KEY = "the auditors' key"
# As long as a message can be.
LONG = "x" * 4000


class House:
    """Chat over Socket.IO in this process, and somebody to write."""

    def __init__(self, log: EventLog, commands: Commands, connections: Connections, models: ReadModels) -> None:
        self.log, self.commands, self.models = log, commands, models
        self.server = Server(max_backlog=1 << 18)
        options = Options(SECRET, 3600, "new_message")
        self.chat = ChatSockets(self.server, log, commands, connections, models, options, lambda: None)
        AuditStream(self.server, log, AUDIT_KEY)
        self.tasks: list[asyncio.Task[None]] = []
        self.token = ""

    async def start(self) -> None:
        await self.chat.start()
        self.tasks = [asyncio.create_task(part()) for part in (self.chat.fanout.run, self.chat.registry.run)]
        self.token = await self.person("alice")

    async def stop(self) -> None:
        await self.chat.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def person(self, username: str) -> str:
        """Registers somebody; the token."""
        account = await self.commands.register(username, "Wond3rland!", "c")
        token, _ = await self.commands.generate_token(account, "c")
        return token

    async def write(self, *texts: str) -> None:
        """Sends Alice messages."""
        sender = await self.models.account_by_name("bob")
        if sender is None:
            await self.person("bob")
            sender = await self.models.account_by_name("bob")
        assert sender is not None
        await asyncio.gather(*(self.commands.send_direct_message(sender, "alice", text, "c") for text in texts))

    async def until_offline(self) -> None:
        """Returns once Alice is not online."""
        async with asyncio.timeout(10):
            while await self.models.presence.is_online(ALICE.account_id):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.01)


@pytest.fixture
def house(
    io_loop: IOLoop, log: EventLog, commands: Commands, connections: Connections, models: ReadModels
) -> Iterator[House]:
    made = House(log, commands, connections, models)
    io_loop.run_sync(made.start)
    yield made
    io_loop.run_sync(made.stop)


@pytest.fixture
def chat_place(io_loop: IOLoop, house: House) -> Iterator[Place]:
    yield from own_place(io_loop, Application(house.server.routes(PATH)), PATH)


@pytest.fixture
def chat_wire(io_loop: IOLoop, chat_place: Place) -> Iterator[Wire]:
    yield from own_wire(io_loop)


async def enters(wire: Wire, place: Place, namespace: str = "", **auth: object) -> WebSocket:
    """A client that has sent its CONNECT."""
    websocket = await wire.websocket_session(place)
    await websocket.send(f"40{namespace}{json.dumps(auth)}")
    return websocket


async def texts(websocket: WebSocket, count: int) -> list[Any]:
    """The next events: of each its second argument."""
    return [json.loads((await websocket.receive_text())[2:])[1] for _ in range(count)]


@pytest.mark.gen_test
async def test_who_leaves_while_it_is_registered_is_not_online_for_ever(
    chat_wire: Wire, chat_place: Place, house: House
) -> None:
    websocket = await enters(chat_wire, chat_place, token=house.token)
    await websocket.send("41")
    # What is answered behind them tells that both have been heard.
    await websocket.send("40/nowhere,")
    while not (await websocket.receive_text()).startswith("44/nowhere"):
        pass

    await until(lambda: [task for task in house.server._tasks if not task.done()] == [])
    assert len(house.chat.registry) == 0
    await house.until_offline()
    types = [event.type for event in await house.log.read(limit=100) if event.type.startswith("Connection")]
    assert types in (["ConnectionOpened", "ConnectionClosed"], [])


@pytest.mark.gen_test
async def test_of_two_that_recover_one_connection_at_once_one_is_left(
    chat_wire: Wire, chat_place: Place, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await enters(chat_wire, chat_place, token=house.token, recovery=True)
    pid = json.loads((await first.receive_text())[2:])["pid"]
    await texts(first, 1)
    first.abort()
    await house.write(*["missed"] * 20)

    missed, asked, go_on = house.models.messages.missed, asyncio.Event(), asyncio.Event()

    async def slow(*bounds: int) -> Any:
        monkeypatch.undo()
        asked.set()
        await go_on.wait()
        return await missed(*bounds)

    # The one that opened it first is still being sent what it missed when the other one opens it anew.
    monkeypatch.setattr(house.models.messages, "missed", slow)
    monkeypatch.setattr(admission, "_NEAR", 0)
    await enters(chat_wire, chat_place, token=house.token, recovery=True, pid=pid)
    await asked.wait()
    second = await enters(chat_wire, chat_place, token=house.token, recovery=True, pid=pid)
    assert [text["message"] for text in (await texts(second, 21))[1:]] == ["missed"] * 20
    await until(lambda: len(house.chat.registry) == 1)
    go_on.set()
    await until(lambda: not house.server._tasks)

    await until(lambda: len(house.server._engine.sessions) == 1)
    assert len(house.chat.registry) == 1
    assert (await second.receive_text()).startswith("40{")
    await house.write("on")
    assert (await texts(second, 1))[0]["message"] == "on"


@pytest.mark.gen_test
async def test_who_registers_while_the_fan_out_is_late_gets_nothing_from_before(
    chat_wire: Wire, chat_place: Place, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, asked, go_on = house.chat.fanout._patient_names, asyncio.Event(), asyncio.Event()
    # Somebody listens, or there would be nothing to be late with.
    listening = await enters(chat_wire, chat_place, token=house.token)
    assert (await listening.receive_text()).startswith("40{")
    assert "accepted the connection" in (await texts(listening, 1))[0]

    async def slow(wanted: list[Event]) -> Any:
        asked.set()
        await go_on.wait()
        return await names(wanted)

    monkeypatch.setattr(house.chat.fanout, "_patient_names", slow)
    await house.write("before")
    await asked.wait()
    websocket = await enters(chat_wire, chat_place, token=house.token)
    assert (await websocket.receive_text()).startswith("40{")
    assert "accepted the connection" in (await texts(websocket, 1))[0]
    await asyncio.sleep(0.05)
    go_on.set()

    await until(lambda: not house.server._tasks)
    await house.write("after")
    assert (await texts(websocket, 1))[0]["message"] == "after"


@pytest.mark.gen_test
async def test_an_opening_of_which_nobody_knows_whether_it_was_recorded_is_closed_again(
    chat_wire: Wire, chat_place: Place, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = house.log.append

    async def lost(*writes: Any, **options: Any) -> Any:
        await append(*writes, **options)
        monkeypatch.undo()
        raise LogUnavailable("the connection broke after the commit")

    monkeypatch.setattr(house.log, "append", lost)
    websocket = await enters(chat_wire, chat_place, token=house.token)

    assert isinstance(await websocket.receive(), Closed)
    await house.until_offline()


@pytest.mark.gen_test
async def test_long_messages_are_recovered_though_a_page_of_them_is_more_than_may_wait(
    chat_wire: Wire, chat_place: Place, house: House
) -> None:
    first = await enters(chat_wire, chat_place, token=house.token, recovery=True)
    pid = json.loads((await first.receive_text())[2:])["pid"]
    offset = json.loads((await first.receive_text())[2:])[-1]
    first.abort()
    await house.write(*[LONG] * 300)

    websocket = await enters(chat_wire, chat_place, token=house.token, recovery=True, pid=pid, offset=offset)

    assert [text["message"] for text in await texts(websocket, 300)] == [LONG] * 300
    assert (await websocket.receive_text()).startswith("40{")


@pytest.mark.gen_test
async def test_an_auditor_gets_long_events_though_a_page_of_them_is_more_than_may_wait(
    chat_wire: Wire, chat_place: Place, house: House
) -> None:
    await house.write(*[LONG] * 1000)

    websocket = await enters(chat_wire, chat_place, "/log,", key=AUDIT_KEY, since=0, types=["DirectMessageSent"])

    assert (await websocket.receive_text()).startswith("40/log,{")
    for _ in range(1000):
        assert LONG in await websocket.receive_text()


def test_a_binary_text_is_none() -> None:
    with pytest.raises(Malformed, match="message"):
        endpoints._encoded({"message": b"bytes"})
