"""Requests on their way to handlers: the short way says what Tornado's would."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPServerRequest, RequestStartLine, ResponseStartLine
from tornado.routing import URLSpec
from tornado.testing import bind_unused_port

from chat.refusals import Malformed
from handlers.app import application
from handlers.dispatch import host_name
from handlers.http import MAX_BODY, JsonHandler
from handlers.serving import make_server
from http1.exchange import Exchange, RequestContext
from http1.headers import CheckedHeaders
from http1.limits import Limits
from http1.parser import RequestParser
from http1.server import Parser


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


class Telling(JsonHandler):
    """Says what it was asked, at once."""

    def get(self) -> None:
        tell(self)

    def put(self) -> None:
        raise Malformed("body", "is wrong")


class TellingLater(JsonHandler):
    """The same after a while, within a time that only tasks can have."""

    async def get(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        tell(self)

    async def put(self) -> None:
        await asyncio.sleep(0)
        raise Malformed("body", "is wrong")


def tell(handler: JsonHandler) -> None:
    request = handler.request
    headers = sorted(request.headers.get_all())
    request.headers["Host"] = "spoilt"
    body = handler.body().decode()
    handler.reply(200, {"asked": [request.method, request.uri, request.host, headers], "body": body})


def asking(line: bytes, *fields: bytes, body: bytes = b"", host: bytes = b"Host: x\r\n") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%b\r\n%b%b%b\r\n%b" % (line, host, b"".join(field + b"\r\n" for field in fields), length, body)


# What is asked, and whether it goes the short way once its head is known.
ASKED = {
    "at once": (asking(b"GET /now HTTP/1.1"), True),
    "later": (asking(b"GET /later HTTP/1.1"), True),
    "with a body": (asking(b"GET /later HTTP/1.1", body=b"hello"), True),
    "a refusal at once": (asking(b"PUT /now HTTP/1.1"), True),
    "a refusal later": (asking(b"PUT /later HTTP/1.1"), True),
    "no method of the handler's": (asking(b"POST /now HTTP/1.1"), True),
    "no method": (asking(b"BREW /now HTTP/1.1"), True),
    "HEAD": (asking(b"HEAD /now HTTP/1.1"), True),
    "the last one": (asking(b"GET /now HTTP/1.1", b"Connection: close"), True),
    "HTTP/1.0": (asking(b"GET /now HTTP/1.0", b"Connection: keep-alive", host=b""), True),
    "no host": (asking(b"GET /now HTTP/1.1", host=b""), False),
    "two hosts": (asking(b"GET /now HTTP/1.1", b"Host: y"), None),
    "a path that nobody has": (asking(b"GET /never HTTP/1.1"), False),
    "a body that is too large": (asking(b"GET /now HTTP/1.1", body=b"x" * (MAX_BODY + 1)), False),
}


@pytest.mark.parametrize(("sent", "is_short"), ASKED.values(), ids=list(ASKED))
@pytest.mark.gen_test
async def test_what_is_taken_as_a_whole_has_the_answer_that_it_has_piece_by_piece(
    sent: bytes, is_short: bool | None
) -> None:
    served = application([URLSpec("/now", Telling), URLSpec("/later", TellingLater)])
    taken: list[bool | None] = []
    take = served.take

    def watched(exchange: Exchange, line: RequestStartLine, headers: CheckedHeaders, body: bytes) -> bool:
        taken.append(None)
        taken[-1] = take(exchange, line, headers, body)
        return bool(taken[-1])

    served.take = watched  # type: ignore[method-assign]
    listening, port = bind_unused_port()
    server = make_server(served, limits=Limits(linger=0.1, tick=0.05))
    server.add_socket(listening)

    first, second, third = [await answered(port, sent) for _ in range(3)]

    assert first == second == third
    # What comes too late for one reading is no whole.
    assert taken == [is_short] * 2 or (not is_short and not taken)
    server.stop()
    await server.close_all_connections()


@pytest.mark.parametrize(("parser", "status"), [("httptools", b"400"), ("tornado", b"413")])
@pytest.mark.gen_test
async def test_a_length_of_more_digits_than_python_reads_is_refused(parser: Parser, status: bytes) -> None:
    listening, port = bind_unused_port()
    server = make_server(application([URLSpec("/now", Telling)]), parser=parser, limits=Limits(linger=0.1, tick=0.05))
    server.add_sockets([listening])

    sent = asking(b"GET /now HTTP/1.1", b"Content-Length: %b5" % (b"0" * 5000)) + b"hello"
    assert (await answered(port, sent)).startswith(b"HTTP/1.1 %b " % status)
    server.stop()
    await server.close_all_connections()


async def answered(port: int, sent: bytes) -> bytes:
    """All answers to a request, and to a last one behind it, without what differs each time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    async with asyncio.timeout(8):
        writer.write(sent)
        while b"\r\n\r\n" not in received and (piece := await reader.read(65536)):
            received += piece
        writer.write(asking(b"GET /never?last HTTP/1.1", b"Connection: close"))
        received += await reader.read()
    writer.close()
    return re.sub(rb"(Date|X-Request-Id): [^\r]+", b"", received)
