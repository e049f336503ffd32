"""Accepting connections, also when the process has no descriptor left for them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import structlog

# As many at a time as usually wait, so that others have their turn.
_AT_ONCE = 128
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_SECONDS = 1.0

_log = structlog.get_logger(__name__)

Accepted = Callable[[socket.socket, Any], None]
"""Takes a connection, which does not block, and the address of its peer."""


class Acceptor:
    """Hands the connections of listening sockets to `accepted`, until it is closed.

    A listening socket stays readable when nothing can be accepted for want of descriptors, and asking it again at once
    would take the whole core: so it is left alone for a second.
    """

    def __init__(self, accepted: Accepted) -> None:
        self._accepted = accepted
        self._loop: asyncio.AbstractEventLoop
        self._sockets: list[socket.socket] = []
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}

    def add(self, listening: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Accepts from this socket, too, on the loop."""
        self._loop = loop
        listening.setblocking(False)
        self._sockets.append(listening)
        self._listen(listening)

    def close(self) -> None:
        """Accepts no more, and closes the listening sockets."""
        for listening in self._sockets:
            if (timer := self._timers.pop(listening, None)) is not None:
                timer.cancel()
            if listening.fileno() >= 0:
                self._loop.remove_reader(listening)
                listening.close()
        self._sockets.clear()

    def _listen(self, listening: socket.socket) -> None:
        self._timers.pop(listening, None)
        self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if listening.fileno() < 0:
                return
            try:
                connection, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause(listening, error)
                return
            connection.setblocking(False)
            self._accepted(connection, address)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        _log.warning("no connection can be accepted now", reason=error.strerror)
        self._loop.remove_reader(listening)
        self._timers[listening] = self._loop.call_later(_RETRY_SECONDS, self._listen, listening)
