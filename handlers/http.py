"""What all HTTP handlers have in common: JSON in and out, the request's id, and errors put into words in one place."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from http.client import responses
from typing import Any

import msgspec
import structlog
from structlog.contextvars import bound_contextvars
from tornado import web
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine, format_timestamp

from chat.refusals import Malformed, Reason, Refused, TooBusy
from eventstore.errors import InvalidEvent, LogUnavailable
from eventstore.ids import new_id
from handlers.limits import TooMany
from http1.exchange import Exchange
from http1.headers import CheckedHeaders

MAX_BODY = 64 * 1024
# A body that is not much too large is read to its end and thrown away, so that its sender reads the answer;
# beyond this it is answered before its end, and the connection closed.
MAX_DISCARDED = 1024 * 1024

_log = structlog.get_logger(__name__)
JSON = "application/json; charset=UTF-8"
_encoder = msgspec.json.Encoder()


class JsonHandler(web.RequestHandler):
    """Answers JSON objects, and knows what every kind of failure is called.

    A handler of Tornado's as far as its routes and methods go. What there is for one answer it keeps itself: none of
    ours has cookies, an ETag or a template, nor sends its answer piece by piece. `handlers.dispatch` makes and runs it.
    """

    # How this API puts refusals into words: a status and a message for each reason, with `{seconds}` for its time.
    refusals: Mapping[Reason, tuple[int, str]] = {}
    # Whether the body was too large to be kept.
    is_too_large = False
    # Whether the connection ends with the answer, since what else comes on it is not looked at.
    _closes = False
    _is_answered = False
    _status = 200

    def __init__(self, application: web.Application, request: HTTPServerRequest, **given: Any) -> None:
        # Tornado's constructor would make a dozen things that nobody here asks for.
        self.application = application
        self.request = request
        self.request_id = new_id()
        self._more: dict[str, str] = {}
        # What the route hands in.
        self.__dict__.update(given)

    async def serve(self, arguments: Sequence[bytes]) -> None:
        """Calls the method with what the path's groups matched, and answers what goes wrong."""
        if (answering := self.begin(arguments)) is not None:
            await self.end(answering)

    def begin(self, arguments: Sequence[bytes]) -> Awaitable[None] | None:
        """Calls the method as `serve` does; returns what is to `end`, if it has not answered by then."""
        try:
            method = str(self.request.method)
            if method not in self.SUPPORTED_METHODS:
                raise web.HTTPError(405)
            answering: Awaitable[None] | None = getattr(self, method.lower())(
                *[self.decode_argument(argument) for argument in arguments]
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it has an answer
            self._fail(error)
            return None
        return answering

    async def end(self, answering: Awaitable[None]) -> None:
        """Waits for a method's end, and answers what goes wrong."""
        try:
            await answering
        except Exception as error:  # noqa: BLE001 - whatever it is, it has an answer
            self._fail(error)
        except asyncio.CancelledError as error:
            self._fail(error)
            raise

    def refuse_body(self) -> None:
        """Answers before the body was read to its end."""
        self._closes = True
        self._fail(web.HTTPError(413))

    def body(self) -> bytes:
        """The request's body, of at most `MAX_BODY` bytes."""
        if self.is_too_large:
            raise web.HTTPError(413)
        return self.request.body

    def set_status(self, status_code: int, reason: str | None = None) -> None:  # noqa: ARG002 - it has the usual one
        """The answer's status, if not 200."""
        self._status = status_code

    def get_status(self) -> int:
        """The answer's status."""
        return self._status

    def set_header(self, name: str, value: Any) -> None:
        """Adds a header to those that every answer has, or puts it in the place of one."""
        self._more[name] = str(value)

    def reply(self, status: int, body: dict[str, Any] | msgspec.Raw) -> None:
        """Sends the answer."""
        self._status = status
        self.finish(_encoder.encode(body))

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        """Sends the answer, as a whole."""
        assert not self._is_answered, "a request has one answer"  # noqa: S101
        body = chunk if isinstance(chunk, bytes) else _encoded(chunk)
        connection = self.request.connection
        if isinstance(connection, Exchange) and not self._more and not self._closes:
            written = connection.answer(_head(self._status, int(time.time())) % self.request_id.encode(), body)
        else:
            written = self._write(body)
        # Not before: what cannot be written, such as a header that is none, has another answer.
        self._is_answered = True
        self.application.log_request(self)
        return written

    def _write(self, body: bytes) -> asyncio.Future[None]:
        connection = self.request.connection
        assert connection is not None  # noqa: S101 - it came by one
        line = ResponseStartLine("HTTP/1.1", self._status, _reason(self._status))
        # HEAD is told how long the answer would be.
        sent = b"" if self.request.method == "HEAD" else body
        written = connection.write_headers(line, self._headers_for(body), sent)
        connection.finish()
        return written

    def _headers_for(self, body: bytes) -> HTTPHeaders:
        fields = {"Content-Type": JSON, "Date": _date(int(time.time())), "X-Request-Id": self.request_id}
        fields |= self._more
        fields["Content-Length"] = str(len(body))
        if self._closes:
            fields["Connection"] = "close"
        return CheckedHeaders(fields)

    def _fail(self, error: BaseException) -> None:
        """Answers what went wrong, Tornado's own errors among it."""
        self.log_exception(type(error), error, error.__traceback__)
        if self._is_answered:
            return
        self._more = {}
        status = error.status_code if isinstance(error, web.HTTPError) else HTTPStatus.INTERNAL_SERVER_ERROR
        status, message, retry_after = self.told(error, status)
        if retry_after is not None:
            self.set_header("Retry-After", math.ceil(retry_after))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(self.allowed()))
        self.reply(status, {"message": message})

    def allowed(self) -> list[str]:
        """The methods that the handler has."""
        methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        return [name for name in methods if getattr(type(self), name.lower()) is not getattr(JsonHandler, name.lower())]

    def told(self, error: BaseException | None, status: int) -> tuple[int, str, float | None]:
        """The status, the message and the seconds to wait (or None) by which the caller hears of an error."""
        return told(error, status, self.refusals)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Logs what nobody expected, under the id that the answer tells; a refusal is no news."""
        status = self.told(value, HTTPStatus.INTERNAL_SERVER_ERROR)[0]
        with bound_contextvars(request_id=self.request_id, path=self.request.path):
            if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.error("a request failed", exc_info=(typ, value, tb))
            elif status == HTTPStatus.SERVICE_UNAVAILABLE and not isinstance(value, Refused):
                _log.warning("a request could not be served now", reason=str(value) or repr(value))


def _encoded(chunk: str | dict[str, Any] | None) -> bytes:
    match chunk:
        case str():
            return chunk.encode()
        case None:
            return b""
        case _:
            return _encoder.encode(chunk)


def _reason(status: int) -> str:
    return responses.get(status, "Unknown")


@lru_cache(1)
def _date(second: int) -> str:
    return format_timestamp(second)


@lru_cache(16)
def _head(status: int, second: int) -> bytes:
    """The head of most answers in this second, with a place for the request's id; the connection adds the rest."""
    fields = f"Content-Type: {JSON}\r\nDate: {_date(second)}\r\nX-Request-Id: %b\r\n"
    return f"HTTP/1.1 {status} {_reason(status)}\r\n{fields}".encode()


