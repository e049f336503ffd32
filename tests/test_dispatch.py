"""Requests on their way to handlers: the short way says what Tornado's would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPServerRequest, RequestStartLine, ResponseStartLine
from tornado.routing import URLSpec

from handlers.app import application
from handlers.dispatch import host_name
from handlers.http import JsonHandler
from http1.exchange import Exchange, RequestContext
from http1.limits import Limits
from http1.parser import RequestParser


class First(JsonHandler):
    pass


class Second(JsonHandler):
    pass


ROUTES = [
    URLSpec(r"/a/b/?", First, {"number": 1}),
    URLSpec(r"/a/b", Second, {"number": 2}),
    URLSpec(r"/a/c", Second),
    URLSpec(r"/a/([^/]+)/?", First),
    URLSpec(r"/x.y", Second),
    URLSpec(r"/x-y/z_1/?", Second),
]
PATHS = ["/a/b", "/a/b/", "/a/c", "/a/c/", "/a/d", "/x.y", "/x-y", "/x-y/z_1", "/x-y/z_1/", "/", ""]


@pytest.mark.parametrize("path", PATHS)
def test_a_fixed_path_has_the_place_that_tornado_s_routes_give_it(path: str) -> None:
    served = application(ROUTES)
    match = next((route for route in ROUTES if route.regex.match(path)), None)
    found = served.fixed.get(path)
    is_fixed = path in ("/a/b", "/a/b/", "/a/c", "/x-y/z_1", "/x-y/z_1/")
    assert (found is not None) is is_fixed
    if found is not None and match is not None:
        assert found == (match.handler_class, match.kwargs or {})


@given(st.text(st.characters(max_codepoint=0x17F), max_size=6).map(lambda text: f"h{text}") | st.just("[::1]:80"))
def test_a_host_is_what_tornado_takes_it_for(host: str) -> None:
    def by_tornado() -> str:
        line = RequestStartLine("GET", "/", "HTTP/1.1")
        return HTTPServerRequest(start_line=line, headers=HTTPHeaders({"Host": host})).host_name

    try:
        expected = by_tornado()
    except HTTPInputError:
        with pytest.raises(HTTPInputError):
            host_name(host)
    else:
        assert host_name(host) == expected
    long = "a" * 200
    assert host_name(long) == long


class Carrier:
    """A connection that keeps what is written to it."""

    is_over = False

    def __init__(self, *, is_last: bool) -> None:
        self.is_last = is_last
        self.written = b""
        self.answers = 0

    def write(self, data: bytes) -> Any:
        self.written += data

    def answered(self) -> None:
        self.answers += 1


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",  # answered before its body has come
    ],
)
def test_an_answer_in_one_piece_is_what_its_pieces_are(head: bytes, is_last: bool) -> None:
    written = []
    for whole in (True, False):
        carrier = Carrier(is_last=is_last)
        parsed = RequestParser(Limits()).head(head)
        assert parsed is not None
        exchange = Exchange(carrier, parsed, RequestContext("127.0.0.1", "http"))  # type: ignore[arg-type]
        if whole:
            exchange.answer(b"HTTP/1.1 200 OK\r\nA: b\r\n", b"body")
        else:
            headers = HTTPHeaders({"A": "b", "Content-Length": "4"})
            exchange.write_headers(ResponseStartLine("", 200, "OK"), headers, b"body")
            exchange.finish()
        written.append((carrier.written, exchange.keeps_alive, exchange.is_answered, carrier.answers))
    assert written[0] == written[1]
