"""The HTTP server for our handlers: `http1`, told what our answers look like."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import msgspec
from tornado.web import Application

from eventstore.ids import new_id
from handlers.http import JSON, told
from http1.handover import Neighbours
from http1.limits import Limits
from http1.proxies import Proxies
from http1.server import HttpServer, Options, Parser
from http1.server import make_server as make_http_server
from realtime.door import Door

# Handlers refuse bodies by themselves, and know best how.
LIMITS = Limits(body_size=1 << 62)
_NO_PROXIES = Proxies()


def make_server(
    application: Application,
    door: Door | None = None,
    *,
    parser: Parser = "httptools",
    limits: Limits = LIMITS,
    tls: ssl.SSLContext | None = None,
    proxies: Proxies = _NO_PROXIES,
    neighbours: Neighbours | None = None,
) -> HttpServer:
    """The HTTP server for the application. Connections come to it through the door, if there is one."""
    options = Options(
        limits=limits, tls=tls, proxies=proxies, entrance=door, error_answer=_error_answer, neighbours=neighbours
    )
    return make_http_server(parser, application, options)


# What no handler ever sees, and so has no words for.
_MESSAGES = {
    414: "The address is too long!",
    431: "The headers are too large!",
    501: "This transfer coding is not known here!",
    505: "Only HTTP/1.0 and HTTP/1.1 are spoken here!",
}


def _error_answer(status: int) -> tuple[Mapping[str, str], bytes]:
    """What is answered to bytes that are no request: as handlers would."""
    message = _MESSAGES.get(status) or told(None, status, {})[1]
    return {"Content-Type": JSON, "X-Request-Id": new_id()}, msgspec.json.encode({"message": message})
