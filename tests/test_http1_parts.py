"""The parts of the HTTP server that are good for something alone: headers, the wheel of deadlines."""

from __future__ import annotations

import asyncio
import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPInputError

from http1.headers import CheckedHeaders
from http1.wheel import Wheel
from tests.conftest import until

NAMES = st.sampled_from(["Host", "host", "content-TYPE", "X-A", "x-a", "A" * 100])
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES)), NAMES)
def test_headers_are_what_tornado_s_own_would_be(lines: list[tuple[str, str]], asked: str) -> None:
    ours, tornado = CheckedHeaders(), HTTPHeaders()
    for name, value in lines:
        ours.append(name.encode(), value.encode())
        tornado.add(name, value)

    for headers in (ours, copy.copy(ours)):
        assert list(headers.get_all()) == list(tornado.get_all())
        assert headers == tornado
        assert (asked in headers, headers.get(asked)) == (asked in tornado, tornado.get(asked))
        assert headers.get_list(asked) == tornado.get_list(asked)
        assert str(headers) == str(tornado)
        assert len(headers) == len(tornado)


def test_headers_can_be_changed_as_tornado_s_own() -> None:
    headers = CheckedHeaders()
    headers.append(b"A", b"1 \t")
    headers.add("a", "2")
    headers["b"] = "3"

    assert headers["A"] == "1,2"
    assert headers.pop("B") == "3"
    del headers["a"]
    assert not headers
    with pytest.raises(HTTPInputError):
        headers.add("C", "a\r\nb")


class Item:
    """Something with a deadline, that counts how often it expired."""

    def __init__(self, seconds: float) -> None:
        self.deadline = asyncio.get_running_loop().time() + seconds
        self.slot = 0
        self.expired_at: list[float] = []

    def expired(self) -> None:
        self.expired_at.append(asyncio.get_running_loop().time())
        self.deadline = math.inf


@pytest.mark.gen_test
async def test_each_deadline_is_kept_within_a_tick_or_so() -> None:
    wheel = Wheel(0.02)
    items = [Item(number / 50) for number in range(10)]
    deadlines = [item.deadline for item in items]

    for item in items:
        wheel.add(item)
    await until(lambda: all(item.expired_at for item in items))

    for item, deadline in zip(items, deadlines, strict=True):
        [moment] = item.expired_at
        assert deadline <= moment < deadline + 1
    wheel.close()


@pytest.mark.gen_test
async def test_a_deadline_that_was_put_off_is_not_met_and_one_that_came_closer_is() -> None:
    wheel = Wheel(0.02)
    later, sooner, gone, reference = Item(0.05), Item(60), Item(0.05), Item(0.15)
    for item in (later, sooner, gone, reference):
        wheel.add(item)

    later.deadline += 60
    sooner.deadline -= 59.9
    wheel.hasten(sooner)
    wheel.discard(gone)
    await until(lambda: reference.expired_at)

    assert sooner.expired_at
    assert not later.expired_at
    assert not gone.expired_at
    wheel.close()


@pytest.mark.gen_test
async def test_a_wheel_without_items_sets_no_timer() -> None:
    wheel = Wheel(0.02)
    item = Item(0.02)
    wheel.add(item)
    wheel.discard(item)

    await until(lambda: wheel._timer is None)

    wheel.add(item)
    await until(lambda: item.expired_at)
    wheel.close()
