"""All routes as one Tornado application."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import structlog
from tornado import web
from tornado.routing import URLSpec

from handlers import ops, transparency
from handlers.bancho import http as bancho
from handlers.dispatch import JsonApplication
from handlers.http import NotFound
from handlers.services import Services
from handlers.v3 import http as v3

_log = structlog.get_logger("handlers.access")


def make_app(services: Services, realtime: Sequence[URLSpec] = ()) -> web.Application:
    """The application that serves HTTP, with the routes of real time."""
    return application(
        [
            *v3.routes(services),
            *bancho.routes(services),
            *ops.routes(services),
            *transparency.routes(services),
            *realtime,
        ]
    )


def application(routes: Sequence[URLSpec]) -> JsonApplication:
    """An application of these routes, in which everything else is not found."""
    # Tornado asks for a line for each request; at other levels nobody would read it.
    verbose = logging.getLogger("handlers.access").isEnabledFor(logging.DEBUG)
    return JsonApplication(
        routes,
        default_handler_class=NotFound,
        log_function=_log_request if verbose else _log_nothing,
    )


def _log_nothing(handler: web.RequestHandler) -> None:
    """No line."""


def _log_request(handler: web.RequestHandler) -> None:
    """A line for each request, for those who ask for so much (`log_level` debug)."""
    request = handler.request
    # The path alone: a key may stand in the query.
    _log.debug(
        "answered",
        method=request.method,
        path=request.path,
        status=handler.get_status(),
        milliseconds=round(1000 * request.request_time(), 1),
        request_id=getattr(handler, "request_id", None),
    )
