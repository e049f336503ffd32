"""The server for the Socket.IO suite: it greets with what it was told at the handshake, and gives back what it gets."""

from __future__ import annotations

from typing import Any

from realtime.server import Server, Socket


def make_server(**options: Any) -> Server:
    """A server as the suite expects it; the options are the server's."""
    expected: dict[str, Any] = {
        "ping_interval": 0.3,
        "ping_timeout": 0.2,
        "max_payload": 1_000_000,
        "connect_timeout": 1.0,
        "cors_origin": "*",
    }
    server = Server(**{**expected, **options})
    main, custom = server.namespace("/"), server.namespace("/custom")

    @main.on_connect
    @custom.on_connect
    def greet(socket: Socket, auth: dict[str, Any]) -> None:
        socket.emit("auth", auth)

    @main.on_event("message")
    def give_back(socket: Socket, *arguments: Any) -> None:
        socket.emit("message-back", *arguments)

    @main.on_event("message-with-ack")
    def acknowledge(socket: Socket, *arguments: Any) -> tuple[Any, ...]:
        return arguments

    return server
