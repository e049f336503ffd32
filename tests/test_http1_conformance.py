"""What is a request and what is none (RFC 9112), as bytes, on both parsers; the answers are read by h11.

Behind each row's bytes comes one more good request, so the answers show where the server saw the row's request end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado import web
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
)
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port

from http1.connection import Connection
from http1.exchange import Exchange
from http1.headers import CheckedHeaders
from http1.limits import Limits
from http1.parser import BadRequest, Head, Heads, RequestParser
from http1.server import Options, Parser, Server, make_server

HOST = b"Host: x\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
LIMITS = Limits(head_size=2048, header_count=20, linger=0.2, tick=0.05)


class Row(NamedTuple):
    """Bytes, the answers to them (the status, or for 200 what was understood), and Tornado's where they differ."""

    name: str
    sent: bytes
    answers: list[str]
    tornado: list[str] | None = None


def get(*lines: bytes, line: bytes = b"GET /a HTTP/1.1", host: bytes = HOST) -> bytes:
    return b"%b\r\n%b%b\r\n" % (line, host, b"".join(each + b"\r\n" for each in lines))


def post(body: bytes, *lines: bytes, line: bytes = b"POST /a HTTP/1.1") -> bytes:
    return get(*lines, line=line) + body


def chunked(body: bytes, *lines: bytes) -> bytes:
    return post(body, b"Transfer-Encoding: chunked", *lines)


GET = ["GET /a "]
NEXT = ["GET /last "]
HELLO = ["POST /a hello"]
REFUSED = ["400"]

