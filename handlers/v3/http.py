"""V3 over HTTP: one handler for all endpoints, which differ in their bodies and functions only, and one for queries."""

from __future__ import annotations

from typing import Any

import msgspec
from tornado.httputil import HTTPServerRequest
from tornado.routing import URLSpec

from chat.refusals import Malformed
from handlers.http import JsonHandler
from handlers.services import Services
from handlers.v3 import ENDPOINTS, QUERIES
from handlers.v3.answers import REFUSALS
from handlers.v3.bearer import bearer_token
from handlers.v3.bodies import Decoder, decoder, idempotency_key
from handlers.v3.call import Call, Endpoint
from handlers.v3.proof import ProofHandler


class _EndpointHandler(JsonHandler):
    refusals = REFUSALS
    endpoint: Endpoint[Any]
    decode: Decoder
    services: Services


class V3Handler(_EndpointHandler):
    """Decodes the body, calls the endpoint, sends its answer."""

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


class QueryHandler(_EndpointHandler):
    """The same for what only reads: the body is put together of the address's query and the token's header."""

    async def get(self) -> None:
        """The only method that queries have."""
        with self.services.in_flight:
            fields = _arguments(self.request) | {"token": bearer_token(self.request)}
            call = Call(
                self.decode(msgspec.json.encode(fields)), self.services, self.request_id, str(self.request.remote_ip)
            )
            self.reply(*await self.endpoint(call))


def _arguments(request: HTTPServerRequest) -> dict[str, str]:
    """The query's arguments, of several of one name the last one; raises `Malformed`."""
    found = {}
    for name, values in request.query_arguments.items():
        try:
            found[name] = values[-1].decode()
        except UnicodeDecodeError:
            raise Malformed(name, "is not valid UTF-8") from None
    return found


def routes(services: Services) -> list[URLSpec]:
    """The routes of V3, with and without the trailing slash."""
    endpoints = [
        URLSpec(rf"/api/v3/{name}/?", handler, {"endpoint": endpoint, "decode": decoder(kind), "services": services})
        for handler, named in ((V3Handler, ENDPOINTS), (QueryHandler, QUERIES))
        for name, (kind, endpoint) in named.items()
    ]
    return [*endpoints, URLSpec(r"/api/v3/proof/([^/]+)/?", ProofHandler, {"services": services})]
