"""A fuzzer of everything that reads what clients send: WebSocket frames, polling payloads, Socket.IO packets.

    make fuzz                      ten minutes
    make fuzz ARGS="--seconds 60"

It mutates what clients send, keeps mutants that reach lines which nothing reached before, and mutates them further. It
ends by the first input that a parser answers by anything but messages or the protocol's own error, that it answers
otherwise when the bytes come cut, or that it keeps more of than it may.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any

from realtime import engineio, socketio
from realtime.engineio import MESSAGE, ProtocolError
from realtime.hub import Parcel
from realtime.socketio import Decoder, PacketError
from realtime.websocket import Control, FrameParser, Message, WebSocketError
from tests.wire import BINARY, CLOSE, PING, TEXT, close_payload, fragments, frame

MAX_MESSAGE = 10_000
# What a parser may keep, times the size of what it was fed: objects of Python for each byte, and nothing that explodes.
FACTOR = 200
AT_LEAST = 1_000_000

SEEDS: dict[str, list[bytes]] = {
    "websocket": [
        frame(TEXT, b"4hello"),
        frame(BINARY, bytes(200)),
        frame(BINARY, bytes(5000)),
        frame(PING, b"x") + frame(TEXT, "4€".encode()),
        frame(CLOSE, close_payload(1000, "bye")),
        b"".join(fragments(TEXT, [b"4a", b"b", "ü".encode()])),
        b"".join(fragments(BINARY, [b"a", b"", b"c"])) + frame(TEXT, b"3"),
    ],
    "payload": [b"4hello", b"4a\x1e4b\x1ebAQID", b"3", b"1", "4ü😀".encode(), b"b", b"4\x1e"],
    "packet": [
        b"0",
        b'0{"token":"abc"}',
        b'0/admin,{"a":1}',
        b"1/admin,",
        b'2["hello",1,"2",{"3":[true,null,1.5e3]}]',
        b'2/admin,456["hello"]',
        b'312["x"]',
        b'51-["x",{"_placeholder":true,"num":0}]\0\1\2',
        b'62-/a,7[{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}]\0a\0b',
        b'2["\\ud800","\\u0000"]',
    ],
}
WORDS = [
    *(b"{", b"}", b"[", b"]", b'"', b",", b"-", b"/", b"\x1e", b"\0", b"b", b"\\u", b"[" * 50),
    *(b"_placeholder", b"num", b"connect", b"null", b"1e999", b"-0", b"9" * 30),
    *(b"\xff", b"\xe2\x82", b"\x7e\xff\xff", b"\xff" * 9),
]


class Fault(Exception):
    """A parser did what it must not do."""


def read_frames(data: bytes, random_source: random.Random) -> None:
    """Feeds a parser of frames the data whole, and cut: the outcome must be the same."""
    expected, code = _outcome([data])
    found, code_of_cut = _outcome(_cut(data, random_source))
    # What comes before a broken frame is heard if it came in time, and lost if it came together with it.
    if code != code_of_cut or (code is None and expected != found):
        raise Fault(f"whole: {expected!r} {code}, cut: {found!r} {code_of_cut}")


def _outcome(pieces: Sequence[bytes]) -> tuple[list[Message], int | None]:
    """The messages, and the code of the error that ended it."""
    parser = FrameParser(MAX_MESSAGE)
    found: list[Message] = []
    try:
        for piece in pieces:
            found += parser.feed(piece)
    except WebSocketError as error:
        return found, error.code
    if any(len(message) > MAX_MESSAGE for message in found if not isinstance(message, Control)):
        raise Fault("a message that is too big")
    return found, None


def read_payload(data: bytes, _random_source: random.Random) -> None:
    """Reads the data as the body of a POST."""
    try:
        packets = engineio.decode_payload(data.decode())
        for packet in packets:
            engineio.receive(packet)
    except (ProtocolError, UnicodeDecodeError):
        return
    if engineio.decode_payload(engineio.encode_payload(packets)) != packets:
        raise Fault("the payload, written again, is another one")


def read_packets(data: bytes, _random_source: random.Random) -> None:
    """Reads the data as a packet and its attachments, which a NUL separates; what is read is written and read again."""
    text, *attachments = data.split(b"\0")
    decoder = Decoder()
    try:
        found = [decoder.feed(text.decode()), *map(decoder.feed, attachments)]
    except (PacketError, UnicodeDecodeError):
        return
    for packet in found:
        if packet is None:
            continue
        messages = socketio.encode(packet)
        Parcel([MESSAGE + each if isinstance(each, str) else each for each in messages])
        again = Decoder()
        if not _same([again.feed(message) for message in messages][-1], packet):
            raise Fault(f"{packet!r}, written again, is another one")


def _same(one: object, other: object) -> bool:
    # By their representation: a number that is beyond what a float holds is null when it is written.
    return repr(one) == repr(other) or "inf" in repr(other)


READERS: dict[str, Callable[[bytes, random.Random], None]] = {
    "websocket": read_frames,
    "payload": read_payload,
    "packet": read_packets,
}


def _cut(data: bytes, source: random.Random) -> list[bytes]:
    places = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(6)))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


def mutant(data: bytes, others: Sequence[bytes], source: random.Random) -> bytes:
    """The data with a few changes."""
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        place = source.randrange(len(data) + 1)
        end = min(len(data), place + source.choice((0, 1, 1, 2, 4, 16)))
        change = source.randrange(6)
        if change == 0 and data:
            place %= len(data)
            data = data[:place] + bytes([data[place] ^ 1 << source.randrange(8)]) + data[place + 1 :]
        elif change == 1:
            data = data[:place] + source.randbytes(source.choice((1, 2, 4))) + data[end:]
        elif change == 2:
            data = data[:place] + source.choice(WORDS) + data[end:]
        elif change == 3:
            data = data[:place] + data[end:]
        elif change == 4:
            data = data[:place] + source.choice(others) + data[end:]
        else:
            data = data[:end] + data[place:end] * source.choice((1, 2, 20)) + data[end:]
    return data[:20_000]


class Coverage:
    """Which lines of realtime/ were reached, by the interpreter's own tracing."""

    def __init__(self) -> None:
        self.lines: set[tuple[CodeType, int]] = set()
        self._is_new = False

    def of(self, call: Callable[[], None]) -> bool:
        """Calls, and tells whether a line was reached for the first time."""
        self._is_new = False
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(None)
        return self._is_new

    def _enter(self, entered: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        return self._line if "/realtime/" in entered.f_code.co_filename else None

    def _line(self, reached: FrameType, _event: str, _argument: object) -> Callable[..., Any]:
        line = (reached.f_code, reached.f_lineno)
        if line not in self.lines:
            self.lines.add(line)
            self._is_new = True
        return self._line


def fuzz(seconds: float, seed: int) -> dict[str, int]:
    """Tries inputs for so many seconds; how many there were of each kind. Raises what the first bad one raises."""
    source = random.Random(seed)
    corpus = {kind: list(seeds) for kind, seeds in SEEDS.items()}
    coverage = Coverage()
    tried = dict.fromkeys(corpus, 0)
    ends = time.monotonic() + seconds
    tracemalloc.start()
    try:
        while time.monotonic() < ends:
            kind = source.choice(list(corpus))
            data = mutant(source.choice(corpus[kind]), corpus[kind], source)
            if _is_new(kind, data, coverage, source):
                corpus[kind].append(data)
            tried[kind] += 1
    finally:
        tracemalloc.stop()
    return tried


def _is_new(kind: str, data: bytes, coverage: Coverage, source: random.Random) -> bool:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        is_new = coverage.of(lambda: READERS[kind](data, source))
    except Exception as error:
        error.add_note(f"the input, of kind {kind}: {data!r}")
        raise
    peak = tracemalloc.get_traced_memory()[1] - before
    if peak > AT_LEAST + FACTOR * len(data):
        raise Fault(f"{peak} bytes for an input of {len(data)}, of kind {kind}: {data!r}")
    return is_new


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_protocols", description="fuzz realtime/'s parsers")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    sys.stderr.write(f"seed {seed}, {arguments.seconds:.0f} s\n")
    tried = fuzz(arguments.seconds, seed)
    sys.stderr.write(f"no fault in {sum(tried.values())} inputs: {tried}\n")


if __name__ == "__main__":
    main()