ROWS = [
    # Section 2.2 and 3: lines
    Row("a request", get(), GET + NEXT),
    Row("two at a time", get() + get(), GET + GET + NEXT),
    Row("empty lines before it", b"\r\n\r\n" + get(), GET + NEXT, REFUSED),
    Row("many empty lines before it", b"\r\n" * 5 + get(), REFUSED),
    Row("any method", get(line=b"BREW /a HTTP/1.1"), ["405", *NEXT]),
    Row("a method in small letters", get(line=b"get /a HTTP/1.1"), ["405", *NEXT]),
    Row("a method like a tunnel's", get(line=b"CONNECT x:443 HTTP/1.1"), ["405", *NEXT]),
    Row("the absolute form", get(line=b"GET http://x/a HTTP/1.1"), ["GET http://x/a ", *NEXT]),
    Row("the asterisk form", get(line=b"OPTIONS * HTTP/1.1"), ["OPTIONS * ", *NEXT]),
    Row("a query", get(line=b"GET /a?b=c%20d HTTP/1.1"), ["GET /a?b=c%20d ", *NEXT]),
    Row("a lone line feed behind the request line", b"GET /a HTTP/1.1\n" + HOST + b"\r\n", REFUSED, GET + NEXT),
    Row("a lone line feed behind a header", get(b"A: b\nC: d"), REFUSED, GET + NEXT),
    Row("lone line feeds only", b"GET /a HTTP/1.1\nHost: x\n\n", REFUSED, GET + NEXT),
    Row("a lone line feed at the end", b"GET /a HTTP/1.1\r\nHost: x\r\n\n", REFUSED, GET + NEXT),
    Row("a lone carriage return in the request line", get(line=b"GET /a\r HTTP/1.1"), REFUSED),
    Row("two spaces before the target", get(line=b"GET  /a HTTP/1.1"), REFUSED),
    Row("two spaces behind the target", get(line=b"GET /a  HTTP/1.1"), REFUSED),
    Row("a tab in the request line", get(line=b"GET\t/a HTTP/1.1"), REFUSED),
    Row("white space behind the version", get(line=b"GET /a HTTP/1.1 "), REFUSED),
    Row("white space before the method", get(line=b" GET /a HTTP/1.1"), REFUSED),
    Row("a control character in the target", get(line=b"GET /\x01 HTTP/1.1"), REFUSED),
    Row("no version", get(line=b"GET /a"), REFUSED),
    Row("an empty method", get(line=b" /a HTTP/1.1"), REFUSED),
    Row("a method that is no token", get(line=b"G(T /a HTTP/1.1"), REFUSED),
    Row("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ["505"], REFUSED),
    Row("HTTP/1.2", get(line=b"GET /a HTTP/1.2"), ["505"], GET),
    Row("HTTP/0.9", get(line=b"GET /a HTTP/0.9"), ["505"], REFUSED),
    Row("a version of another protocol", get(line=b"GET /a RTSP/1.0"), REFUSED),
    Row("http in small letters", get(line=b"GET /a http/1.1"), REFUSED),
    Row("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", REFUSED),
    Row("a request line that is too long", get(line=b"GET /%b HTTP/1.1" % (b"a" * 3000)), ["414"], []),
    Row("a request line without an end", b"G" * 3000, ["414"], []),
    # Section 3.2: Host
    Row("no host", get(host=b""), REFUSED),
    Row("two hosts", get(host=HOST + HOST), REFUSED),
    Row("a host that is none", get(host=b"Host: a/b\r\n"), REFUSED),
    Row("HTTP/1.0 without a host", get(line=b"GET /a HTTP/1.0", host=b""), GET),
    # Section 5: headers
    Row("no space behind the colon", get(b"A:b"), GET + NEXT),
    Row("white space around the value", get(b"A: \t b \t "), GET + NEXT),
    Row("an empty value", get(b"A:"), GET + NEXT),
    Row("an 8-bit value", get(b"A: \xff\xe4"), GET + NEXT),
    Row("a folded line", get(b"A: b\r\n c"), REFUSED),
    Row("a line folded by a tab", get(b"A: b\r\n\tc"), REFUSED),
    Row("a folded line at the beginning", get(b" A: b", host=b""), REFUSED),
    Row("a space before the colon", get(b"A : b"), REFUSED),
    Row("a space before a length's colon", post(b"hello", b"Content-Length : 5"), REFUSED),
    Row("no name", get(b": b"), REFUSED),
    Row("no colon", get(b"A"), REFUSED),
    Row("a name that is no token", get(b"A(: b"), REFUSED),
    Row("an 8-bit name", get(b"\xe4: b"), REFUSED),
    Row("a NUL", get(b"A: \0"), REFUSED),
    Row("a control character", get(b"A: \x01"), REFUSED),
    Row("a DEL", get(b"A: \x7f"), REFUSED),
    Row("a lone carriage return in a value", get(b"A: b\rc"), REFUSED),
    Row("headers that are too large", get(*[b"A: %b" % (b"b" * 300)] * 10), ["431"], []),
    Row("too many headers", get(*[b"A: b"] * 30), ["431"], GET + NEXT),
    # Section 6: bodies, and where they end
    Row("a length", post(b"hello", b"Content-Length: 5"), HELLO + NEXT),
    Row("a length with zeros", post(b"hello", b"Content-Length: 005"), HELLO + NEXT),
    Row("a length of nothing", post(b"", b"Content-Length: 0"), ["POST /a ", *NEXT]),
    Row("no length", post(b""), ["POST /a ", *NEXT]),
    Row("a body of a GET", get(b"Content-Length: 5") + b"hello", ["GET /a hello", *NEXT]),
    Row("two lengths", post(b"hello", b"Content-Length: 5", b"Content-Length: 6"), REFUSED),
    Row("two lengths in a list", post(b"hello", b"Content-Length: 5, 6"), REFUSED),
    Row("a length twice", post(b"hello", b"Content-Length: 5", b"Content-Length: 5"), REFUSED, HELLO + NEXT),
    Row("a length twice in a list", post(b"hello", b"Content-Length: 5, 5"), REFUSED, HELLO + NEXT),
    Row("a length with a sign", post(b"hello", b"Content-Length: +5"), REFUSED),
    Row("a negative length", post(b"hello", b"Content-Length: -5"), REFUSED),
    Row("a length in other digits", post(b"hello", "Content-Length: \u0665".encode()), REFUSED),
    Row("a length in hexadecimal", post(b"hello", b"Content-Length: 0x5"), REFUSED),
    Row("an empty length", post(b"", b"Content-Length:"), REFUSED),
    Row("a length with a space in it", post(b"hello", b"Content-Length: 5 0"), REFUSED),
    Row("a length beyond all numbers", post(b"", b"Content-Length: 99999999999999999999999"), ["413"], REFUSED),
    Row("a length beyond the limit", post(b"", b"Content-Length: 999999999999"), ["413"], REFUSED),
    Row("a length and chunks", chunked(b"0\r\n\r\n", b"Content-Length: 5"), REFUSED),
    Row("chunks and a length", post(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"), REFUSED),
    Row("chunks, and no length by a trick", chunked(b"0\r\n\r\n", b"Content-Length: 0"), REFUSED),
    Row("an unknown coding", post(b"", b"Transfer-Encoding: gzip"), ["501"], REFUSED),
    Row("an unknown coding in chunks", post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"), ["501"], REFUSED),
    Row("chunks that are not the last", post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, gzip"), REFUSED),
    Row("a coding like chunks", post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"), ["501"], REFUSED),
    Row("chunks by a tab", post(b"0\r\n\r\n", b"Transfer-Encoding:\tchunked"), ["POST /a ", *NEXT]),
    Row("chunks by a vertical tab", post(b"0\r\n\r\n", b"Transfer-Encoding: \x0bchunked"), REFUSED),
    Row("chunks in quotes", post(b"0\r\n\r\n", b'Transfer-Encoding: "chunked"'), ["501"], REFUSED),
    Row("no coding", post(b"", b"Transfer-Encoding: identity"), ["501"], REFUSED),
    Row("chunks twice", chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked"), REFUSED),
    Row("chunks of chunks", post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, chunked"), REFUSED),
    Row(
        "chunks in HTTP/1.0",
        post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", line=b"POST /a HTTP/1.0"),
        REFUSED,
        ["POST /a "],
    ),
    # Section 7.1: chunks
    Row("chunks", chunked(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), HELLO + NEXT),
    Row(
        "chunks in capitals",
        post(b"A\r\n0123456789\r\n0\r\n\r\n", b"Transfer-Encoding: CHUNKED"),
        ["POST /a 0123456789", *NEXT],
    ),
    Row("a chunk's size with zeros", chunked(b"0005\r\nhello\r\n000\r\n\r\n"), HELLO + NEXT),
    Row(
        "a chunk that looks like the end",
        chunked(b"9\r\n\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n"),
        ["POST /a \r\n0\r\n\r\n\r\n", *NEXT],
    ),
    Row("an extension", chunked(b'5;a=b;c="d e"\r\nhello\r\n0;z\r\n\r\n'), HELLO + NEXT, REFUSED),
    Row("a line feed in an extension", chunked(b"5;a\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("trailers", chunked(b"5\r\nhello\r\n0\r\nA: b\r\n\r\n"), HELLO + NEXT, REFUSED),
    Row("a length in the trailers", chunked(b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n"), REFUSED),
    Row("a host in the trailers", chunked(b"5\r\nhello\r\n0\r\nHost: y\r\n\r\n"), HELLO + NEXT, REFUSED),
    Row("a lone line feed behind a size", chunked(b"5\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a lone line feed behind a chunk", chunked(b"5\r\nhello\n0\r\n\r\n"), REFUSED),
    Row("a size with a prefix", chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a size with a sign", chunked(b"+5\r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a negative size", chunked(b"-5\r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a size with a space before it", chunked(b" 5\r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a size with a space behind it", chunked(b"5 \r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("no size", chunked(b"\r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a size beyond all numbers", chunked(b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a chunk that is longer than it says", chunked(b"4\r\nhello\r\n0\r\n\r\n"), REFUSED),
    Row("a chunk that is shorter than it says", chunked(b"6\r\nhello\r\n0\r\n\r\n"), REFUSED),
    # Section 9: connections
    Row("the last request", get(b"Connection: close"), GET),
    Row("the last request in capitals", get(b"Connection: CLOSE"), GET),
    Row("the last request in a list", get(b"Connection: keep-alive, close"), GET, GET + NEXT),
    Row("the last request in two lines", get(b"Connection: x", b"Connection: close"), GET, GET + NEXT),
    Row("HTTP/1.0", get(line=b"GET /a HTTP/1.0"), GET),
    Row("HTTP/1.0 that goes on", get(b"Connection: keep-alive", line=b"GET /a HTTP/1.0"), GET + NEXT),
    Row("an upgrade to what nobody speaks", get(b"Connection: upgrade", b"Upgrade: h2c"), GET + NEXT),
    Row(
        "an upgrade with a body",
        post(b"hello", b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 5"),
        HELLO + NEXT,
    ),
    Row(
        "an upgrade with a body in chunks",
        chunked(b"5\r\nhello\r\n0\r\n\r\n", b"Connection: upgrade", b"Upgrade: h2c"),
        HELLO + NEXT,
    ),
    # What follows a request is the next one, whatever it looks like.
    Row("a request in a body", post(get(), b"Content-Length: 28"), [f"POST /a {get().decode()}", *NEXT]),
    Row("rubbish behind a request", get() + b"\0\0\0\0\r\n\r\n", [*GET, "400"]),
]


class Echo(web.RequestHandler):
    """Answers how a request was understood."""

    def options(self) -> None:
        self.get()

    def post(self) -> None:
        self.get()

    def get(self) -> None:
        self.write(f"{self.request.method} {self.request.uri} ".encode() + self.request.body)


@pytest.fixture(params=["httptools", "tornado"])
def parser(request: pytest.FixtureRequest) -> Parser:
    found: Parser = request.param
    return found


@pytest.fixture
def port(io_loop: IOLoop, parser: Parser) -> Iterator[int]:
    application = web.Application(default_handler_class=Echo, log_function=lambda _handler: None)
    server = make_server(parser, application, Options(limits=LIMITS))
    listening, port = bind_unused_port()
    server.add_socket(listening)
    yield port
    server.stop()
    io_loop.run_sync(server.close_all_connections)


async def answers(port: int, *sent: bytes) -> list[str]:
    """What h11 reads of the answers until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in sent:
        writer.write(piece)
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        received = await reader.read()
    writer.close()
    return understood(received)


def understood(received: bytes) -> list[str]:
    client = h11.Connection(h11.CLIENT)
    client.receive_data(received)
    client.receive_data(b"")
    found: list[str] = []
    while True:
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        try:
            head = client.next_event()
        except h11.RemoteProtocolError:
            # The connection ended before another answer, of which nothing must have come.
            assert client.trailing_data == (b"", True)
            return found
        assert isinstance(head, h11.Response), head
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += bytes(event.data)
        found.append(body.decode("latin-1") if head.status_code == 200 else str(head.status_code))
        if client.our_state is h11.MUST_CLOSE:
            assert isinstance(client.next_event(), h11.ConnectionClosed)
            return found
        client.start_next_cycle()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.gen_test
async def test_the_bytes_are_answered_as_the_standard_says(row: Row, parser: Parser, port: int) -> None:
    expected = row.tornado if parser == "tornado" and row.tornado is not None else row.answers

    assert await answers(port, row.sent + LAST) == expected


def parsed(pieces: list[bytes], heads: Heads | None = None) -> list[object]:
    """What the parser finds when bytes come in these pieces: heads, bodies, a refusal."""
    parser = RequestParser(LIMITS, heads)
    found: list[object] = []
    rest, body = bytearray(), None
    for piece in pieces:
        rest += piece
        while rest:
            before = len(rest)
            try:
                if body is None:
                    head = parser.head(rest)
                    if head is None:
                        break
                    found.append((head.method, head.target, head.version, sorted(head.headers.get_all())))
                    found.append((head.keeps_alive, head.upgrade))
                    del rest[: head.size]
                    body = b""
                else:
                    more, size = parser.body(rest)
                    body += more
                    del rest[:size]
            except BadRequest as refusal:
                # What was received of a body before it was refused may be more or less.
                return [*found, refusal.status]
            if parser.is_complete:
                found.append(body)
                body = None
            elif len(rest) == before:
                break
    return found


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_however_the_bytes_are_cut_the_same_is_found(data: st.DataObject) -> None:
    sent = data.draw(st.sampled_from(ROWS)).sent + data.draw(st.sampled_from(ROWS)).sent + LAST
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=8)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    assert parsed(pieces) == parsed([sent])


def warmed() -> Heads:
    """What is remembered of all rows."""
    heads = Heads()
    for row in ROWS:
        parsed([row.sent + LAST], heads)
    return heads


WARM = warmed()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_remembered_changes_nothing_however_the_bytes_are_cut(data: st.DataObject) -> None:
    sent = b"".join(row.sent for row in data.draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=4))) + LAST
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=8)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    assert parsed(pieces, WARM) == parsed([sent])


def test_every_row_is_the_same_when_its_heads_are_remembered() -> None:
    for row in ROWS:
        assert parsed([row.sent + LAST], WARM) == parsed([row.sent + LAST]), row.name
    assert WARM.get(get()) is not None


def test_what_was_searched_and_received_of_one_request_is_not_of_the_next() -> None:
    long = get(b"A: %b" % (b"b" * 100))
    assert parsed([long[:-1], long[-1:] + get() + LAST]) == parsed([long + get() + LAST])

    parser = RequestParser(Limits(body_size=8, head_size=64))
    for _ in range(2):
        head = parser.head(sent := chunked(b"8\r\n12345678\r\n0\r\n\r\n"))
        assert head is not None
        assert parser.body(sent[head.size :])[0] == b"12345678"


class Forgetful(Heads):
    """Remembers nothing."""

    def remember(self, data: bytes, head: Head) -> None:
        pass


class Kept(asyncio.Transport):
    """A client that is not there: keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Whole(HTTPServerConnectionDelegate):
    """An application that answers what it understood, takes what is there as a whole, and spoils the headers then."""

    def __init__(self) -> None:
        self.taken = 0

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:  # noqa: ARG002
        assert isinstance(request_conn, Exchange)
        return Piecemeal(request_conn)

    def on_close(self, server_conn: object) -> None:
        pass

    def take(self, exchange: Exchange, line: RequestStartLine, headers: CheckedHeaders, body: bytes) -> bool:
        if line.method == "BREW":
            return False
        self.taken += 1
        say(exchange, line, headers, body)
        return True


class Piecemeal(HTTPMessageDelegate):
    """The same for a request that comes piece by piece."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.body = b""

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        self.line, self.headers = start_line, headers

    def data_received(self, chunk: bytes) -> None:
        self.body += chunk

    def finish(self) -> None:
        say(self.exchange, self.line, self.headers, self.body)


def say(exchange: Exchange, line: RequestStartLine, headers: HTTPHeaders, body: bytes) -> None:
    exchange.answer(b"HTTP/1.1 200 OK\r\n", repr((line, sorted(headers.get_all()), body)).encode())
    headers["Host"] = "spoilt"
    headers.add("Spoilt", "yes")


def served(pieces: list[bytes], heads: Heads) -> tuple[list[bytes], bool, int]:
    """What a connection answers to these pieces, whether it closes, and how many requests were taken as a whole."""

    async def serve() -> tuple[list[bytes], bool, int]:
        application = Whole()
        server = Server(application, Options(limits=LIMITS))
        server.heads = heads
        connection, transport = Connection(server, ("127.0.0.1", 1), "http"), Kept()
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
        await asyncio.sleep(0)
        lines = [line for line in transport.written.split(b"\r\n") if not line.startswith(b"Date:")]
        return lines, transport.is_closed, application.taken

    return asyncio.run(serve())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_taken_as_a_whole_is_answered_as_what_comes_in_pieces(data: st.DataObject) -> None:
    requests = [row.sent for row in data.draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=4))]
    sent = b"".join(requests)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(sent) - 1)), max_size=4)))
    cut = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    expected = served([sent], Forgetful())[:2]
    assert served(cut, WARM)[:2] == expected
    assert served(requests, WARM)[:2] == expected


def test_a_request_with_a_known_head_is_taken_as_a_whole_and_has_headers_of_its_own() -> None:
    requests = [get(), post(b"hello", b"Content-Length: 5"), get(), get(line=b"BREW /a HTTP/1.1"), get() + get()]

    lines, closed, taken = served(requests, WARM)

    assert (closed, taken) == (False, 3)
    assert (lines, closed) == served([b"".join(requests)], Forgetful())[:2]


def test_byte_by_byte_the_same_is_found() -> None:
    for sent in (row.sent + LAST for row in ROWS):
        assert parsed([sent[i : i + 1] for i in range(len(sent))]) == parsed([sent])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_comes_is_a_request_or_refused(data: bytes) -> None:
    for sent in (data, b"GET " + data, get()[:-2] + data, chunked(data)):
        for found in parsed([sent, LAST]):
            assert not isinstance(found, int) or found in (400, 413, 414, 431, 501, 505)
