"""Codes by which an account is linked: good once typed, for ten minutes, and by no other secret."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat.link_codes import GOOD_FOR_SECONDS, GoodCode, LinkCodes
from tests.conftest import SECRET

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def codes(clock: Clock) -> LinkCodes:
    return LinkCodes(SECRET, clock)


def test_a_code_says_whose_it_is_until_ten_minutes_are_over(codes: LinkCodes, clock: Clock) -> None:
    made = codes.make(1000)

    assert made.expires_in == GOOD_FOR_SECONDS == 600
    clock.now = NOON + timedelta(seconds=599, milliseconds=999)
    good = codes.read(made.code)
    clock.now = NOON + timedelta(seconds=600)
    assert good == GoodCode(made.code.replace("-", ""), 1000)
    assert codes.read(made.code) is None


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(str.lower, id="in small letters"),
        pytest.param(lambda code: code.replace("-", ""), id="without marks"),
        pytest.param(lambda code: f" `{code.replace('-', ' ')}`\n", id="with other marks"),
    ],
)
def test_a_code_may_be_typed_otherwise_and_is_the_same(codes: LinkCodes, typed: object) -> None:
    code = codes.make(1000).code

    assert callable(typed)
    assert codes.read(typed(code)) == codes.read(code) != None  # noqa: E711 - that both are None would be no sameness


def test_codes_of_two_moments_or_two_accounts_are_not_the_same(codes: LinkCodes, clock: Clock) -> None:
    first = {codes.make(1000).code, codes.make(1001).code}
    clock.now += timedelta(milliseconds=1)

    assert len(first | {codes.make(1000).code, codes.make(1001).code}) == 4


def test_a_code_of_another_secret_is_none(codes: LinkCodes, clock: Clock) -> None:
    assert codes.read(LinkCodes(b"another secret", clock).make(1000).code) is None


@settings(deadline=None, max_examples=100)
@given(bit=st.integers(0, 159))
def test_a_code_with_one_bit_changed_is_none(bit: int) -> None:
    codes = LinkCodes(SECRET, lambda: NOON)
    raw = bytearray(base64.b32decode(codes.make(1000).code.replace("-", "")))
    raw[bit // 8] ^= 1 << bit % 8

    assert codes.read(base64.b32encode(bytes(raw)).decode()) is None


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=50) | st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567ß189é", min_size=31, max_size=33))
def test_what_is_no_code_is_none(text: str) -> None:
    assert LinkCodes(SECRET, lambda: NOON).read(text) is None
