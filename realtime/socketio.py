"""Socket.IO 5 without I/O: packets as Engine.IO messages, and back.

The wire layout of a packet's text, everything but the type left out where it does not apply:

    type  attachments-  /namespace,  ack id  JSON
    2                                        ["hello",1]          an event
    2                   /admin,      456     ["hello",1]          to another namespace, to be acknowledged
    5     1-                                 ["hello",{"_placeholder":true,"num":0}]  then the attachment, as bytes
    3                                456     ["world"]            the acknowledgement

Source: the Socket.IO protocol, version 5 (https://socket.io/docs/v4/socket-io-protocol/).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any

import msgspec

MAIN = "/"
MAX_ATTACHMENTS = 10
# An event of these names would be taken for what the libraries themselves say.
RESERVED_EVENTS = frozenset(
    ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener")
)

_BYTES = (bytes, bytearray, memoryview)
_LISTS = (list, tuple)
_SCALARS = frozenset((str, int, float, bool, type(None), datetime))
_KINDS = tuple(b"%d" % number for number in range(7))

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class PacketType(IntEnum):
    """What a packet is."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


class PacketError(Exception):
    """What came is no packet, or one that must not come now: its connection is to be closed."""


_WITH_ATTACHMENTS = (PacketType.EVENT, PacketType.ACK)


class Packet(msgspec.Struct, frozen=True):
    """A packet. `data` is a list for events and acks, an object for the rest; None: there is none.

    Bytes anywhere in it are its attachments: EVENT and ACK become their binary kinds on the wire by themselves.
    """

    type: PacketType
    namespace: str = MAIN
    data: Any = None
    ack_id: int | None = None


def encode(packet: Packet) -> list[str | bytes]:
    """The Engine.IO messages that carry the packet: its text, then its attachments. Raises `TypeError` for data that
    JSON cannot hold."""
    text, attachments = encode_bytes(packet.type, packet.namespace, packet.data, packet.ack_id)
    return [text.decode(), *attachments]


def encode_bytes(
    kind: PacketType, namespace: str = MAIN, data: Any = None, ack_id: int | None = None
) -> tuple[bytes, Sequence[bytes]]:
    """As `encode`, without a `Packet` and with the text in UTF-8, as it goes out."""
    prefix = _KINDS[kind]
    attachments: list[bytes] = []
    if kind in _WITH_ATTACHMENTS and _has_bytes(data):
        data = _detach(data, attachments)
        prefix = b"%b%d-" % (_KINDS[kind + PacketType.BINARY_EVENT - PacketType.EVENT], len(attachments))
    if namespace != MAIN:
        prefix += namespace.encode() + b","
    if ack_id is not None:
        prefix += b"%d" % ack_id
    return prefix if data is None else prefix + _to_json(data), attachments


class Decoder:
    """Turns the Engine.IO messages of one connection into packets; keeps at most one packet and its attachments."""

    __slots__ = ("_attachments", "_expected", "_packet")

    def __init__(self) -> None:
        self._packet: Packet | None = None
        self._expected = 0
        self._attachments: list[bytes] = []

    def feed(self, message: str | bytes) -> Packet | None:
        """The packet that is whole with this message, if one is; raises `PacketError`, which ends the decoder's use."""
        if isinstance(message, str):
            return self._text(message)
        if self._packet is None:
            raise PacketError("bytes came that belong to no packet")
        self._attachments.append(message)
        return self._completed() if len(self._attachments) == self._expected else None

    def _text(self, text: str) -> Packet | None:
        if self._packet is not None:
            raise PacketError("a packet came where an attachment was due")
        packet, self._expected = _parse(text)
        if packet.type not in (PacketType.BINARY_EVENT, PacketType.BINARY_ACK):
            return packet
        self._packet = packet
        return None if self._expected else self._completed()

    def _completed(self) -> Packet:
        packet, attachments = self._packet, self._attachments
        assert packet is not None  # noqa: S101 - what the callers have just seen
        self._packet, self._attachments = None, []
        kind = PacketType.EVENT if packet.type == PacketType.BINARY_EVENT else PacketType.ACK
        try:
            data = _attach(packet.data, attachments)
        except RecursionError:
            raise PacketError("the data are nested too deeply") from None
        return Packet(kind, packet.namespace, data, packet.ack_id)


