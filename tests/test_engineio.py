"""The Engine.IO core: the handshake's checks, packets, polling payloads, and whose heartbeat is due when."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from realtime import engineio
from realtime.engineio import Deadlines, HandshakeRefused, Heartbeat, Packet, ProtocolError, Received

GOOD = {"EIO": "4", "transport": "polling"}

# What a client may send as a message: no separator in a text, since nothing escapes it.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x1e"), max_size=40)
packets = st.lists(texts.map("4".__add__) | st.binary(max_size=40) | st.sampled_from(["1", "3", "6"]), min_size=1)


# --- The handshake ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "is_upgrade"), [(GOOD, False), ({**GOOD, "transport": "websocket"}, True), ({**GOOD, "t": "abc"}, False)]
)
def test_a_good_handshake_is_let_through(query: Mapping[str, str], is_upgrade: bool) -> None:
    engineio.check_handshake(query, "GET", is_upgrade=is_upgrade)


REFUSED = {
    "nothing": ({}, "GET", '{"code":0,"message":"Transport unknown"}'),
    "an unknown transport": ({**GOOD, "transport": "abc"}, "GET", '{"code":0,"message":"Transport unknown"}'),
    "another method": (GOOD, "POST", '{"code":2,"message":"Bad handshake method"}'),
    "another method of another version": (
        {"transport": "polling", "EIO": "3"},
        "PUT",
        '{"code":2,"message":"Bad handshake method"}',
    ),
    "a websocket without an upgrade": (
        {**GOOD, "transport": "websocket"},
        "GET",
        '{"code":3,"message":"Bad request"}',
    ),
    "no version": ({"transport": "polling"}, "GET", '{"code":5,"message":"Unsupported protocol version"}'),
    "another version": ({**GOOD, "EIO": "3"}, "GET", '{"code":5,"message":"Unsupported protocol version"}'),
    "a version with more": ({**GOOD, "EIO": "4a"}, "GET", '{"code":5,"message":"Unsupported protocol version"}'),
}


@pytest.mark.parametrize(("query", "method", "body"), REFUSED.values(), ids=list(REFUSED))
def test_a_bad_handshake_is_refused_as_the_reference_server_does(
    query: Mapping[str, str], method: str, body: str
) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        engineio.check_handshake(query, method, is_upgrade=False)

    assert (refused.value.status, refused.value.body.decode()) == (400, body)


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        (0, 400, "Transport unknown"),
        (1, 400, "Session ID unknown"),
        (2, 400, "Bad handshake method"),
        (3, 400, "Bad request"),
        (4, 403, "Forbidden"),
        (5, 400, "Unsupported protocol version"),
    ],
)
def test_the_errors_are_those_of_the_reference_server(code: int, status: int, message: str) -> None:
    refused = HandshakeRefused(code)

    assert (refused.status, refused.body.decode()) == (status, f'{{"code":{code},"message":"{message}"}}')


def test_the_open_packet_tells_milliseconds() -> None:
    opened = engineio.open_packet("abc", ["websocket"], ping_interval=25.0, ping_timeout=0.2, max_payload=1_000_000)

    assert opened == (
        '0{"sid":"abc","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":200,"maxPayload":1000000}'
    )


# --- Packets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "meaning"),
    [
        ("4hello", (Received.MESSAGE, "hello")),
        ("4", (Received.MESSAGE, "")),
        (b"\1\2", (Received.MESSAGE, b"\1\2")),
        (b"", (Received.MESSAGE, b"")),
        ("3", (Received.PONG, "")),
        ("1", (Received.CLOSE, "")),
        ("6", (Received.NOTHING, "")),
    ],
)
def test_a_packet_of_a_client_s_means(packet: Packet, meaning: tuple[Received, Packet]) -> None:
    assert engineio.receive(packet) == meaning


@pytest.mark.parametrize("packet", ["", "0{}", "2", "2probe", "7", "abc", "b", "\x00", "٤hello", " 4"])
def test_what_no_client_sends_is_an_error(packet: str) -> None:
    with pytest.raises(ProtocolError):
        engineio.receive(packet)


@given(packet=st.text(max_size=10) | st.binary(max_size=10))
@settings(deadline=None, max_examples=150)
def test_any_packet_has_a_meaning_or_is_an_error(packet: Packet) -> None:
    try:
        kind, content = engineio.receive(packet)
    except ProtocolError:
        assert packet[:1] not in ("1", "3", "4", "5", "6")
    else:
        assert kind is Received.MESSAGE or content == ""


# --- Polling payloads ------------------------------------------------------------------------------------------------


@given(packets=packets)
@settings(deadline=None, max_examples=150)
def test_packets_come_through_a_payload_unchanged(packets: list[Packet]) -> None:
    assert engineio.decode_payload(engineio.encode_payload(packets)) == packets


def test_a_payload_is_written_as_in_the_specification() -> None:
    assert engineio.encode_payload(["4hello", b"\1\2\3\4", "6"]) == "4hello\x1ebAQIDBA==\x1e6"


@given(payload=st.text(st.characters(codec="utf-8") | st.sampled_from("\x1eb4AQ==/+-_ \n"), max_size=30))
@settings(deadline=None, max_examples=200)
def test_any_text_is_a_payload_or_an_error(payload: str) -> None:
    try:
        decoded = engineio.decode_payload(payload)
    except ProtocolError:
        assert "b" in payload
    else:
        # Nothing but what base64 leaves open may get lost: written again, the payload is the same.
        again = [p if isinstance(p, str) else "b" + base64.b64encode(p).decode() for p in decoded]
        assert len(again) == payload.count("\x1e") + 1
        assert engineio.decode_payload("\x1e".join(again)) == decoded


@pytest.mark.parametrize("payload", ["b!!!!", "bAQI", "bA", "bAQID\n", "bAQ ID", "b====", "bäöü", "4a\x1eb*", "b-_-_"])
def test_bytes_that_are_no_base64_are_an_error(payload: str) -> None:
    with pytest.raises(ProtocolError):
        engineio.decode_payload(payload)


# --- Deadlines -------------------------------------------------------------------------------------------------------


def test_nobody_is_due_before_the_deadline() -> None:
    deadlines: Deadlines[str] = Deadlines(10)
    deadlines.set("a", now=0)
    deadlines.set("b", now=3)

    assert deadlines.next == 10
    assert deadlines.due(9) == {}
    assert deadlines.due(10) == {"a": 10}
    assert deadlines.due(100) == {"b": 13}
    assert deadlines.next is None


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["set", "discard"]), st.integers(0, 4), st.integers(0, 5)) | st.integers(0, 12)
    )
)
@settings(deadline=None, max_examples=150)
def test_deadlines_are_those_of_a_table_that_is_looked_through(steps: list[tuple[str, int, int] | int]) -> None:
    deadlines: Deadlines[int] = Deadlines(10)
    table: dict[int, int] = {}
    now = 0

    for step in steps:
        if isinstance(step, int):
            now += step
            due = deadlines.due(now)
            assert due == {key: moment for key, moment in table.items() if moment <= now}
            assert list(due.values()) == sorted(due.values())
            table = {key: moment for key, moment in table.items() if key not in due}
        elif step[0] == "set":
            now += step[2]
            deadlines.set(step[1], now)
            table[step[1]] = now + 10
        else:
            deadlines.discard(step[1])
            table.pop(step[1], None)
        assert len(deadlines) == len(table)
        assert deadlines.next == min(table.values(), default=None)


# --- The heartbeat ---------------------------------------------------------------------------------------------------

INTERVAL, TIMEOUT = 10, 4


class Beating(RuleBasedStateMachine):
    """A server that looks at its heartbeat now and then, and all kinds of clients, by a clock of whole seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.heartbeat: Heartbeat[int] = Heartbeat(INTERVAL, TIMEOUT)
        self.now = 0
        self.opened = 0
        self.to_ping: dict[int, int] = {}
        self.to_answer: dict[int, int] = {}

    @rule()
    def a_client_opens(self) -> None:
        self.opened += 1
        self.heartbeat.opened(self.opened, self.now)
        self.to_ping[self.opened] = self.now + INTERVAL

    @precondition(lambda self: self.to_answer)
    @rule(data=st.data())
    def a_client_answers(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.to_answer)))
        self.heartbeat.answered(client, self.now)
        del self.to_answer[client]
        self.to_ping[client] = self.now + INTERVAL

    @precondition(lambda self: self.to_ping)
    @rule(data=st.data())
    def a_client_answers_without_being_asked(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.to_ping)))
        self.heartbeat.answered(client, self.now)
        self.to_ping[client] = self.now + INTERVAL

    @precondition(lambda self: self.to_ping or self.to_answer)
    @rule(data=st.data())
    def a_client_closes(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted({*self.to_ping, *self.to_answer})))
        self.heartbeat.closed(client)
        self.to_ping.pop(client, None)
        self.to_answer.pop(client, None)

    @rule(seconds=st.integers(0, 15))
    def time_goes_on(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def the_server_looks(self) -> None:
        to_ping, overdue = self.heartbeat.due(self.now)

        assert {*overdue} == {client for client, moment in self.to_answer.items() if moment <= self.now}
        assert {*to_ping} == {client for client, moment in self.to_ping.items() if moment <= self.now}
        for client in overdue:
            del self.to_answer[client]
        for client in to_ping:
            # The time to answer runs from when the ping was due; but half of it is left even if the server looks late.
            due = self.to_ping.pop(client)
            self.to_answer[client] = max(due, self.now - TIMEOUT // 2) + TIMEOUT

    @invariant()
    def it_knows_when_to_look_again(self) -> None:
        assert self.heartbeat.next == min([*self.to_ping.values(), *self.to_answer.values()], default=None)

    @invariant()
    def it_knows_who_is_overdue(self) -> None:
        for client in range(1, self.opened + 1):
            expected = client in self.to_answer and self.to_answer[client] < self.now
            assert self.heartbeat.overdue(client, self.now) == expected


TestHeartbeat = Beating.TestCase
TestHeartbeat.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


def test_the_json_of_the_handshake_is_compact() -> None:
    opened = engineio.open_packet("abc", [], 1, 1, 1)

    assert opened[1:] == json.dumps(json.loads(opened[1:]), separators=(",", ":"))
