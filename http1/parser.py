"""Requests out of bytes: no socket, no clock. llhttp parses; what it leaves open is decided here, strictly.

    parser = RequestParser(limits)
    found = parser.head(data)          # None: not whole yet; give all of it again, with more
    piece = parser.body(data)          # again and again until `parser.is_complete`

llhttp would go on with the next request in the same bytes, which could not be answered before this one is. So it is
never given more than belongs to one request: a head ends at its empty line, a body at its length, for which llhttp is
not needed, and one in chunks at an empty line too, which is why chunks are fed up to one at a time.

What a head says depends on nothing but its bytes, and clients send the same ones again and again: `Heads` remembers.

Invariant: what is found, refused and left over does not depend on how the bytes were cut on their way, nor on what
was remembered.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from tornado.httputil import RequestStartLine

from http1.headers import CheckedHeaders
from http1.limits import Limits

_END = b"\r\n\r\n"
# RFC 9112, section 3. Targets are taken as they are, 8-bit characters too: it is for the application to know them.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])\r\n")
_OTHER_VERSION = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+ HTTP/[0-9]\.[0-9]\r\n")
# A length that llhttp cannot count: the body is too large, not malformed.
_HUGE_LENGTH = re.compile(rb"(?i)\ncontent-length:[ \t]*[0-9]{20,}[ \t]*\r\n")
_LONE_LINE_FEED = re.compile(rb"\n(?<!\r\n)")
_TOKEN_BEGINS = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")
# llhttp has a list of methods, some with rules of their own about bodies, and ideas about targets. None of that is for
# it to decide here: in place of the request line, which was looked at before, it gets the same one each time.
_SOME_LINE = {b"1": b"POST / HTTP/1.1\r\n", b"0": b"POST / HTTP/1.0\r\n"}
_CHUNKED = _SOME_LINE[b"1"] + b"Transfer-Encoding: chunked\r\n\r\n"
# Sizes of chunks, their extensions and trailers may take this much more than the body itself, and a fixed amount.
_OVERHEAD_FACTOR = 8


# What is remembered: heads of this size at most, so many of them, and only of targets and fields that hold no secret
# (which must not be kept for longer than their request), have to do with nothing but the request, and seldom change.
_LONGEST_REMEMBERED = 1024
_MOST_REMEMBERED = 2048
# A path alone: queries hold keys, and the absolute form may hold a password.
_OPEN_TARGET = re.compile(rb"/[^?]*")
_ORDINARY = frozenset(
    (
        *("Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Cache-Control", "Connection"),
        *("Content-Length", "Content-Type", "Dnt", "Host", "Keep-Alive", "Origin", "Pragma", "Priority"),
        *("Sec-Ch-Ua", "Sec-Ch-Ua-Mobile", "Sec-Ch-Ua-Platform", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site"),
        *("Sec-Gpc", "User-Agent", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip"),
    )
)


class BadRequest(Exception):
    """The bytes are no request that will be served; `status` is the answer to give."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Head(NamedTuple):
    """What stands before a request's body, which is `length` bytes long, or None where it is in chunks.

    `upgrade` is the protocol that the client would rather speak, or empty. One head may be that of many requests, so
    each gets a copy of its headers.
    """

    line: RequestStartLine
    headers: CheckedHeaders
    size: int
    length: int | None
    keeps_alive: bool
    upgrade: str

    @property
    def method(self) -> str:
        """The method, whatever it is."""
        return self.line.method

    @property
    def target(self) -> str:
        """What is asked for."""
        return self.line.path

    @property
    def version(self) -> str:
        """`HTTP/1.0` or `HTTP/1.1`."""
        return self.line.version

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits to be told before it sends the body (RFC 9110, section 10.1.1)."""
        return self.version == "HTTP/1.1" and (self.headers.value("Expect") or "").lower() == "100-continue"


class Heads:
    """The last heads that were accepted, by their bytes. For parsers with the same limits."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def get(self, data: bytes | bytearray) -> Head | None:
        """The head with which the data begins, if it is remembered."""
        return self._heads.get(bytes(data[: data.find(_END, 0, _LONGEST_REMEMBERED) + len(_END)]))

    def remember(self, data: bytes, head: Head) -> None:
        """Keeps the head that was made of the data, in the place of the oldest if there are many."""
        if len(self._heads) >= _MOST_REMEMBERED:
            del self._heads[next(iter(self._heads))]
        self._heads[data] = head


