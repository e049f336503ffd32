"""The WebSocket core: what RFC 6455 asks of a server, stated over bytes cut anywhere."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import websocket
from realtime.websocket import Control, FrameParser, Message, Opcode, WebSocketError
from tests.wire import (
    ACCEPTED,
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    close_payload,
    fragments,
    frame,
    length_field,
    masked,
)

MAX = 1000
PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009

texts = st.text(st.characters(codec="utf-8"), max_size=80)
payloads = st.binary(max_size=80) | st.integers(0, MAX).map(bytes)


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The data cut at some places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(places)]


def fed(data: Sequence[bytes], max_message: int = MAX) -> list[Message]:
    parser = FrameParser(max_message)
    return [message for piece in data for message in parser.feed(piece)]


def refusal(*data: bytes) -> int:
    """The code by which a parser refuses the data."""
    with pytest.raises(WebSocketError) as refused:
        fed(data)
    return refused.value.code


def outcome(data: Sequence[bytes]) -> int | None:
    """The code by which a parser refuses the data; None if it takes them."""
    try:
        fed(data)
    except WebSocketError as error:
        return error.code
    return None


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Message]]:
    """Frames of a client that keeps to the rules, and the messages that they are."""
    sent: list[bytes] = []
    expected: list[Message] = []
    for message in draw(st.lists(texts | payloads, max_size=6)):
        opcode, payload = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        frames = fragments(opcode, pieces(payload, draw(st.lists(st.integers(0, MAX), max_size=3))) or [b""])
        for number, each in enumerate(frames):
            if number and draw(st.booleans()):
                control = Control(draw(st.sampled_from([Opcode.PING, Opcode.PONG])), draw(st.binary(max_size=125)))
                sent.append(frame(*control))
                expected.append(control)
            sent.append(each)
        expected.append(message)
    return b"".join(sent), expected


# --- What is right ---------------------------------------------------------------------------------------------------


@given(conversation=conversations(), cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
@settings(deadline=None, max_examples=150)
def test_messages_come_whole_and_in_order_wherever_the_bytes_are_cut(
    conversation: tuple[bytes, list[Message]], cuts: list[int]
) -> None:
    data, expected = conversation

    assert fed(pieces(data, cuts)) == expected


@given(conversation=conversations())
@settings(deadline=None, max_examples=50)
def test_messages_come_whole_byte_by_byte(conversation: tuple[bytes, list[Message]]) -> None:
    data, expected = conversation

    assert fed([bytes([byte]) for byte in data]) == expected


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_every_form_of_a_length_is_understood(length: int) -> None:
    payload = bytes(itertools.islice(itertools.cycle(range(256)), length))

    assert fed([frame(BINARY, payload)], max_message=length) == [payload]


@given(payload=st.binary(max_size=70) | st.sampled_from([125, 126, 65535, 65536]).map(bytes))
@settings(deadline=None)
def test_a_server_s_frame_is_one_whole_unmasked_frame_with_the_shortest_length(payload: bytes) -> None:
    made = websocket.frame(Opcode.BINARY, payload)

    assert made == bytes([0x80 | BINARY]) + length_field(len(payload), is_masked=False) + payload


@given(message=texts | payloads)
@settings(deadline=None)
def test_a_message_is_framed_by_its_kind(message: str | bytes) -> None:
    opcode, payload = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)

    assert websocket.message_frame(message) == websocket.frame(opcode, payload)


@given(payload=st.binary(max_size=40), mask=st.binary(min_size=4, max_size=4))
@settings(deadline=None)
def test_any_mask_is_taken_off(payload: bytes, mask: bytes) -> None:
    data = bytes([0x80 | BINARY]) + length_field(len(payload)) + mask + masked(payload, mask)

    assert fed([data]) == [payload]


def test_the_key_is_answered_as_in_the_specification() -> None:
    assert websocket.accept_key(UPGRADE["Sec-WebSocket-Key"]) == ACCEPTED


@pytest.mark.parametrize(
    ("key", "is_key"),
    [
        (UPGRADE["Sec-WebSocket-Key"], True),
        ("", False),
        ("dGhlIHNhbXBsZSBub25jZQ", False),
        ("c2hvcnQ=", False),
        ("äöü", False),
        ("*" * 24, False),
    ],
)
def test_a_key_is_the_base64_of_sixteen_bytes(key: str, is_key: bool) -> None:
    assert websocket.is_key(key) is is_key


@pytest.mark.parametrize(
    "payload", [b"", close_payload(1000), close_payload(1001, "going"), close_payload(3000), close_payload(4999, "ä")]
)
def test_a_close_frame_comes_with_its_code_and_reason(payload: bytes) -> None:
    assert fed([frame(CLOSE, payload)]) == [Control(Opcode.CLOSE, payload)]


@given(code=st.integers(1000, 1014), reason=st.text(st.characters(codec="utf-8"), max_size=200))
@settings(deadline=None)
def test_a_close_frame_of_ours_is_a_good_one_whatever_its_reason(code: int, reason: str) -> None:
    head, payload = websocket.close_frame(code, reason)[:2], websocket.close_frame(code, reason)[2:]

    assert (head[0], head[1]) == (0x80 | CLOSE, len(payload))
    assert len(payload) <= 125
    assert int.from_bytes(payload[:2]) == code
    assert reason.startswith(payload[2:].decode())


# --- What is wrong ---------------------------------------------------------------------------------------------------

WRONG = {
    "an unmasked frame": (PROTOCOL_ERROR, frame(TEXT, b"hello", is_masked=False)),
    "an unmasked empty frame": (PROTOCOL_ERROR, frame(TEXT, is_masked=False)),
    "the first reserved bit": (PROTOCOL_ERROR, frame(TEXT, b"hello", reserved=4)),
    "the second reserved bit": (PROTOCOL_ERROR, frame(TEXT, b"hello", reserved=2)),
    "the third reserved bit": (PROTOCOL_ERROR, frame(TEXT, b"hello", reserved=1)),
    "an opcode for data that is reserved": (PROTOCOL_ERROR, frame(0x3, b"hello")),
    "an opcode for control that is reserved": (PROTOCOL_ERROR, frame(0xB)),
    "a continuation of nothing": (PROTOCOL_ERROR, frame(CONTINUATION, b"hello")),
    "a continuation after the end": (
        PROTOCOL_ERROR,
        b"".join([*fragments(TEXT, [b"a", b"b"]), frame(CONTINUATION, b"c")]),
    ),
    "a message within a message": (PROTOCOL_ERROR, frame(TEXT, b"a", is_final=False) + frame(TEXT, b"b")),
    "a fragmented ping": (PROTOCOL_ERROR, frame(PING, b"a", is_final=False)),
    "a fragmented close": (PROTOCOL_ERROR, frame(CLOSE, close_payload(1000), is_final=False)),
    "a long ping": (PROTOCOL_ERROR, frame(PING, bytes(126))),
    "a long pong": (PROTOCOL_ERROR, frame(PONG, bytes(126))),
    "a close with half a code": (PROTOCOL_ERROR, frame(CLOSE, b"\x03")),
    "a close with a reason that is no UTF-8": (INVALID_DATA, frame(CLOSE, close_payload(1000) + b"\xff")),
    "a text that is no UTF-8": (INVALID_DATA, frame(TEXT, b"\xff\xfe")),
    "a text with a surrogate": (INVALID_DATA, frame(TEXT, b"\xed\xa0\x80")),
    "a text with a longer form than needed": (INVALID_DATA, frame(TEXT, b"\xc0\xaf")),
    "a text beyond Unicode": (INVALID_DATA, frame(TEXT, b"\xf4\x90\x80\x80")),
    "a text that ends within a character": (INVALID_DATA, frame(TEXT, "€".encode()[:2])),
    "a fragmented text that is no UTF-8": (INVALID_DATA, b"".join(fragments(TEXT, [b"a", b"\xff"]))),
    "a message that is too big": (TOO_BIG, frame(BINARY, bytes(MAX + 1))),
    "a message that grows too big": (TOO_BIG, b"".join(fragments(BINARY, [bytes(MAX), b"x"]))),
    "a length beyond all bounds": (TOO_BIG, bytes([0x82, 0xFF]) + b"\xff" * 8),
}


@pytest.mark.parametrize(("code", "data"), WRONG.values(), ids=list(WRONG))
def test_what_breaks_the_protocol_is_refused_by_its_code(code: int, data: bytes) -> None:
    assert refusal(data) == code


@pytest.mark.parametrize(("code", "data"), WRONG.values(), ids=list(WRONG))
def test_it_is_refused_byte_by_byte_too_and_never_heard(code: int, data: bytes) -> None:
    assert refusal(*(bytes([byte]) for byte in data)) == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_a_close_code_that_nobody_may_send_is_refused(code: int) -> None:
    assert refusal(frame(CLOSE, close_payload(code))) == PROTOCOL_ERROR


def test_a_message_that_is_too_big_is_refused_by_its_head() -> None:
    assert refusal(frame(BINARY, bytes(MAX + 1))[:4]) == TOO_BIG


def test_a_message_of_the_greatest_size_is_taken_in_one_frame_or_many() -> None:
    assert fed([frame(BINARY, bytes(MAX))]) == [bytes(MAX)]
    assert fed(fragments(BINARY, [bytes(MAX - 1), b"", b"\0", b""])) == [bytes(MAX)]


def test_a_character_may_be_cut_between_fragments() -> None:
    euro = "€".encode()

    assert fed(fragments(TEXT, [euro[:1], euro[1:2], euro[2:]])) == ["€"]


@pytest.mark.parametrize(("code", "data"), WRONG.values(), ids=list(WRONG))
def test_the_refusal_carries_the_close_frame_to_answer_with(code: int, data: bytes) -> None:
    with pytest.raises(WebSocketError) as refused:
        fed([data])

    reply = refused.value.reply
    assert reply[0] == 0x80 | CLOSE
    assert int.from_bytes(reply[2:4]) == code


# --- Whatever comes --------------------------------------------------------------------------------------------------


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
@settings(deadline=None, max_examples=200)
def test_any_bytes_give_messages_or_the_protocol_s_own_error(data: bytes, cuts: list[int]) -> None:
    assert outcome(pieces(data, cuts)) in (None, PROTOCOL_ERROR, INVALID_DATA, TOO_BIG)


@given(conversation=conversations(), place=st.integers(0, 1 << 16), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=150)
def test_a_flipped_bit_gives_messages_or_the_protocol_s_own_error(
    conversation: tuple[bytes, list[Message]], place: int, bit: int
) -> None:
    data = bytearray(conversation[0] or b"\0")
    data[place % len(data)] ^= 1 << bit

    assert outcome([bytes(data)]) in (None, PROTOCOL_ERROR, INVALID_DATA, TOO_BIG)


def test_tens_of_thousands_of_empty_fragments_are_not_kept() -> None:
    parser = FrameParser(MAX)
    parser.feed(frame(TEXT, is_final=False))
    empty = frame(CONTINUATION, is_final=False) * 1000
    tracemalloc.start()
    try:
        for _ in range(30):
            assert parser.feed(empty) == []
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_no_more_is_kept_than_one_message() -> None:
    parser = FrameParser(100_000)
    data = frame(BINARY, bytes(90_000))
    tracemalloc.start()
    try:
        for _ in range(20):
            parser.feed(data)
            parser.feed(data[:-1])
            parser.feed(data[-1:])
        parser.feed(data[:-1])
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
