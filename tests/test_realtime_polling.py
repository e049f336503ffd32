"""Engine.IO 4 over HTTP long-polling, against a server that echoes: the protocol's sections, and what breaks it.

Pings are 25 s apart, so nothing here closes by a ping timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from realtime.engine import Limits
from tests.conformance.engine import Echo
from tests.conftest import until
from tests.wire import TEXT_PLAIN, Place, PollingSession, Request, Wire, own_place, own_wire

UNKNOWN_SID = (400, {"code": 1, "message": "Session ID unknown"})


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
def quick() -> Echo:
    return Echo(Limits(ping_interval=0.1, ping_timeout=0.2))


@pytest.fixture
def quick_echo(io_loop: IOLoop, quick: Echo) -> Iterator[Place]:
    yield from own_place(io_loop, quick.application())


@pytest.fixture
def pinging_echo(io_loop: IOLoop) -> Iterator[Place]:
    """Pings often, and takes late answers: the machine may be busy."""
    yield from own_place(io_loop, Echo(Limits(ping_interval=0.1, ping_timeout=0.6)).application())


async def waiting_poll(server: Echo, session: PollingSession) -> Request:
    """A poll that the server has begun to answer, and now waits with."""
    poll = await session.start_poll()
    await until(lambda: server.engine.sessions[session.sid]._poll is not None)
    return poll


async def unfinished_post(server: Echo, session: PollingSession) -> Request:
    """A POST whose body has not come yet, but for its beginning; ten bytes were announced."""
    post = await session.wire.start(session.place, "POST", session.target, None, {"Content-Length": "10", **TEXT_PLAIN})
    post.send(b"4hal")
    await until(lambda: server.engine.sessions[session.sid].is_posting)
    return post


async def is_closed(session: PollingSession) -> bool:
    response = await session.poll()
    assert response.status in (200, 400), response
    return response.status == 400 and response.json == UNKNOWN_SID[1]


# --- The handshake ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_session_opens_with_the_handshake_of_the_protocol(wire: Wire, echo: Place) -> None:
    response = await wire.ask(echo, "GET", echo.target())

    assert (response.status, response.headers["content-type"]) == (200, "text/plain; charset=UTF-8")
    opened = await wire.handshake(echo)
    assert list(opened) == ["sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"]
    assert opened == {
        "sid": opened["sid"],
        "upgrades": ["websocket"],
        "pingInterval": 25000,
        "pingTimeout": 20000,
        "maxPayload": 1000000,
    }


@pytest.mark.gen_test
async def test_no_two_sessions_have_one_id_and_none_can_be_guessed(wire: Wire, echo: Place) -> None:
    sids = [(await wire.handshake(echo))["sid"] for _ in range(20)]

    assert len({*sids}) == 20
    assert all(len(sid) >= 20 for sid in sids)


@pytest.mark.gen_test
async def test_nothing_about_a_session_is_kept_by_caches(wire: Wire, echo: Place) -> None:
    response = await wire.ask(echo, "GET", echo.target())

    assert response.headers["cache-control"] == "no-store"


BAD_REQUESTS = {
    "no transport": ("GET", Place.target(Place(0), None), 0, "Transport unknown"),
    "an unknown transport": ("GET", Place.target(Place(0), "abc"), 0, "Transport unknown"),
    "an unknown session": ("GET", Place.target(Place(0), sid="nobody"), 1, "Session ID unknown"),
    "a packet for an unknown session": ("POST", Place.target(Place(0), sid="nobody"), 1, "Session ID unknown"),
    "a handshake by POST": ("POST", Place.target(Place(0)), 2, "Bad handshake method"),
    "a handshake by PUT": ("PUT", Place.target(Place(0)), 2, "Bad handshake method"),
    "a handshake by DELETE": ("DELETE", Place.target(Place(0)), 2, "Bad handshake method"),
    "a websocket without an upgrade": ("GET", Place.target(Place(0), "websocket"), 3, "Bad request"),
    "no version": ("GET", Place.target(Place(0), version=None), 5, "Unsupported protocol version"),
    "no number as a version": ("GET", Place.target(Place(0), version="abc"), 5, "Unsupported protocol version"),
    "the version before": ("GET", Place.target(Place(0), version="3"), 5, "Unsupported protocol version"),
}


@pytest.mark.parametrize(("method", "target", "code", "message"), BAD_REQUESTS.values(), ids=list(BAD_REQUESTS))
@pytest.mark.gen_test
async def test_a_bad_request_is_told_as_the_reference_server_tells_it(
    wire: Wire, echo: Place, method: str, target: str, code: int, message: str
) -> None:
    response = await wire.ask(echo, method, target, b"" if method in ("POST", "PUT") else None)

    assert response.status == 400
    assert response.headers["content-type"].startswith("application/json")
    assert response.text == f'{{"code":{code},"message":"{message}"}}'


@pytest.mark.gen_test
async def test_the_transport_of_a_session_cannot_be_another_one(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)

    response = await wire.ask(echo, "GET", echo.target("websocket", session.sid))

    assert (response.status, response.json) == (400, {"code": 3, "message": "Bad request"})


# --- CORS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", Place.target(Place(0)), 200), ("GET", Place.target(Place(0), "abc"), 400)],
    ids=["a handshake", "an error"],
)
@pytest.mark.gen_test
async def test_every_answer_may_be_read_from_other_origins(
    wire: Wire, echo: Place, method: str, target: str, status: int
) -> None:
    response = await wire.ask(echo, method, target, headers={"Origin": "http://elsewhere.example"})

    assert (response.status, response.headers["access-control-allow-origin"]) == (status, "*")


@pytest.mark.gen_test
async def test_a_preflight_is_answered_without_a_session(wire: Wire, echo: Place) -> None:
    asked = {
        "Origin": "http://elsewhere.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    response = await wire.ask(echo, "OPTIONS", echo.target(), headers=asked)

    assert (response.status, response.body) == (204, b"")
    assert response.headers["access-control-allow-origin"] == "*"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"].lower() in ("content-type", "*")


# --- Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packets",
    [
        ["4hello"],
        ["4one", "4two", "4three"],
        ["4hello", "bAQIDBA=="],
        ["4"],
        ["4äöü €", "4😀"],
        ["4\x00"],
        ["4" + "x" * 200_000],
        ["b"],
    ],
    ids=["one", "several", "text and binary", "empty", "beyond ASCII", "NUL", "long", "no bytes"],
)
@pytest.mark.gen_test
async def test_messages_come_back_as_they_were_sent(wire: Wire, echo: Place, packets: list[str]) -> None:
    session = await wire.session(echo)

    posted = await session.post(*packets)

    assert (posted.status, posted.text) == (200, "ok")
    assert posted.headers["content-type"].startswith("text/html")
    assert await session.gather(len(packets)) == packets


@pytest.mark.gen_test
async def test_what_is_sent_during_a_poll_ends_it(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    poll = await waiting_poll(server, session)

    await session.post("4hello")

    assert (await poll.response()).text == "4hello"


@pytest.mark.gen_test
async def test_a_poll_answers_with_no_more_packets_than_every_client_takes(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)
    sent = [f"4{number}" for number in range(50)]
    await session.post(*sent)

    received: list[str] = []
    while len(received) < len(sent):
        packets = await session.packets()
        assert len(packets) <= 16, "python-socketio closes the connection when there are more"
        received += packets

    assert received == sent


@pytest.mark.gen_test
async def test_one_connection_serves_all_requests_of_a_session(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)
    reader, writer = await wire.connect(echo.port)

    for number in range(3):
        body = f"4{number}".encode()
        writer.write(
            f"POST {session.target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(f"GET {session.target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n" + body)).startswith(b"HTTP/1.1 200")


# --- What closes a session -------------------------------------------------------------------------------------------

BROKEN = {
    "an unknown packet": b"abc",
    "nothing": b"",
    "an empty packet among others": b"4a\x1e\x1e4b",
    "base64 that is none": b"b!!!!",
    "base64 cut short": b"bAQI",
    "no UTF-8": b"4\xff\xfe",
    "half a character": b"4\xe2\x82",
    "a surrogate": b"4\xed\xa0\x80",
    "a ping of the client's": b"2",
    "an open packet": b"0{}",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=list(BROKEN))
@pytest.mark.gen_test
async def test_a_broken_payload_closes_the_session(wire: Wire, echo: Place, body: bytes) -> None:
    session = await wire.session(echo)

    response = await wire.ask(echo, "POST", session.target, body, TEXT_PLAIN)

    assert response.status == 400
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_a_broken_payload_ends_the_poll_that_waits(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    poll = await waiting_poll(server, session)

    await session.post("abc")

    assert (await poll.response()).status in (200, 400)
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_binary_content_is_refused_and_closes_the_session(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)

    response = await wire.ask(
        echo, "POST", session.target, b"4hello", headers={"Content-Type": "application/octet-stream"}
    )

    assert response.status == 400
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_a_payload_of_the_greatest_size_is_taken(wire: Wire, echo: Place) -> None:
    session = await wire.session(echo)
    greatest = "4" + "x" * 999_999

    assert (await session.post(greatest)).status == 200
    assert await session.packets() == [greatest]


@pytest.mark.parametrize("how", ["announced", "chunked"])
@pytest.mark.gen_test
async def test_a_payload_that_is_too_large_is_refused_before_it_is_read(wire: Wire, echo: Place, how: str) -> None:
    session = await wire.session(echo)
    headers = {"Content-Length": "1000001"} if how == "announced" else {"Transfer-Encoding": "chunked"}
    # Not more than a little of it is ever sent, where its size is told in advance.
    body = b"4xxx" if how == "announced" else b"f4241\r\n" + b"4" * 1_000_001 + b"\r\n"

    request = await wire.start(echo, "POST", session.target, None, headers)
    request.send(body)

    assert (await request.response()).status == 413


@pytest.mark.gen_test
async def test_two_polls_at_a_time_close_the_session(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    first = await waiting_poll(server, session)

    second = await session.poll()

    assert second.status == 400
    first_response = await first.response()
    assert (first_response.status, first_response.text) == (200, "1")
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_two_posts_at_a_time_close_the_session(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    await unfinished_post(server, session)

    assert (await session.post("4hello")).status == 400
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_a_poll_that_is_abandoned_closes_the_session(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    poll = await waiting_poll(server, session)

    poll.abandon()

    await until(lambda: server.closed == ["transport error"])
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_a_poll_that_is_abandoned_as_soon_as_it_was_sent_closes_the_session(
    wire: Wire, server: Echo, echo: Place
) -> None:
    session = await wire.session(echo)
    _, writer = await wire.connect(echo.port)

    # The request and the end of the connection reach the server together.
    writer.write(f"GET {session.target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    writer.close()

    await until(lambda: server.closed == ["transport error"], seconds=5)
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_a_post_that_is_abandoned_closes_the_session(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    post = await unfinished_post(server, session)

    post.abandon()

    await until(lambda: server.closed == ["transport error"])
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_a_post_that_is_abandoned_ends_the_poll_that_waits(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    poll = await waiting_poll(server, session)
    post = await unfinished_post(server, session)

    post.abandon()

    assert (await poll.response()).status in (200, 400)


@pytest.mark.gen_test
async def test_a_poll_of_a_session_that_closes_before_it_begins_is_answered(
    wire: Wire, server: Echo, echo: Place
) -> None:
    session = await wire.session(echo)
    # A GET with a body: its session is found when the headers are there, and polled once the body is.
    late = await wire.start(echo, "GET", session.target, None, {"Content-Length": "1"})
    await asyncio.sleep(0.05)

    await session.post("1")
    late.send(b"x")

    assert (await late.response()).status in (200, 400)


@pytest.mark.gen_test
async def test_a_post_whose_session_closes_meanwhile_is_not_heard(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    post = await unfinished_post(server, session)
    server.opened[0].close("the server has enough")

    post.send(b"lo4567")

    assert (await post.response()).status in (200, 400)
    assert server.heard == []


@pytest.mark.gen_test
async def test_a_close_packet_ends_the_poll_and_the_session(wire: Wire, server: Echo, echo: Place) -> None:
    session = await wire.session(echo)
    poll = await waiting_poll(server, session)

    assert (await session.post("1")).text == "ok"

    response = await poll.response()
    assert (response.status, response.text) == (200, "6")
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_messages_before_a_close_packet_are_heard_and_those_after_are_not(
    wire: Wire, server: Echo, echo: Place
) -> None:
    session = await wire.session(echo)

    assert (await session.post("4before", "1", "4after")).status == 200

    assert await is_closed(session)
    assert server.heard == ["before"]


@pytest.mark.gen_test
async def test_nobody_else_s_session_is_touched_by_a_broken_one(wire: Wire, echo: Place) -> None:
    broken, whole = await wire.session(echo), await wire.session(echo)

    await broken.post("abc")

    assert (await whole.post("4still here")).status == 200
    assert await whole.packets() == ["4still here"]


# --- The heartbeat ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_server_pings_and_goes_on_as_long_as_it_is_answered(wire: Wire, pinging_echo: Place) -> None:
    session = await wire.session(pinging_echo)

    for _ in range(3):
        assert await session.packets() == ["2"]
        assert (await session.post("3")).status == 200


@pytest.mark.parametrize("interval", [0.1, 0.3, 25.0])
@pytest.mark.gen_test
async def test_a_ping_is_late_by_little_of_its_interval(io_loop: IOLoop, interval: float) -> None:
    engine = Echo(Limits(ping_interval=interval)).engine
    engine.open_polling("127.0.0.1")

    assert engine._timer is not None
    assert engine.heartbeat.next is not None
    assert engine._timer.when() - engine.heartbeat.next <= interval * 0.02


@pytest.mark.gen_test
async def test_a_session_that_leaves_a_ping_unanswered_closes(wire: Wire, quick_echo: Place) -> None:
    session = await wire.session(quick_echo)
    assert await session.packets() == ["2"]

    response = await session.poll()

    assert response.status in (200, 400)
    assert await is_closed(session)


@pytest.mark.gen_test
async def test_a_session_that_never_polls_closes(wire: Wire, quick: Echo, quick_echo: Place) -> None:
    session = await wire.session(quick_echo)
    assert quick.engine.sessions

    await until(lambda: not quick.engine.sessions)

    assert await is_closed(session)