_TEXT = re.compile(
    r"(?P<type>[0-6])"
    r"(?:(?<=[56])(?P<attachments>[0-9]{1,9})-)?"
    r"(?:(?P<namespace>/[^,]*)(?:,|\Z))?"
    r"(?P<ack_id>[0-9]{1,15})?"
    r"(?P<json>.*)",
    re.DOTALL,
)


def _parse(text: str) -> tuple[Packet, int]:
    """A packet's text: the packet, without its attachments, and their number."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise PacketError("no packet")
    kind = PacketType(int(found["type"]))
    attachments = _attachments(kind, found["attachments"])
    data = _from_json(found["json"]) if found["json"] else None
    _check(kind, data, has_data=bool(found["json"]), has_ack_id=found["ack_id"] is not None)
    ack_id = None if found["ack_id"] is None else int(found["ack_id"])
    return Packet(kind, found["namespace"] or MAIN, data, ack_id), attachments


def _attachments(kind: PacketType, count: str | None) -> int:
    if kind not in (PacketType.BINARY_EVENT, PacketType.BINARY_ACK):
        return 0
    if count is None:
        raise PacketError("a binary packet must tell the number of its attachments")
    if int(count) > MAX_ATTACHMENTS:
        raise PacketError("too many attachments")
    return int(count)


def _check(kind: PacketType, data: object, *, has_data: bool, has_ack_id: bool) -> None:
    """Refuses a packet whose data are not of its type's kind."""
    good = False
    match kind:
        case PacketType.CONNECT:
            good = isinstance(data, dict) or not has_data
        case PacketType.DISCONNECT:
            good = not has_data
        case PacketType.CONNECT_ERROR:
            good = isinstance(data, dict | str)
        case PacketType.EVENT | PacketType.BINARY_EVENT:
            good = isinstance(data, list) and _is_event_name(data[0] if data else None)
        case PacketType.ACK | PacketType.BINARY_ACK:
            good = isinstance(data, list) and has_ack_id
    if not good:
        raise PacketError(f"the data do not fit a packet of type {kind.name}")


def _is_event_name(name: object) -> bool:
    if isinstance(name, str):
        return name not in RESERVED_EVENTS
    return isinstance(name, int | float) and not isinstance(name, bool)


def _to_json(data: object) -> bytes:
    try:
        return _encoder.encode(data)
    except UnicodeEncodeError:
        # Half a surrogate pair, which JavaScript's texts may hold: as an escape it comes through unchanged.
        return json.dumps(data, separators=(",", ":")).encode()


def _from_json(text: str) -> object:
    try:
        return _decoder.decode(text)
    except RecursionError:
        raise PacketError("the JSON is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass
    try:
        # Slower, but it takes the halves of surrogate pairs that JavaScript sends.
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise PacketError("the JSON is not valid") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _has_bytes(data: Any) -> bool:
    if isinstance(data, dict):
        data = data.values()
    elif not isinstance(data, _LISTS):
        return isinstance(data, _BYTES)
    for value in data:  # noqa: SIM110 - a generator would take longer than the looks
        if type(value) not in _SCALARS and _has_bytes(value):
            return True
    return False


def _detach(data: object, attachments: list[bytes]) -> object:
    """The data with placeholders for its bytes, which are appended to the attachments."""
    if isinstance(data, _BYTES):
        attachments.append(bytes(data))
        return {"_placeholder": True, "num": len(attachments) - 1}
    if isinstance(data, dict):
        return {key: _detach(value, attachments) for key, value in data.items()}
    if isinstance(data, _LISTS):
        return [_detach(value, attachments) for value in data]
    return data


def _attach(data: Any, attachments: list[bytes]) -> Any:
    """The data with its bytes in place of the placeholders; raises `PacketError`."""
    if isinstance(data, list):
        return [_attach(value, attachments) for value in data]
    if not isinstance(data, dict):
        return data
    if data.get("_placeholder") is not True:
        return {key: _attach(value, attachments) for key, value in data.items()}
    number = data.get("num")
    if isinstance(number, int) and 0 <= number < len(attachments):
        return attachments[number]
    raise PacketError("a placeholder stands for no attachment")
