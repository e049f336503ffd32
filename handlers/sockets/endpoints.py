"""V3's endpoints as Socket.IO events: the same bodies without the token, the same answers as acknowledgements.

An acknowledgement has two arguments: the body that the REST endpoint answers, and the status that it answers with.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog

from chat.refusals import Malformed, Reason, Refused
from eventstore.ids import new_id
from handlers.http import told
from handlers.services import Services
from handlers.sockets.registry import Registry
from handlers.v3 import ENDPOINTS, QUERIES
from handlers.v3.answers import REFUSALS, Answer, AnswerBody
from handlers.v3.bodies import Decoder, decoder, idempotency_key
from handlers.v3.call import Call, Endpoint
from realtime.server import Namespace, Socket

EVENTS: Mapping[str, str] = {
    "send_message": "sendmessage",
    "send_dm": "senddm",
    "delete_message": "deletemessage",
    "read": "readmessagesfromchannel",
    "read_dms": "getdms",
    "read_sent": "getmysentmessages",
    "read_announcements": "getmessagesforeveryone",
    "list_channels": "getchannels",
    "make_channel": "makechannel",
    "add_user": "addusertochannel",
    "post_to_discord": "senddcmsgwithtoken",
    "send_to_discord": "senddcmsg",
    "link_discord": "linkdiscord",
    "read_deliveries": "deliveries",
}

_IDEMPOTENCY_KEY = "idempotency_key"
_log = structlog.get_logger(__name__)


def register_endpoints(namespace: Namespace, registry: Registry, services: Services) -> None:
    """Registers a handler for each event."""
    for event, name in EVENTS.items():
        kind, endpoint = (ENDPOINTS | QUERIES)[name]
        namespace.on_event(event)(_Handler(event, endpoint, decoder(kind), registry, services))


class _Handler:
    """One event: its arguments are a body (a JSON object) or nothing."""

    def __init__(
        self, event: str, endpoint: Endpoint[Any], decode: Decoder, registry: Registry, services: Services
    ) -> None:
        self._event = event
        self._endpoint = endpoint
        self._decode = decode
        self._registry = registry
        self._services = services

    async def __call__(self, socket: Socket, /, *arguments: Any) -> tuple[AnswerBody, int]:
        request_id = new_id()
        body: AnswerBody
        try:
            with self._services.in_flight:
                status, body = await self._answer(socket, request_id, arguments)
        except Exception as error:  # noqa: BLE001 - put into words, as over HTTP
            status, message, _ = told(error, HTTPStatus.INTERNAL_SERVER_ERROR, REFUSALS)
            body = {"message": message}
            if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.error("an event could not be handled", name=self._event, request_id=request_id, exc_info=error)
        return body, status

    async def _answer(self, socket: Socket, request_id: str, arguments: tuple[Any, ...]) -> Answer:
        registration = self._registry.of(socket)
        if registration is None:
            raise Refused(Reason.INVALID_TOKEN)
        given = dict(_body(arguments))
        key = given.pop(_IDEMPOTENCY_KEY, None)
        call = Call(
            self._decode(_encoded(given)),
            self._services,
            request_id,
            socket.address,
            None if key is None else _key(key),
            registration.account,
        )
        return await self._endpoint(call)


def _body(arguments: tuple[Any, ...]) -> dict[str, Any]:
    body = arguments[0] if arguments else {}
    if not isinstance(body, dict):
        raise Malformed("body", "must be a JSON object")
    return body


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise Malformed(_IDEMPOTENCY_KEY, "must be a string")
    return idempotency_key(_IDEMPOTENCY_KEY, key)


def _encoded(body: dict[str, Any]) -> bytes:
    """The body as a REST client would send it; who calls is known by the connection, not by a token in it."""
    for name, value in body.items():
        if isinstance(value, bytes):
            # As JSON it would become its base64.
            raise Malformed(name, "must not be binary")
    try:
        return msgspec.json.encode({**body, "token": ""})
    except UnicodeEncodeError:
        raise Malformed("body", "must not hold a lone surrogate") from None
    except RecursionError:
        raise Malformed("body", "is nested too deeply") from None
