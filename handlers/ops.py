"""For those who run the server: is it alive, and can it serve?"""

from __future__ import annotations

from tornado.routing import URLSpec

from handlers.http import JsonHandler
from handlers.services import Services


class Health(JsonHandler):
    """`/healthz`: 200 as long as the process answers at all."""

    def get(self) -> None:
        """Tells that the process lives."""
        self.reply(200, {"status": "ok"})


class Readiness(JsonHandler):
    """`/readyz`: 200 while commands can be recorded and other processes' events arrive, else 503."""

    services: Services

    def get(self) -> None:
        """Tells whether requests can be served now."""
        if self.services.ready():
            self.reply(200, {"status": "ready"})
        else:
            self.reply(503, {"status": "not ready", "message": "The log cannot be reached now!"})


def routes(services: Services) -> list[URLSpec]:
    """The operators' routes."""
    return [URLSpec(r"/healthz/?", Health), URLSpec(r"/readyz/?", Readiness, {"services": services})]
