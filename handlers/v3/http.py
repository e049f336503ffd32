"""V3 over HTTP: one handler for all endpoints, since they differ in their bodies and functions only."""

from __future__ import annotations

from typing import Any

from tornado.routing import URLSpec

from handlers.http import JsonHandler
from handlers.services import Services
from handlers.v3 import ENDPOINTS
from handlers.v3.answers import REFUSALS
from handlers.v3.bodies import Decoder, decoder, idempotency_key
from handlers.v3.call import Call, Endpoint
from handlers.v3.proof import ProofHandler


class V3Handler(JsonHandler):
    """Decodes the body, calls the endpoint, sends its answer."""

    refusals = REFUSALS
    endpoint: Endpoint[Any]
    decode: Decoder
    services: Services

    async def post(self) -> None:
        """The only method that V3 has."""
        with self.services.in_flight:
            call = Call(
                self.decode(self.body()),
                self.services,
                self.request_id,
                str(self.request.remote_ip),
                self._idempotency_key(),
            )
            self.reply(*await self.endpoint(call))

    def _idempotency_key(self) -> str | None:
        key = self.request.headers.get("Idempotency-Key")
        return None if key is None else idempotency_key("Idempotency-Key", key)


def routes(services: Services) -> list[URLSpec]:
    """The routes of V3, with and without the trailing slash."""
    endpoints = [
        URLSpec(
            rf"/api/v3/{name}/?",
            V3Handler,
            {"endpoint": endpoint, "decode": decoder(kind), "services": services},
        )
        for name, (kind, endpoint) in ENDPOINTS.items()
    ]
    return [*endpoints, URLSpec(r"/api/v3/proof/([^/]+)/?", ProofHandler, {"services": services})]
