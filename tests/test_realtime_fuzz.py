"""The fuzzer of `make fuzz`, for a few seconds; and that it would find what is wrong."""

from __future__ import annotations

import random

import pytest

from realtime import engineio
from realtime.websocket import FrameParser, Message
from tests import fuzz_protocols
from tests.fuzz_protocols import Fault


@pytest.mark.slow
def test_the_fuzzer_finds_nothing() -> None:
    tried = fuzz_protocols.fuzz(seconds=6, seed=random.SystemRandom().randrange(1 << 32))

    assert all(number > 500 for number in tried.values()), tried


def test_it_finds_an_exception_that_is_not_the_protocol_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def receive(packet: str | bytes) -> object:
        return {"4": "message", "3": "pong", "1": "close"}[str(packet[0])]

    monkeypatch.setattr(engineio, "receive", receive)

    with pytest.raises((KeyError, IndexError)) as found:
        fuzz_protocols.fuzz(seconds=10, seed=1)
    assert "of kind payload" in found.value.__notes__[0]


def test_it_finds_a_parser_that_depends_on_how_the_bytes_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = FrameParser.feed

    def forgetful(parser: FrameParser, data: bytes) -> list[Message]:
        return feed(parser, data) if len(data) != 7 else []

    monkeypatch.setattr(FrameParser, "feed", forgetful)

    with pytest.raises(Fault, match="cut"):
        fuzz_protocols.fuzz(seconds=10, seed=1)


def test_it_finds_memory_that_explodes(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engineio.decode_payload

    def greedy(payload: str) -> list[str | bytes]:
        assert bytes(3_000_000 * payload.count("b"))[-1:] in (b"", b"\0")
        return decode(payload)

    monkeypatch.setattr(engineio, "decode_payload", greedy)

    with pytest.raises(Fault, match="bytes for an input"):
        fuzz_protocols.fuzz(seconds=10, seed=1)
