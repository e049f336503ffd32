"""What all HTTP handlers have in common: JSON in and out, the request's id, and errors put into words in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from structlog.contextvars import bound_contextvars
from tornado import web

from chat.refusals import Malformed, Reason, Refused, TooBusy
from eventstore.errors import InvalidEvent, LogUnavailable
from eventstore.ids import new_id
from handlers.limits import TooMany

MAX_BODY = 64 * 1024
# A body that is not much too large is read to its end and thrown away, so that its sender reads the answer;
# beyond this it is answered before its end, and the connection closed.
MAX_DISCARDED = 1024 * 1024

_log = structlog.get_logger(__name__)
_encoder = msgspec.json.Encoder()


@web.stream_request_body
class JsonHandler(web.RequestHandler):
    """Answers JSON objects, and knows what every kind of failure is called.

    The body arrives in pieces, since Tornado by itself answers one that is too large without a word (and by 400).
    """

    request_id: str
    # Whether the connection ends with the answer, since what else comes on it is not looked at.
    _closes = False
    # How this API puts refusals into words: a status and a message for each reason, with `{seconds}` for its time.
    refusals: Mapping[Reason, tuple[int, str]] = {}

    def initialize(self, **services: object) -> None:
        """Takes what the route hands in (`services`), as Tornado wants it."""
        self._body = bytearray()
        self._received = 0
        for name, value in services.items():
            setattr(self, name, value)

    def set_default_headers(self) -> None:
        """Every answer is JSON and tells the request's id, also one that was begun anew as an error."""
        if not hasattr(self, "request_id"):
            self.request_id = new_id()
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("X-Request-Id", self.request_id)
        if self._closes:
            self.set_header("Connection", "close")

    def compute_etag(self) -> str | None:
        """None: answers change with the log, nobody asks for them conditionally."""
        return None

    def prepare(self) -> None:
        """Refuses a body that says it is too large before it is read."""
        length = self.request.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length) > MAX_DISCARDED:
            self._closes = True
            raise web.HTTPError(413)

    def data_received(self, chunk: bytes) -> None:
        """Gathers the body as far as it is small enough; one that has no end in sight is refused before its end."""
        self._received += len(chunk)
        if self._received <= MAX_BODY:
            self._body += chunk
        elif self._received > MAX_DISCARDED:
            self._closes = True
            self.send_error(413)

    def body(self) -> bytes:
        """The request's body, of at most `MAX_BODY` bytes."""
        if self._received > MAX_BODY:
            raise web.HTTPError(413)
        return bytes(self._body)

    def reply(self, status: int, body: dict[str, Any]) -> None:
        """Sends the answer."""
        self.set_status(status)
        self.finish(_encoder.encode(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The answer to what went wrong, Tornado's own errors among it."""
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        status, message, retry_after = self.told(error, status_code)
        if retry_after is not None:
            self.set_header("Retry-After", str(math.ceil(retry_after)))
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
                _log.warning("a request could not be served now", reason=str(value))


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
        case TooBusy():
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
