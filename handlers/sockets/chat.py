"""The main namespace: what clients connect to (contract, "Socket.IO")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog

from chat.commands import Commands
from chat.connections import Connections
from chat.refusals import Malformed, Reason, Refused, TooBusy
from eventstore.errors import LogUnavailable
from eventstore.log import EventLog
from handlers.http import told
from handlers.services import Services
from handlers.sockets.admission import Admission, RecoveryFailed
from handlers.sockets.endpoints import register_endpoints
from handlers.sockets.fanout import Fanout
from handlers.sockets.pids import Pids
from handlers.sockets.registry import Registry
from handlers.v3.answers import REFUSALS
from projections.models import ReadModels
from realtime.server import Namespace, Refuse, Server, Socket

ERROR = "error"
RECOVERY_FAILED = "recovery_failed"
SERVER_RESTART = "server_restart"
# Seconds after which clients are told to come back when the server stops of itself.
RECONNECT_SECONDS = 5
_RESTARTING = "The server restarts!"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Options:
    """What the settings say: the secret that signs pids, seconds to recover in, the name of a channel's message."""

    secret: bytes
    recovery_window: int
    channel_event: str


class ChatSockets:
    """Chat's side of a Socket.IO server; `on_restart` hears when the system is asked to restart."""

    def __init__(
        self,
        server: Server,
        log: EventLog,
        commands: Commands,
        connections: Connections,
        models: ReadModels,
        options: Options,
        on_restart: Callable[[], None],
    ) -> None:
        self.is_restarting = False
        self._server = server
        self._on_restart = on_restart
        self._reconnect_in = RECONNECT_SECONDS
        self._namespace: Namespace = server.namespace("/")
        self.registry = Registry(connections)
        self.fanout = Fanout(
            self._namespace, self.registry, log, models, options.channel_event, self._restart_was_requested
        )
        self._admission = Admission(
            commands,
            connections,
            models,
            self.registry,
            self.fanout,
            Pids(options.secret),
            options.recovery_window,
        )
        self._namespace.on_connect(self._connect)
        self._namespace.on_event("api_v3_connect")(self._api_v3_connect)
        self._namespace.on_disconnect(self._disconnect)

    def serve(self, services: Services) -> None:
        """Takes commands too, by events that carry the bodies of the REST endpoints."""
        register_endpoints(self._namespace, self.registry, services)

    async def start(self) -> None:
        """Takes its place at the end of the log; `fanout.run` and `registry.run` are to be run from then on."""
        await self.fanout.start()

    async def announce_stop(self) -> None:
        """Tells everybody that the server goes down, which must listen until then; from now on nobody is registered."""
        self.is_restarting = True
        told = {"reconnect_in": self._reconnect_in}
        self._namespace.emit(SERVER_RESTART, told, offset=self.fanout.position, is_logged=False)
        await self._server.polled()

    async def stop(self) -> None:
        """Closes all connections, and records their ends."""
        await self._server.close()
        await self.registry.finish()

    def _restart_was_requested(self, reconnect_in: int) -> None:
        self.is_restarting = True
        self._reconnect_in = reconnect_in
        self._on_restart()

    async def _connect(self, socket: Socket, auth: dict[str, Any], /) -> None:
        """Lets everybody in; a token registers at once, a pid recovers.

        What cannot be done now only ends the connection: its client tries again by itself, after a refusal it does not.
        """
        socket.is_recoverable = auth.get("recovery") is True
        if self.is_restarting:
            socket.close()
            return
        try:
            token = None if auth.get("token") is None else _token(auth["token"])
            if not (socket.is_recoverable and "pid" in auth and await self._recover(socket, auth, token)):
                await self._begin(socket, auth, token)
        except (LogUnavailable, TooBusy) as error:
            _log.warning("a connection could not be registered now", sid=socket.sid, reason=str(error))
            socket.close()
        except Exception as error:  # noqa: BLE001 - put into words, as over HTTP
            raise Refuse(_words(error, socket)) from None

    async def _recover(self, socket: Socket, auth: dict[str, Any], token: str | None) -> bool:
        """Whether the client goes on where it was; if not, it is told why."""
        try:
            await self._admission.recover(socket, auth["pid"], auth.get("offset"), token)
        except RecoveryFailed as error:
            socket.emit(RECOVERY_FAILED, {"reason": str(error)}, offset=self.fanout.position)
            return False
        return True

    async def _begin(self, socket: Socket, auth: dict[str, Any], token: str | None) -> None:
        if socket.is_recoverable:
            socket.pid = self._admission.new_pid()
        if token is not None:
            await self._admission.register(socket, token, _device(auth))

    async def _api_v3_connect(self, socket: Socket, data: Any = None, /, *_: Any) -> None:
        """Registers the connection, or says by `error` why not; the connection stays open."""
        try:
            await self._register(socket, data)
        except RecoveryFailed as error:
            self._complain(socket, str(error))
        except Exception as error:  # noqa: BLE001 - put into words, as over HTTP
            self._complain(socket, _words(error, socket))

    async def _register(self, socket: Socket, data: Any) -> None:
        token = _token(data.get("token_api_v3") if isinstance(data, dict) else None)
        registration = self.registry.of(socket)
        if self.is_restarting:
            self._complain(socket, _RESTARTING)
        elif registration is None:
            await self._admission.register(socket, token, _device(data))
        elif registration.is_recovered:
            await self._admission.register_again(socket, registration, token)
        else:
            self._complain(socket, "Already registered!")

    def _complain(self, socket: Socket, message: str) -> None:
        socket.emit(ERROR, {"message": message}, offset=self.fanout.position)

    def _disconnect(self, socket: Socket, reason: str, /) -> None:
        self.registry.remove(socket, reason)


def _token(value: object) -> str:
    if not isinstance(value, str):
        raise Refused(Reason.INVALID_TOKEN)
    return value


def _device(data: dict[str, Any]) -> str | None:
    device = data.get("device")
    if device is None or isinstance(device, str):
        return device
    raise Malformed("device", "must be a string")


def _words(error: Exception, socket: Socket) -> str:
    status, message, _ = told(error, HTTPStatus.INTERNAL_SERVER_ERROR, REFUSALS)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("a connection could not be registered", sid=socket.sid, exc_info=error)
    return message
