"""The Bancho API over HTTP: one handler for all endpoints, since they differ in their functions only."""

from __future__ import annotations

from typing import Any

import msgspec
from tornado.routing import URLSpec

from chat.refusals import Reason
from handlers.bancho import ENDPOINTS
from handlers.bancho.call import Call, Endpoint, MissingArguments, WrongKey
from handlers.http import JsonHandler
from handlers.services import Services

# Where a page on another site may read the answer.
_FOR_ALL_ORIGINS = {"verifiedStatus"}
REFUSALS: dict[Reason, tuple[int, str]] = {
    Reason.CHANNEL_NOT_FOUND: (404, "channel not found"),
    Reason.USER_NOT_FOUND: (404, "user not found"),
}
_MESSAGES = {
    405: "method not allowed",
    413: "the body is too large",
    500: "internal error",
    503: "the log cannot be reached now, try again",
}


class BanchoHandler(JsonHandler):
    """Calls the endpoint, and answers in Bancho's way: the status stands in the body, too."""

    refusals = REFUSALS
    endpoint: Endpoint
    services: Services
    any_origin: bool

    async def get(self) -> None:
        """The only method that this API has."""
        with self.services.in_flight:
            # Tornado's own reading of arguments would put spaces in the place of control characters.
            arguments, address = self.request.query_arguments, str(self.request.remote_ip)
            answer = await self.endpoint(Call(arguments, self.services, self.request_id, address))
            self.reply(answer.status, msgspec.structs.asdict(answer))

    def reply(self, status: int, body: dict[str, Any] | msgspec.Raw) -> None:
        """Sends the answer; what went wrong gets its status into the body here."""
        if self.any_origin:
            self.set_header("Access-Control-Allow-Origin", "*")
        if isinstance(body, dict) and "status" not in body:
            body = {"status": status} | body
        super().reply(status, body)

    def told(self, error: BaseException | None, status: int) -> tuple[int, str, float | None]:
        """As everywhere, in this API's words."""
        match error:
            case WrongKey():
                return 400, "invalid ci key", None
            case MissingArguments():
                return 400, "missing required arguments", None
        status, message, retry_after = super().told(error, status)
        return status, _MESSAGES.get(status, message), retry_after


def routes(services: Services) -> list[URLSpec]:
    """The routes of the Bancho API, with and without the trailing slash."""
    return [
        URLSpec(
            rf"/api/v1/{name}/?",
            BanchoHandler,
            {"endpoint": endpoint, "services": services, "any_origin": name in _FOR_ALL_ORIGINS},
        )
        for name, endpoint in ENDPOINTS.items()
    ]
