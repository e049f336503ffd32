"""Engine.IO 4 over WebSocket, and the upgrade to it, against a server that echoes.

Pings are 25 s apart, so nothing here closes by a ping timeout.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from realtime import engine as engine_module
from realtime.engine import Limits
from realtime.engineio import MESSAGE
from realtime.hub import Parcel
from tests.conformance.engine import Echo
from tests.conftest import until
from tests.wire import (
    ACCEPTED,
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    Closed,
    Frame,
    Place,
    PollingSession,
    Rejected,
    WebSocket,
    Wire,
    close_payload,
    fragments,
    frame,
    own_place,
    own_wire,
)

PROTOCOL_ERROR, INVALID_DATA, POLICY, TOO_BIG = 1002, 1007, 1008, 1009


@pytest.fixture
def wire(io_loop: IOLoop) -> Iterator[Wire]:
    yield from own_wire(io_loop)


@pytest.fixture
def server() -> Echo:
    return Echo(Limits())


@pytest.fixture
def echo(io_loop: IOLoop, server: Echo) -> Iterator[Place]:
    yield from own_place(io_loop, server.application())


@pytest.fixture
def quick_echo(io_loop: IOLoop) -> Iterator[Place]:
    yield from own_place(io_loop, Echo(Limits(ping_interval=0.1, ping_timeout=0.3)).application())


@pytest.fixture
def pinging_echo(io_loop: IOLoop) -> Iterator[Place]:
    """Pings often, and takes late answers: the machine may be busy."""
    yield from own_place(io_loop, Echo(Limits(ping_interval=0.1, ping_timeout=0.6)).application())


@pytest.fixture
def impatient_echo(io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(engine_module, "UPGRADE_SECONDS", 0.1)
    yield from own_place(io_loop, Echo(Limits()).application())


def sent(server: Echo, *messages: str) -> None:
    """Sends messages to the first session, each in a turn of its own or not, as it comes."""
    for message in messages:
        server.opened[0].send(Parcel([MESSAGE + message]))


# --- The handshake ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_session_opens_with_the_handshake_of_the_protocol(wire: Wire, echo: Place) -> None:
    websocket = await wire.websocket(echo)

    opened = await websocket.receive_text()

    handshake = json.loads(opened.removeprefix("0"))
    assert list(handshake) == ["sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"]
    assert handshake == {
        "sid": handshake["sid"],
        "upgrades": [],
        "pingInterval": 25000,
        "pingTimeout": 20000,
        "maxPayload": 1000000,
    }


@pytest.mark.gen_test
async def test_the_upgrade_is_answered_as_in_the_specification(wire: Wire, echo: Place) -> None:
    reader, writer = await wire.connect(echo.port)
    headers = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
    writer.write(f"GET {echo.target('websocket')} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())

    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")

    assert status == "HTTP/1.1 101 Switching Protocols"
    assert {line.lower() for line in lines} >= {
        "upgrade: websocket",
        "connection: upgrade",
        f"sec-websocket-accept: {ACCEPTED}".lower(),
    }
    # Nobody asked for any, so none may be chosen (RFC 6455, section 4.2.2).
    assert not any(line.lower().startswith(("sec-websocket-ext", "sec-websocket-pro")) for line in lines)


@pytest.mark.gen_test
async def test_compression_that_a_client_offers_is_not_taken_up(wire: Wire, echo: Place) -> None:
    websocket = await wire.websocket(echo, headers={"Sec-WebSocket-Extensions": "permessage-deflate"})

    # `receive` fails at a reserved bit, which a compressed frame would have.
    assert (await websocket.receive_text()).startswith("0{")
    await websocket.send("4" + "x" * 1000)
    assert await websocket.receive() == "4" + "x" * 1000


BAD_REQUESTS = {
    "no transport": (Place.target(Place(0), None), {}),
    "an unknown transport": (Place.target(Place(0), "abc"), {}),
    "an unknown session": (Place.target(Place(0), "websocket", "nobody"), {}),
    "no version": (Place.target(Place(0), "websocket", version=None), {}),
    "another version": (Place.target(Place(0), "websocket", version="3"), {}),
    "no key": (Place.target(Place(0), "websocket"), {"Sec-WebSocket-Key": ""}),
    "a key that is none": (Place.target(Place(0), "websocket"), {"Sec-WebSocket-Key": "c2hvcnQ="}),
    "an old version of WebSocket": (Place.target(Place(0), "websocket"), {"Sec-WebSocket-Version": "8"}),
    "polling": (Place.target(Place(0), "polling", "nobody"), {}),
}


@pytest.mark.parametrize(("target", "headers"), BAD_REQUESTS.values(), ids=list(BAD_REQUESTS))
@pytest.mark.gen_test
async def test_a_bad_request_is_not_upgraded(
    wire: Wire, echo: Place, target: str, headers: dict[str, str], server: Echo
) -> None:
    with pytest.raises(Rejected) as rejected:
        await wire.websocket(echo, target=target, headers=headers)

    assert rejected.value.response.status == 400
    assert server.opened == []


@pytest.mark.gen_test
async def test_a_server_that_knows_one_version_of_websocket_tells_which(wire: Wire, echo: Place) -> None:
    with pytest.raises(Rejected) as rejected:
        await wire.websocket(echo, headers={"Sec-WebSocket-Version": "8"})

    assert rejected.value.response.headers["sec-websocket-version"] == "13"


@pytest.mark.gen_test
async def test_what_a_client_sends_with_its_request_is_not_lost(wire: Wire, echo: Place) -> None:
    reader, writer = await wire.connect(echo.port)
    headers = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
    head = f"GET {echo.target('websocket')} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()

    writer.write(head + frame(TEXT, b"4early") + frame(TEXT, b"4bird")[:5])
    await reader.readuntil(b"\r\n\r\n")
    websocket = WebSocket(reader, writer)

    assert (await websocket.receive_text()).startswith("0{")
    assert await websocket.receive() == "4early"


# --- Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "4hello",
        "4",
        "4äöü €😀",
        "4\x00\x1e",
        b"\1\2\3\4",
        b"",
        "4" + "x" * 70_000,
        bytes(1_000_000),
        "4" + "ä" * 499_999,
    ],
    ids=["text", "empty", "beyond ASCII", "separator", "bytes", "no bytes", "long", "longest bytes", "longest text"],
)
@pytest.mark.gen_test
async def test_a_message_comes_back_as_it_was_sent(wire: Wire, echo: Place, message: str | bytes) -> None:
    websocket = await wire.websocket_session(echo)

    await websocket.send(message)

    assert await websocket.receive() == message


@pytest.mark.gen_test
async def test_messages_come_back_in_order_however_they_are_cut(wire: Wire, echo: Place) -> None:
    websocket = await wire.websocket_session(echo)
    messages: list[str | bytes] = [f"4{number}" if number % 3 else bytes([number]) for number in range(100)]
    data = b"".join(
        frame(TEXT if isinstance(m, str) else BINARY, m.encode() if isinstance(m, str) else m) for m in messages
    )

    for begin in range(0, len(data), 7):
        await websocket.send_bytes(data[begin : begin + 7])

    assert await websocket.receive_many(100) == messages


@pytest.mark.gen_test
async def test_a_message_may_come_in_fragments_with_pings_in_between(wire: Wire, echo: Place) -> None:
    websocket = await wire.websocket_session(echo)
    first, second, third = fragments(TEXT, ["4€".encode()[:2], "4€".encode()[2:], b"!"])

    await websocket.send_bytes(first + frame(PING, b"still there?") + second + frame(PONG, b"unasked") + third)

    assert await websocket.frame() == Frame(PONG, b"still there?")
    assert await websocket.receive() == "4€!"


@pytest.mark.gen_test
async def test_a_ping_of_the_websocket_is_answered_by_its_payload(wire: Wire, echo: Place) -> None:
    websocket = await wire.websocket_session(echo)

    for payload in (b"", b"x", bytes(125)):
        await websocket.send_bytes(frame(PING, payload))
        assert await websocket.frame() == Frame(PONG, payload)


# --- What closes a session -------------------------------------------------------------------------------------------

WRONG = {
    "an unmasked frame": (PROTOCOL_ERROR, frame(TEXT, b"4hello", is_masked=False)),
    "a reserved bit": (PROTOCOL_ERROR, frame(TEXT, b"4hello", reserved=4)),
    "an unknown opcode": (PROTOCOL_ERROR, frame(0x3, b"4hello")),
    "a continuation of nothing": (PROTOCOL_ERROR, frame(CONTINUATION, b"4hello")),
    "a message within a message": (PROTOCOL_ERROR, frame(TEXT, b"4", is_final=False) + frame(TEXT, b"4")),
    "a fragmented ping": (PROTOCOL_ERROR, frame(PING, is_final=False)),
    "a long ping": (PROTOCOL_ERROR, frame(PING, bytes(126))),
    "a close code that nobody may send": (PROTOCOL_ERROR, frame(CLOSE, close_payload(1005))),
    "a text that is no UTF-8": (INVALID_DATA, frame(TEXT, b"4\xff")),
    "fragments that are no UTF-8": (INVALID_DATA, b"".join(fragments(TEXT, [b"4\xe2", b"\x82"]))),
    "a message that is too big": (TOO_BIG, frame(BINARY, bytes(1_000_001))[:14]),
    "fragments that are too big": (TOO_BIG, b"".join(fragments(BINARY, [bytes(600_000)] * 2))[: 600_000 + 28]),
    "an unknown packet": (POLICY, frame(TEXT, b"abc")),
    "no packet": (POLICY, frame(TEXT, b"")),
    "a ping of the client's": (POLICY, frame(TEXT, b"2")),
}


@pytest.mark.parametrize(("code", "data"), WRONG.values(), ids=list(WRONG))
@pytest.mark.gen_test
async def test_what_breaks_a_protocol_closes_the_session_by_its_code(
    wire: Wire, server: Echo, echo: Place, code: int, data: bytes
) -> None:
    websocket = await wire.websocket_session(echo)

    await websocket.send_bytes(data)

    closed = await websocket.receive()
    assert isinstance(closed, Closed)
    assert closed.code == code
    await websocket.ended()
    assert server.closed == ["parse error"]
    assert server.heard == []


@pytest.mark.gen_test
async def test_messages_before_a_broken_one_are_heard(wire: Wire, server: Echo, echo: Place) -> None:
    websocket = await wire.websocket_session(echo)

    await websocket.send("4before")
    assert await websocket.receive() == "4before"
    await websocket.send("abc", "4after")

    assert isinstance(await websocket.receive(), Closed)
    assert server.heard == ["before"]


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (close_payload(1000, "bye"), Closed(1000)),
        (close_payload(1001), Closed(1001)),
        (close_payload(4321, "äöü"), Closed(4321)),
        (b"", Closed(1005)),
    ],
)
@pytest.mark.gen_test
async def test_a_close_frame_is_answered_by_its_code(
    wire: Wire, server: Echo, echo: Place, sent: bytes, answered: Closed
) -> None:
    websocket = await wire.websocket_session(echo)

    await websocket.send_bytes(frame(CLOSE, sent))

    assert await websocket.receive() == answered
    assert await websocket.ended()
    assert server.closed == ["transport close"]


@pytest.mark.gen_test
async def test_a_close_packet_closes_the_session(wire: Wire, server: Echo, echo: Place) -> None:
    websocket = await wire.websocket_session(echo)

    await websocket.send("4before", "1", "4after")

    assert await websocket.receive() == "4before"
    assert await websocket.receive() == Closed(1000)
    assert server.closed == ["transport close"]
    assert server.heard == ["before"]


@pytest.mark.parametrize("how", ["finish", "abort"])
@pytest.mark.gen_test
async def test_a_connection_that_just_ends_closes_the_session(wire: Wire, server: Echo, echo: Place, how: str) -> None:
    websocket = await wire.websocket_session(echo)

    getattr(websocket, how)()

    await until(lambda: server.closed == ["transport close"])
    assert server.engine.sessions == {}


@pytest.mark.gen_test
async def test_a_session_that_the_server_closes_ends_by_a_close_frame_after_what_was_sent(
    wire: Wire, server: Echo, echo: Place
) -> None:
    websocket = await wire.websocket_session(echo)

    sent(server, "the last word")
    server.opened[0].close("enough")
    sent(server, "too late")

    assert await websocket.receive() == "4the last word"
    assert await websocket.receive() == Closed(1000)
    assert await websocket.ended()
    assert server.closed == ["enough"]


@pytest.mark.gen_test
async def test_a_client_that_does_not_see_the_close_frame_is_cut_off(wire: Wire, server: Echo, echo: Place) -> None:
    assert engine_module.LINGER_SECONDS <= 5
    websocket = await wire.websocket_session(echo)
    link = server.opened[0].link
    assert link is not None

    server.opened[0].close("enough")

    assert await websocket.receive() == Closed(1000)
    # It keeps its side open, and goes on sending as if nothing had been said.
    async with asyncio.timeout(engine_module.LINGER_SECONDS + 2):
        while link.descriptor != -1:
            await websocket.send("4hello?")
            await asyncio.sleep(0.05)
    assert server.heard == []


# --- The heartbeat ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_server_pings_and_goes_on_as_long_as_it_is_answered(wire: Wire, pinging_echo: Place) -> None:
    websocket = await wire.websocket_session(pinging_echo)

    for _ in range(3):
        assert await websocket.receive() == "2"
        await websocket.send("3")


@pytest.mark.gen_test
async def test_a_session_that_leaves_a_ping_unanswered_closes(wire: Wire, quick_echo: Place) -> None:
    websocket = await wire.websocket_session(quick_echo)

    assert await websocket.receive() == "2"
    assert isinstance(await websocket.receive(), Closed)


@pytest.mark.gen_test
async def test_messages_are_no_answer_to_a_ping(wire: Wire, quick_echo: Place) -> None:
    websocket = await wire.websocket_session(quick_echo)
    assert await websocket.receive() == "2"

    received: list[str | bytes | Closed] = []
    while not received or not isinstance(received[-1], Closed):
        await websocket.send("4hello")
        received.append(await websocket.receive())
        await asyncio.sleep(0.01)

    assert received[0] == "4hello"


# --- The upgrade -----------------------------------------------------------------------------------------------------


async def polled_out(session: PollingSession) -> None:
    """The session takes no more requests over HTTP."""
    response = await session.poll()
    assert (response.status, response.json) == (400, {"code": 3, "message": "Bad request"})


@pytest.mark.gen_test
async def test_a_polling_session_goes_on_by_websocket(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)

    websocket = await session.upgrade()
    await websocket.send("4hello")

    assert await websocket.receive() == "4hello"
    assert len(server.opened) == 1
    assert server.closed == []
    await polled_out(session)


@pytest.mark.gen_test
async def test_a_poll_that_waits_is_ended_by_a_noop_when_the_client_probes(
    wire: Wire, server: Echo, echo: Place
) -> None:
    session = await wire.session(echo)
    poll = await session.start_poll()
    await until(lambda: server.opened[0]._poll is not None)

    await session.probe()

    assert (await poll.response()).text == "6"


@pytest.mark.gen_test
async def test_a_poll_during_the_probe_is_ended_by_a_noop_at_once(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)
    await session.probe()

    assert (await session.poll()).text == "6"


@pytest.mark.gen_test
async def test_what_was_sent_before_the_upgrade_comes_after_it_in_order(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    websocket = await session.probe()

    sent(server, "one", "two")
    await websocket.send("5", "4three")

    assert await websocket.receive_many(3) == ["4one", "4two", "4three"]


@pytest.mark.gen_test
async def test_what_comes_together_with_the_upgrade_is_heard(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    websocket = await session.probe()

    await websocket.send_bytes(frame(TEXT, b"5") + frame(TEXT, b"4first") + frame(TEXT, b"4second")[:3])

    assert await websocket.receive() == "4first"


@pytest.mark.gen_test
async def test_probe_and_upgrade_may_come_in_one_piece(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)
    websocket = await wire.websocket(echo, session.sid)

    await websocket.send_bytes(frame(TEXT, b"2probe") + frame(TEXT, b"5") + frame(TEXT, b"4hello"))

    assert await websocket.receive_many(2) == ["3probe", "4hello"]


@pytest.mark.gen_test
async def test_nothing_is_lost_or_out_of_order_while_a_session_upgrades_under_load(
    wire: Wire, server: Echo, echo: Place
) -> None:
    """What the server sends is numbered by turns of its loop, what the client sends by its own turns."""
    session = await wire.session(echo)
    total = 400

    async def serve() -> None:
        for number in range(total):
            server.opened[0].send(Parcel([f"4s{number}"]))
            if number % 3:
                await asyncio.sleep(0.001)

    received: list[str] = []
    serving = asyncio.create_task(serve())
    # The client polls and posts at the same time, as real ones do, and upgrades in the middle of it.
    posted = 0
    while posted < 30 or len(received) < 50:
        posting = asyncio.create_task(session.post(*(f"4c{number}" for number in range(posted, posted + 3))))
        received += await session.packets()
        assert (await posting).status == 200
        posted += 3
    websocket = await session.probe()
    polling = asyncio.create_task(session.packets())
    assert (await session.post(*(f"4c{number}" for number in range(posted, posted + 3)))).status == 200
    received += await polling
    await websocket.send("5", *(f"4c{number}" for number in range(posted + 3, 300)))
    from_server = [packet for packet in received if packet.startswith("4s")]
    echoed = [packet for packet in received if packet.startswith("4c")]
    while len(from_server) < total or len(echoed) < 300:
        message = await websocket.receive_text()
        (from_server if message.startswith("4s") else echoed).append(message)
    await serving

    assert from_server == [f"4s{number}" for number in range(total)]
    assert server.heard == [f"c{number}" for number in range(300)]
    assert echoed == [f"4c{number}" for number in range(300)]


@pytest.mark.gen_test
async def test_a_post_whose_body_comes_after_the_upgrade_is_heard(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    post = await wire.start(echo, "POST", session.target, None, {"Content-Length": "5"})
    await until(lambda: server.opened[0].is_posting)
    websocket = await session.upgrade()

    post.send(b"4late")

    assert await websocket.receive() == "4late"
    assert (await post.response()).text == "ok"


@pytest.mark.parametrize("packet", ["4hello", "2", "3probe", "6", "5probe", "", b"\1"])
@pytest.mark.gen_test
async def test_a_probe_that_says_anything_else_closes_and_the_session_polls_on(
    wire: Wire, server: Echo, echo: Place, packet: str | bytes
) -> None:
    session = await wire.session(echo)
    websocket = await wire.websocket(echo, session.sid)

    await websocket.send(packet)

    assert isinstance(await websocket.receive(), Closed)
    assert (await session.post("4still polling")).status == 200
    assert await session.packets() == ["4still polling"]
    assert server.heard == ["still polling"]


@pytest.mark.parametrize("how", ["finish", "abort"])
@pytest.mark.parametrize("probed", [False, True], ids=["before the probe", "after the probe"])
@pytest.mark.gen_test
async def test_an_upgrade_that_is_abandoned_leaves_the_session_polling(
    wire: Wire, echo: Place, how: str, probed: bool
) -> None:
    session = await wire.session(echo)
    websocket = await session.probe() if probed else await wire.websocket(echo, session.sid)

    getattr(websocket, how)()

    assert (await session.post("4hello")).status == 200
    while (packets := await session.packets()) == ["6"]:
        pass
    assert packets == ["4hello"]
    # And it may try again.
    again = await session.upgrade()
    await again.send("4again")
    assert await again.receive() == "4again"


@pytest.mark.gen_test
async def test_an_upgrade_that_takes_too_long_is_given_up(wire: Wire, impatient_echo: Place) -> None:
    session = await wire.session(impatient_echo)

    websocket = await session.probe()

    assert isinstance(await websocket.receive(), Closed)
    assert (await session.post("4hello")).status == 200
    assert await session.packets() == ["4hello"]


@pytest.mark.gen_test
async def test_a_second_probe_is_closed_and_the_first_goes_on(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)
    first = await session.probe()

    second = await wire.websocket(echo, session.sid)

    assert isinstance(await second.receive(), Closed)
    await first.send("5", "4hello")
    assert await first.receive() == "4hello"


@pytest.mark.gen_test
async def test_a_websocket_for_a_session_that_is_upgraded_is_closed(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)
    websocket = await session.upgrade()
    await websocket.send("4hello")
    assert await websocket.receive() == "4hello"

    second = await wire.websocket(echo, session.sid)

    assert isinstance(await second.receive(), Closed)
    await websocket.send("4still here")
    assert await websocket.receive() == "4still here"


@pytest.mark.gen_test
async def test_a_session_that_closes_takes_its_probe_along(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    websocket = await session.probe()

    await session.post("1")

    await websocket.ended()
    assert server.closed == ["transport close"]


@pytest.mark.gen_test
async def test_the_heartbeat_goes_on_over_the_upgrade(wire: Wire, pinging_echo: Place) -> None:
    session = await wire.session(pinging_echo)
    assert await session.packets() == ["2"]
    assert (await session.post("3")).status == 200
    websocket = await session.upgrade()

    for _ in range(3):
        assert await websocket.receive() == "2"
        await websocket.send("3")


# --- The end ---------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_server_that_closes_ends_all_transports_after_what_was_sent(
    wire: Wire, server: Echo, echo: Place
) -> None:
    by_websocket = await wire.websocket_session(echo)
    polling = await wire.session(echo)
    poll = await polling.start_poll()
    await until(lambda: server.opened[1]._poll is not None)
    sent(server, "goodbye")

    closing = asyncio.create_task(server.engine.close())

    assert await by_websocket.receive() == "4goodbye"
    assert await by_websocket.receive() == Closed(1001)
    # After a close packet, python-socketio would not come back.
    assert (await poll.response()).text == "6"
    by_websocket.abort()
    await closing
    assert server.closed == ["server shutting down"] * 2
    assert (await wire.ask(echo, "GET", echo.target())).status != 200


@pytest.mark.gen_test
async def test_nothing_of_a_session_is_kept_when_it_has_ended(wire: Wire, server: Echo, echo: Place) -> None:
    for number in range(20):
        websocket = await wire.websocket_session(echo)
        if number % 2:
            websocket.abort()
        else:
            await websocket.send("1")
            await websocket.ended()
            websocket.abort()
    probing = await wire.session(echo)
    await probing.probe()
    await probing.post("1")

    engine = server.engine
    await until(lambda: not engine.sessions and not len(engine._lingering) and not len(engine._probes))
    assert engine.heartbeat.next is None
    assert engine.statistics.opened == sum(engine.statistics.closed.values()) == 21
