"""The Socket.IO core: packets as texts and attachments, compared as texts, and a decoder that nothing surprises."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import socketio
from realtime.socketio import Decoder, Packet, PacketError, PacketType

PLACEHOLDER = '{"_placeholder":true,"num":%d}'

keys = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda key: key != "_placeholder")
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=10
    )


values = nested(scalars)
values_with_bytes = nested(scalars | st.binary(max_size=20))
namespaces = st.just("/") | st.text(st.characters(codec="utf-8", exclude_characters=","), max_size=10).map("/".__add__)
ack_ids = st.none() | st.integers(0, 10**15 - 1)
names = st.text(st.characters(codec="utf-8"), max_size=10).filter(lambda name: name not in socketio.RESERVED_EVENTS)


def counted(data: object) -> int:
    """The number of byte strings in the data."""
    if isinstance(data, bytes):
        return 1
    if isinstance(data, dict):
        return sum(map(counted, data.values()))
    return sum(map(counted, data)) if isinstance(data, list) else 0


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """Any packet that a peer may send."""
    kind = draw(
        st.sampled_from(
            [PacketType.CONNECT, PacketType.DISCONNECT, PacketType.EVENT, PacketType.ACK, PacketType.CONNECT_ERROR]
        )
    )
    namespace = draw(namespaces)
    if kind is PacketType.CONNECT:
        return Packet(kind, namespace, draw(st.none() | st.dictionaries(keys, values, max_size=3)))
    if kind is PacketType.DISCONNECT:
        return Packet(kind, namespace)
    if kind is PacketType.CONNECT_ERROR:
        return Packet(kind, namespace, {"message": draw(names), "data": draw(values)})
    arguments = draw(st.lists(values_with_bytes, max_size=4))
    if kind is PacketType.ACK:
        return Packet(kind, namespace, arguments, draw(st.integers(0, 10**15 - 1)))
    return Packet(kind, namespace, [draw(names), *arguments], draw(ack_ids))


def decoded(*messages: str | bytes) -> list[Packet]:
    """The packets that become whole with the messages."""
    decoder = Decoder()
    return [packet for message in messages if (packet := decoder.feed(message)) is not None]


def is_refused(*messages: str | bytes) -> bool:
    """Whether the last of the messages, and no earlier one, is refused."""
    decoder = Decoder()
    for message in messages[:-1]:
        decoder.feed(message)
    with pytest.raises(PacketError):
        decoder.feed(messages[-1])
    return True


# --- There and back --------------------------------------------------------------------------------------------------


@given(packet=packets().filter(lambda packet: counted(packet.data) <= socketio.MAX_ATTACHMENTS))
@settings(deadline=None, max_examples=200)
def test_a_packet_comes_through_unchanged(packet: Packet) -> None:
    assert decoded(*socketio.encode(packet)) == [packet]


@given(several=st.lists(packets().filter(lambda packet: counted(packet.data) <= 10), max_size=4))
@settings(deadline=None)
def test_packets_that_follow_each_other_come_through_in_order(several: list[Packet]) -> None:
    assert decoded(*(message for packet in several for message in socketio.encode(packet))) == several


@given(packet=packets())
@settings(deadline=None)
def test_every_byte_string_travels_beside_the_text(packet: Packet) -> None:
    text, *attachments = socketio.encode(packet)

    assert isinstance(text, str)
    assert all(isinstance(attachment, bytes) for attachment in attachments)
    assert len(attachments) == counted(packet.data)


AS_TEXTS = {
    "connect": (Packet(PacketType.CONNECT), ["0"]),
    "connect with a payload": (Packet(PacketType.CONNECT, data={"token": "123"}), ['0{"token":"123"}']),
    "connect elsewhere": (Packet(PacketType.CONNECT, "/admin", {"sid": "x"}), ['0/admin,{"sid":"x"}']),
    "connect error": (Packet(PacketType.CONNECT_ERROR, "/no", {"message": "No"}), ['4/no,{"message":"No"}']),
    "disconnect": (Packet(PacketType.DISCONNECT), ["1"]),
    "disconnect elsewhere": (Packet(PacketType.DISCONNECT, "/admin"), ["1/admin,"]),
    "event": (Packet(PacketType.EVENT, data=["hey", 1, "2", {"3": [True]}]), ['2["hey",1,"2",{"3":[true]}]']),
    "event with an ack": (Packet(PacketType.EVENT, data=["hey"], ack_id=456), ['2456["hey"]']),
    "the first ack": (Packet(PacketType.EVENT, data=["hey"], ack_id=0), ['20["hey"]']),
    "event elsewhere with an ack": (Packet(PacketType.EVENT, "/admin", ["hey"], 13), ['2/admin,13["hey"]']),
    "ack": (Packet(PacketType.ACK, data=[], ack_id=12), ["312[]"]),
    "ack elsewhere": (Packet(PacketType.ACK, "/admin", ["bar"], 13), ['3/admin,13["bar"]']),
    "binary event": (Packet(PacketType.EVENT, data=["hey", b"\1"]), [f'51-["hey",{PLACEHOLDER % 0}]', b"\1"]),
    "binary event elsewhere with an ack": (
        Packet(PacketType.EVENT, "/admin", ["hey", b"\1", {"deep": [b"\2"]}], 7),
        [f'52-/admin,7["hey",{PLACEHOLDER % 0},{{"deep":[{PLACEHOLDER % 1}]}}]', b"\1", b"\2"],
    ),
    "binary ack": (Packet(PacketType.ACK, data=[b""], ack_id=5), [f"61-5[{PLACEHOLDER % 0}]", b""]),
    "order of keys": (Packet(PacketType.EVENT, data=["k", {"z": 1, "a": 2, "": 3}]), ['2["k",{"z":1,"a":2,"":3}]']),
    "beyond ASCII": (Packet(PacketType.EVENT, data=["ü", "€😀\u2028"]), ['2["ü","€😀\u2028"]']),
    "half a surrogate pair": (Packet(PacketType.EVENT, data=["x", "\ud83d"]), ['2["x","\\ud83d"]']),
    "escapes": (Packet(PacketType.EVENT, data=["x", '"\\\n\x1e\x00']), ['2["x","\\"\\\\\\n\\u001e\\u0000"]']),
}


@pytest.mark.parametrize(("packet", "messages"), AS_TEXTS.values(), ids=list(AS_TEXTS))
def test_a_packet_is_written_as_in_the_specification(packet: Packet, messages: list[str | bytes]) -> None:
    assert socketio.encode(packet) == messages


@pytest.mark.parametrize(("packet", "messages"), AS_TEXTS.values(), ids=list(AS_TEXTS))
def test_a_packet_is_read_as_in_the_specification(packet: Packet, messages: list[str | bytes]) -> None:
    assert decoded(*messages) == [packet]


@given(data=st.lists(values, max_size=4))
@settings(deadline=None)
def test_the_json_is_as_javascript_writes_it(data: list[Any]) -> None:
    (text,) = socketio.encode(Packet(PacketType.EVENT, data=["x", *data]))

    assert isinstance(text, str)
    without_numbers = json.dumps(json.loads(text[1:]), separators=(",", ":"), ensure_ascii=False)
    # The text of a float is left open; but for those there is one way only.
    if "." not in text and "e" not in text:
        assert text[1:].replace("\\u007f", "\x7f") == without_numbers


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("0/admin", Packet(PacketType.CONNECT, "/admin")),
        ("1/admin", Packet(PacketType.DISCONNECT, "/admin")),
        ("0/admin?token=1&uid=a,", Packet(PacketType.CONNECT, "/admin?token=1&uid=a")),
        ("0/,", Packet(PacketType.CONNECT)),
        ('2[ "hey" , 1 ]', Packet(PacketType.EVENT, data=["hey", 1])),
        ("2[5]", Packet(PacketType.EVENT, data=[5])),
        ('50-["hey"]', Packet(PacketType.EVENT, data=["hey"])),
        ('2["hey",{"_placeholder":true,"num":0}]', Packet(PacketType.EVENT, data=["hey", json.loads(PLACEHOLDER % 0)])),
    ],
)
def test_what_is_written_otherwise_is_read_too(text: str, packet: Packet) -> None:
    assert decoded(text) == [packet]


# --- What is no packet -----------------------------------------------------------------------------------------------

NO_PACKETS = {
    "nothing": "",
    "an unknown type": "7",
    "a word": "abc",
    "an event without data": "2",
    "an event with an object": "2{}",
    "an event with a text": '2"hey"',
    "an event without a name": "2[]",
    "an event whose name is an object": "2[{}]",
    "an event whose name is null": "2[null]",
    "an event whose name is true": "2[true]",
    "an event cut short": '2["hey"',
    "an event with more behind it": '2["hey"]x',
    "two values": '2["hey"]["hey"]',
    "an ack id that is no number": '2abc["hey"]',
    "an ack id below zero": '2-1["hey"]',
    "an ack id of a thousand digits": "2" + "1" * 1000 + '["hey"]',
    "an ack id in other digits": '2\u0661["hey"]',
    "an ack without an id": "3[]",
    "an ack without data": "31",
    "an ack with an object": "31{}",
    "a connect with a list": "0[]",
    "a connect with a text": '0"hey"',
    "a connect with null": "0null",
    "a disconnect with data": '1{"a":1}',
    "a namespace without a slash": '0admin,{"a":1}',
    "a binary event without a number": '5["hey"]',
    "a binary event without a dash": '51["hey"]',
    "a binary event with a number below zero": '5-1-["hey"]',
    "a binary event with a number that is none": '5x-["hey"]',
    "eleven attachments": '511-["hey"]',
    "a billion attachments": '5999999999-["hey"]',
    "attachments of a plain event": f'21-["hey",{PLACEHOLDER % 0}]',
    "an attachment that is not there": f'50-["hey",{PLACEHOLDER % 0}]',
    "NaN": '2["hey",NaN]',
    "infinity": '2["hey",Infinity]',
    "a list without an end": "2" + "[" * 200_000,
    "objects within each other": '2["x",' + '{"a":' * 200_000,
    "a number of a million digits": '2["x",' + "1" * 1_000_000 + "]",
    **{f"the name {name}": f'2["{name}"]' for name in sorted(socketio.RESERVED_EVENTS)},
}


@pytest.mark.parametrize("text", NO_PACKETS.values(), ids=list(NO_PACKETS))
def test_what_is_no_packet_is_refused(text: str) -> None:
    assert is_refused(text)


def test_bytes_that_nobody_announced_are_refused() -> None:
    assert is_refused(b"\1")
    assert is_refused(f'51-["hey",{PLACEHOLDER % 0}]', b"\1", b"\2")


def test_a_text_in_place_of_an_attachment_is_refused() -> None:
    assert is_refused(f'51-["hey",{PLACEHOLDER % 0}]', '2["hey"]')


@pytest.mark.parametrize("number", ["1", "-1", "0.5", '"0"', "null", "1e30"])
def test_a_placeholder_for_no_attachment_is_refused(number: str) -> None:
    assert is_refused(f'51-["hey",{{"_placeholder":true,"num":{number}}}]', b"\1")


def test_ten_attachments_are_taken() -> None:
    data = ["hey", *(bytes([number]) for number in range(10))]

    assert decoded(*socketio.encode(Packet(PacketType.EVENT, data=data))) == [Packet(PacketType.EVENT, data=data)]


def test_one_attachment_may_stand_in_two_places() -> None:
    text = f'51-["hey",{PLACEHOLDER % 0},{PLACEHOLDER % 0}]'

    assert decoded(text, b"\1") == [Packet(PacketType.EVENT, data=["hey", b"\1", b"\1"])]


@pytest.mark.parametrize("kind", ["5", "6"])
def test_data_nested_as_deeply_as_json_may_be_are_a_packet_or_refused(kind: str) -> None:
    for depth in (10, 500, 900, 990, 2000):
        inner = "[" * depth + PLACEHOLDER % 0 + "]" * depth
        decoder = Decoder()
        try:
            decoder.feed(f'{kind}1-1["x",{inner}]')
            decoder.feed(b"\1")
        except PacketError:
            assert depth > 10


# --- Whatever comes --------------------------------------------------------------------------------------------------


@given(
    messages=st.lists(
        st.text(max_size=30)
        | st.text(st.sampled_from('0123456789-/,[]{}":abct_ '), max_size=30)
        | st.binary(max_size=5)
        | packets().map(lambda packet: socketio.encode(packet)[0]),
        max_size=8,
    )
)
@settings(deadline=None, max_examples=250)
def test_any_messages_give_packets_or_the_protocol_s_own_error(messages: list[str | bytes]) -> None:
    decoder = Decoder()
    for message in messages:
        try:
            packet = decoder.feed(message)
        except PacketError:
            return
        if packet is not None and packet.type in (PacketType.EVENT, PacketType.ACK):
            assert isinstance(packet.data, list)
            assert packet.type is PacketType.EVENT or packet.ack_id is not None


@given(packet=packets(), place=st.integers(0, 1000), character=st.characters(codec="utf-8"))
@settings(deadline=None, max_examples=150)
def test_a_text_with_another_character_in_it_is_a_packet_or_refused(packet: Packet, place: int, character: str) -> None:
    text = socketio.encode(packet)[0]
    assert isinstance(text, str)
    at = place % len(text)
    with contextlib.suppress(PacketError):
        Decoder().feed(text[:at] + character + text[at + 1 :])


def test_a_decoder_keeps_no_more_than_a_packet_and_ten_attachments() -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        for _ in range(50):
            decoder.feed('510-["x"]')
            for _ in range(10):
                decoder.feed(bytes(10_000))
        assert tracemalloc.get_traced_memory()[0] < 150_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [object(), 1j, print], ids=["an object", "a complex number", "a function"])
def test_what_json_cannot_hold_is_the_caller_s_error(value: object) -> None:
    with pytest.raises(TypeError):
        socketio.encode(Packet(PacketType.EVENT, data=["x", value]))
