"""The parts of the HTTP server that are good for something alone: headers, the wheel of deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import math
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPInputError

from http1.headers import CheckedHeaders
from http1.limits import Limits
from http1.parser import BadRequest, Heads, RequestParser
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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES)), st.booleans(), st.sampled_from(["set", "add", "delete", "list"]), NAMES)
def test_a_copy_of_headers_and_what_it_is_a_copy_of_do_not_change_each_other(
    lines: list[tuple[str, str]], changes_copy: bool, how: str, name: str
) -> None:
    headers = CheckedHeaders()
    for each, value in lines:
        headers.append(each.encode(), value.encode())
    before = list(headers.get_all())
    copied = headers.copy()
    changed, other = (copied, headers) if changes_copy else (headers, copied)

    match how:
        case "set":
            changed[name] = "new"
        case "add":
            changed.add(name, "new")
        case "delete":
            changed.pop(name, None)
        case _:
            changed.get_list(name).append("new")

    assert list(other.get_all()) == before
    assert list(other.copy().get_all()) == before


USUAL = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"


@pytest.mark.parametrize(
    ("head", "is_kept"),
    [
        (USUAL, True),
        (USUAL + b"Authorization: Bearer secret\r\n", False),
        (USUAL + b"Proxy-Authorization: Basic secret\r\n", False),
        (USUAL + b"cookie: secret\r\n", False),
        (USUAL + b"X-Api-Key: secret\r\n", False),
        (USUAL.replace(b"/a", b"/a?k=secret"), False),
        (USUAL.replace(b"/a", b"http://me:secret@x/a"), False),
        (USUAL + b"Expect: 100-continue\r\n", False),
        (USUAL + b"Connection: upgrade\r\nUpgrade: websocket\r\n", False),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", False),
        (USUAL + b"User-Agent: %b\r\n" % (b"a" * 1024), False),
        (b"\r\n" + USUAL, False),
    ],
)
def test_only_ordinary_heads_without_secrets_are_remembered(head: bytes, is_kept: bool) -> None:
    heads = Heads()
    found = RequestParser(Limits(), heads).head(head + b"\r\nhello")

    assert found is not None
    assert heads.get(head + b"\r\nhello") is (found if is_kept else None)


def test_only_so_many_heads_are_remembered_and_the_last_ones() -> None:
    heads = Heads()
    sent = [b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(3000)]
    for data in sent:
        RequestParser(Limits(), heads).head(data)

    kept = [data for data in sent if heads.get(data) is not None]
    assert kept == sent[-2048:]


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /a HTTP/1.1\r\nAuthorization: secret\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
)
def test_what_a_parser_holds_goes_with_its_connection_and_needs_no_collector(sent: bytes) -> None:
    parser = RequestParser(Limits())
    with contextlib.suppress(BadRequest):
        head = parser.head(sent)
        assert head is not None
        while not parser.is_complete:
            parser.body(sent[head.size :])
    gone = weakref.ref(parser)
    gc.disable()
    try:
        del parser
        assert gone() is None
    finally:
        gc.enable()


def test_a_connection_that_waits_for_its_next_request_keeps_no_fields_of_the_last() -> None:
    parser = RequestParser(Limits())
    head = parser.head(USUAL + b"Authorization: Bearer secret\r\n\r\n")
    assert head is not None
    gone = weakref.ref(head.headers)
    del head
    assert gone() is None


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