def told(
    error: BaseException | None, status: int, refusals: Mapping[Reason, tuple[int, str]]
) -> tuple[int, str, float | None]:
    """What every kind of failure is called: its status, a message, and the seconds to wait (or None)."""
    match error:
        case Refused(reason=reason, seconds=seconds) if reason in refusals:
            code, words = refusals[reason]
            return code, words.format(seconds=seconds), None
        case Malformed() | InvalidEvent():
            return 400, str(error), None
        case TooMany(retry_after=retry_after):
            return 429, "Too many requests!", retry_after
        case LogUnavailable():
            return 503, "The log cannot be reached now, try again!", 1.0
        case TooBusy() | asyncio.CancelledError():
            # Requests are cancelled when the server ends and they took too long.
            return 503, "Too busy now, try again!", 1.0
        case web.HTTPError(status_code=code) if code < HTTPStatus.INTERNAL_SERVER_ERROR:
            return code, _MESSAGES.get(code, "Bad request!"), None
        case None if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return status, _MESSAGES.get(status, "Bad request!"), None
        case _:
            return 500, "Internal error!", None


_MESSAGES = {
    404: "Not found!",
    405: "Method not allowed!",
    413: f"The body is larger than {MAX_BODY // 1024} KiB!",
}


class NotFound(JsonHandler):
    """Every path that nobody serves: it has no method, and says of each that there is nothing."""

    def told(self, error: BaseException | None, status: int) -> tuple[int, str, float | None]:  # noqa: ARG002
        """404, whatever the error is."""
        return 404, _MESSAGES[404], None
