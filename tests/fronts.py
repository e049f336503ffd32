"""The HTTP server that tests serve by: the one that people get, or the other.

All tests on Tornado's parser: `MINUTEBOOK_HTTP_PARSER=tornado python -m pytest`.
"""

from __future__ import annotations

import os
from typing import Any, cast

from tornado.web import Application

from handlers import serving
from http1.server import HttpServer, Parser
from realtime.door import Door
from settings import Settings

VARIABLE = "MINUTEBOOK_HTTP_PARSER"
PARSER = cast(Parser, os.environ.get(VARIABLE) or Settings.http_parser)


def make_server(application: Application, door: Door | None = None, **options: Any) -> HttpServer:
    """A server as `handlers.serving` makes it, with the parser that this run of the tests is about."""
    return serving.make_server(application, door, **{"parser": PARSER, **options})