class RequestParser:
    """The requests of one connection, one after the other. Of no use any more once it has refused something."""

    def __init__(self, limits: Limits, heads: Heads | None = None) -> None:
        self._limits = limits
        self._heads = Heads() if heads is None else heads
        self._searched = 0
        self._llhttp: HttpRequestParser
        # Of the request at hand:
        self.is_complete = False
        self._headers = CheckedHeaders()
        self._has_head = False
        self._upgrades = False
        self._keeps_alive = False
        self._pieces: list[bytes] = []
        self._missing: int | None = None
        self._received = 0
        self._overhead = 0

    def head(self, data: bytes | bytearray) -> Head | None:
        """The head with which the data begins (its size counts empty lines before it); raises `BadRequest`."""
        if (known := self._heads.get(data)) is not None:
            self._begin(known)
            return known
        start = _behind_empty_lines(data)
        end = data.find(_END, max(start, self._searched - 3))
        if end < 0 or end - start > self._limits.head_size:
            self._check_part(data, start)
            self._searched = len(data)
            return None
        line = _REQUEST_LINE.match(data, start)
        end += len(_END)
        if line is None:
            _refuse_line(data, start)
        fields = bytes(data[line.end() : end])
        lines = fields.count(b"\r\n")
        if fields.count(b"\n") != lines:
            raise BadRequest(400, "a line ends without a carriage return")
        if lines - 1 > self._limits.header_count:
            raise BadRequest(431, "too many header lines")
        method, target, minor = line.groups()
        self._feed_head(_SOME_LINE[bytes(minor)] + fields)
        version = "HTTP/1.1" if minor == b"1" else "HTTP/1.0"
        head = self._found(RequestStartLine(method.decode(), target.decode("latin-1"), version), end)
        self._begin(head)
        fits = not start and end <= _LONGEST_REMEMBERED
        if fits and _OPEN_TARGET.fullmatch(target) and _ORDINARY.issuperset(head.headers):
            self._heads.remember(bytes(data[:end]), head)
        return head

    def body(self, data: bytes | bytearray) -> tuple[bytes, int]:
        """More of the body, and how many bytes of the data it took; raises `BadRequest`."""
        if self._missing is not None:
            piece = bytes(data[: self._missing])
            self._missing -= len(piece)
            self.is_complete = not self._missing
            return piece, len(piece)
        size = self._feed_chunks(data)
        if self.is_complete:
            del self._llhttp
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._received += len(piece)
        if self._received > self._limits.body_size:
            raise BadRequest(413, "the body is too large")
        self._overhead += size - len(piece)
        if self._overhead > self._limits.head_size + _OVERHEAD_FACTOR * self._received:
            raise BadRequest(400, "the chunks hold more about themselves than of the body")
        return piece, size

    def _check_part(self, data: bytes | bytearray, start: int) -> None:
        """Refuses what will never be a head, however it goes on."""
        if data[start:] not in (b"", b"\r") and not _TOKEN_BEGINS.match(data, start):
            raise BadRequest(400, "no request line")
        most = start + self._limits.head_size
        first = data.find(b"\n", start, most)
        if first < 0:
            if len(data) >= most + len(_END):
                raise BadRequest(414, "the request line is too long")
            return
        if not _REQUEST_LINE.match(data, start):
            _refuse_line(data, start)
        if _LONE_LINE_FEED.search(data, max(start, self._searched), most):
            raise BadRequest(400, "a line ends without a carriage return")
        if len(data) >= most + len(_END):
            raise BadRequest(431, "the headers are too large")

    def _begin(self, head: Head) -> None:
        """Awaits the head's body."""
        self._missing = head.length
        self.is_complete = head.length == 0
        self._searched = self._received = self._overhead = 0
        if head.length is None:
            self._llhttp = HttpRequestParser(self)
            self._feed(_CHUNKED)

    def _feed_head(self, head: bytes) -> None:
        # A new one each time, which costs nothing beside a head: it need not know how the last request went on. And no
        # longer than that: it and this parser hold each other, so that what they hold would wait for the collector.
        self._llhttp = HttpRequestParser(self)
        self._has_head = self._upgrades = False
        try:
            self._llhttp.feed_data(head)
        except HttpParserUpgrade:
            # It takes what follows for another protocol. Whoever grants the wish takes the connection over; for all
            # others the request is like any other.
            pass
        except HttpParserError as error:
            self._refuse_coding()
            if _HUGE_LENGTH.search(head):
                raise BadRequest(413, "the body is too large") from None
            raise BadRequest(400, str(error)) from None
        finally:
            del self._llhttp
        self._refuse_coding()

    def _refuse_coding(self) -> None:
        coding = self._headers.value("Transfer-Encoding")
        if self._has_head and coding is not None and coding.lower() != "chunked":
            # Whoever believes the length in place of a coding that he does not know sees another request behind it.
            status = 400 if "Content-Length" in self._headers else 501
            raise BadRequest(status, "a transfer coding that is not known")

    def _found(self, line: RequestStartLine, size: int) -> Head:
        # They may hold secrets, and a connection may wait long for its next request.
        headers, self._headers = self._headers, CheckedHeaders()
        chunked = "Transfer-Encoding" in headers
        if chunked and line.version == "HTTP/1.0":
            raise BadRequest(400, "HTTP/1.0 has no transfer codings")
        length = None if chunked else _length(headers)
        if (length or 0) > self._limits.body_size:
            raise BadRequest(413, "the body is too large")
        upgrade = (headers.value("Upgrade") or "").lower() if self._upgrades else ""
        return Head(line, headers, size, length, self._keeps_alive, upgrade)

    def _feed_chunks(self, data: bytes | bytearray) -> int:
        """Feeds up to the end of the body, but not into what may be the middle of the empty line that ends it."""
        size = 0
        while not self.is_complete:
            found = data.find(_END, size)
            end = found + len(_END) if found >= 0 else len(data) - _unfinished(data)
            if end <= size:
                break
            self._feed(data[size:end])
            size = end
        return size

    def _feed(self, data: bytes | bytearray) -> None:
        try:
            self._llhttp.feed_data(data)
        except HttpParserError as error:
            raise BadRequest(400, str(error)) from None

    # What llhttp calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one behind a body is not looked at (RFC 9110, section 6.5.1)."""
        if not self._has_head:
            self._headers.append(name, value)

    def on_headers_complete(self) -> None:
        """The head has ended."""
        if self._has_head:
            return  # said again, without the wish for another protocol
        self._has_head = True
        self._keeps_alive = self._llhttp.should_keep_alive()
        self._upgrades = self._llhttp.should_upgrade()

    def on_body(self, piece: bytes) -> None:
        """More of the body."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """The request has ended."""
        self.is_complete = True


def _behind_empty_lines(data: bytes | bytearray) -> int:
    """Where the request line begins: behind a few empty lines, which some clients send (RFC 9112, section 2.2)."""
    start = 0
    while start < 8 and data.startswith(b"\r\n", start):
        start += 2
    return start


def _length(headers: CheckedHeaders) -> int:
    try:
        return int(headers.value("Content-Length") or 0)
    except ValueError:
        # llhttp counts thousands of zeros, too.
        raise BadRequest(400, "a length of too many digits") from None


def _refuse_line(data: bytes | bytearray, start: int) -> NoReturn:
    if _OTHER_VERSION.match(data, start):
        raise BadRequest(505, "only HTTP/1.0 and HTTP/1.1 are spoken")
    raise BadRequest(400, "no request line")


def _unfinished(data: bytes | bytearray) -> int:
    """How many bytes at the end may be the beginning of an empty line."""
    return next((size for size in (3, 2, 1) if data.endswith(_END[:size])), 0)
