"""WebSocket without I/O, a server's side of it: the opening's key, frames out, and a parser of what clients send.

The wire layout (RFC 6455, section 5.2), a client's frames always masked, a server's never:

    FIN 1 bit, RSV 3, opcode 4 | MASK 1 bit, length 7 | length 16 or 64 bits | masking key 32 bits | payload

Extensions are not negotiated, so the reserved bits are zero.
"""

from __future__ import annotations

import base64
import struct
from enum import IntEnum
from hashlib import sha1
from typing import NamedTuple

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# RFC 6455, section 4.1.
VERSION = "13"

NORMAL, GOING_AWAY, PROTOCOL_ERROR, INVALID_DATA, POLICY, TOO_BIG = 1000, 1001, 1002, 1007, 1008, 1009


class Opcode(IntEnum):
    """RFC 6455, section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class WebSocketError(Exception):
    """The peer broke the protocol; `reply` is the close frame to send before the connection ends."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reply = close_frame(code, reason)


class Control(NamedTuple):
    """A control frame of the peer: PING, PONG or CLOSE, and its payload."""

    opcode: Opcode
    payload: bytes


Message = str | bytes | Control


def accept_key(key: str) -> str:
    """The answer to a client's `Sec-WebSocket-Key` (RFC 6455, section 4.2.2)."""
    return base64.b64encode(sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()).decode()


def switching(key: str) -> bytes:
    """The whole answer that opens a WebSocket (RFC 6455, section 4.2.2)."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
    ).encode()


def is_key(key: str) -> bool:
    """Whether a `Sec-WebSocket-Key` is the base64 of 16 bytes (RFC 6455, section 4.1)."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole message as a server's frame."""
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    if length < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, 126, length) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, length) + payload


def message_frame(message: str | bytes) -> bytes:
    """A text or bytes as a frame."""
    if isinstance(message, bytes):
        return frame(Opcode.BINARY, message)
    return frame(Opcode.TEXT, message.encode())


def close_frame(code: int, reason: str = "") -> bytes:
    """The frame that ends a connection; a reason that does not fit into it is cut."""
    return frame(Opcode.CLOSE, struct.pack("!H", code) + reason.encode()[:123].decode(errors="ignore").encode())


class FrameParser:
    """Turns the bytes that a client sends into messages, however they are cut.

    It keeps no more than one message of `max_message` bytes, and nothing at all between whole frames.
    """

    __slots__ = ("_buffer", "_max_message", "_message", "_message_opcode", "_needed")

    def __init__(self, max_message: int) -> None:
        self._max_message = max_message
        self._buffer: bytearray | None = None
        self._needed = 0
        # A message of several frames, as far as it has come.
        self._message: bytearray | None = None
        self._message_opcode = 0

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole with these bytes, in order; raises `WebSocketError`, which ends the parser's use.

        Messages that came before a broken frame in the same bytes are lost, as if the frame had come first.
        """
        if self._buffer is not None:
            self._buffer += data
            # Looking only once enough has come keeps a message in a million pieces from costing a million looks.
            if len(self._buffer) < self._needed:
                return []
            data = bytes(self._buffer)
            self._buffer = None
        found: list[Message] = []
        position = 0
        while position < len(data):
            end = self._frame_end(data, position)
            if end > len(data):
                self._buffer = bytearray(data[position:])
                self._needed = end - position
                break
            message = self._take(data, position, end)
            if message is not None:
                found.append(message)
            position = end
        return found

    def _frame_end(self, data: bytes, start: int) -> int:
        """Where the frame ends that starts here; for one that is not whole yet, some place behind the data's end."""
        if len(data) < start + 2:
            return start + 2
        first, second = data[start], data[start + 1]
        self._check_header(first, second)
        length = second & 0x7F
        header = 6
        if length == 126:
            header = 8
            if len(data) < start + 4:
                return start + 4
            length = struct.unpack_from("!H", data, start + 2)[0]
        elif length == 127:
            header = 14
            if len(data) < start + 10:
                return start + 10
            length = struct.unpack_from("!Q", data, start + 2)[0]
        if length + len(self._message or b"") > self._max_message and first & 0x08 == 0:
            raise WebSocketError(TOO_BIG, "the message is too big")
        return int(start + header + length)

    def _check_header(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise WebSocketError(PROTOCOL_ERROR, "reserved bits are set")
        if not second & 0x80:
            raise WebSocketError(PROTOCOL_ERROR, "a client's frames must be masked")
        if opcode not in _OPCODES:
            raise WebSocketError(PROTOCOL_ERROR, "unknown opcode")
        if opcode & 0x08:
            if not first & 0x80 or second & 0x7F > 125:
                raise WebSocketError(PROTOCOL_ERROR, "a control frame must be short and whole")
        elif (opcode == Opcode.CONTINUATION) != (self._message is not None):
            raise WebSocketError(PROTOCOL_ERROR, "continuation frames must follow the beginning of a message")

    def _take(self, data: bytes, start: int, end: int) -> Message | None:
        """The message that the frame completes, if any."""
        opcode = data[start] & 0x0F
        size = data[start + 1] & 0x7F
        payload_start = start + (6 if size < 126 else 8 if size == 126 else 14)
        payload = _unmask(data[payload_start - 4 : payload_start], data[payload_start:end])
        if opcode & 0x08:
            return _control(Opcode(opcode), payload)
        if data[start] & 0x80 and self._message is None:
            return _whole(opcode, payload)
        if self._message is None:
            self._message = bytearray()
            self._message_opcode = opcode
        self._message += payload
        if not data[start] & 0x80:
            return None
        message, self._message = bytes(self._message), None
        return _whole(self._message_opcode, message)


_OPCODES = frozenset(Opcode)


def _whole(opcode: int, payload: bytes) -> Message:
    if opcode == Opcode.BINARY:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise WebSocketError(INVALID_DATA, "a text is not UTF-8") from None


def _control(opcode: Opcode, payload: bytes) -> Control:
    if opcode == Opcode.CLOSE:
        _check_close(payload)
    return Control(opcode, payload)


def _check_close(payload: bytes) -> None:
    """Refuses the payload of a close frame that is none (RFC 6455, sections 5.5.1 and 7.4)."""
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (1000 <= code < 5000) or code in (1004, 1005, 1006) or 1015 <= code < 3000:
        raise WebSocketError(PROTOCOL_ERROR, "no such close code")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise WebSocketError(INVALID_DATA, "a reason is not UTF-8") from None


def _unmask(key: bytes, payload: bytes) -> bytes:
    """The payload, by the exclusive or of whole numbers: one step of C for any length."""
    length = len(payload)
    if not length:
        return b""
    mask = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(length, "little")
