"""Connections that go from one process to another, in the middle of their requests.

A connection is not tunnelled but moved: its socket goes with the bytes that were read of it, in one datagram, and
whoever gets it serves it from there on, so what it costs it costs once. Of one under TLS the keys cannot go along: for
it the other process gets an end of a pair, and a `Tunnel` carries what was decrypted.

Invariants: a connection belongs to one process at a time, and is closed by it or sent on. What waits to be sent keeps
its order. A message is one connection, whole, whoever else sends at the same time.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import structlog
from tornado.iostream import IOStream, StreamClosedError

# As much as fits into a datagram beside others; more goes by a file in memory.
_INLINE = 16 * 1024
_HEADER = 1024
# What waits for a process that takes nothing.
_MOST_WAITING = 4096
_AT_ONCE = 64
_CHUNK = 64 * 1024

_log = structlog.get_logger(__name__)
_decode = msgspec.json.Decoder(tuple[list[str | int], str]).decode


class Moved(NamedTuple):
    """A connection on its way: its socket, the address and protocol of its client, and what was read but not served."""

    socket: socket.socket
    address: Any
    protocol: str
    unread: bytes


class Departures:
    """The way to one other process: `end` is the other end of what its `Arrivals` read, a pair of datagram sockets.

    While that process takes nothing, connections wait here, a few thousand of them, and are closed beyond that.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._waiting: deque[tuple[bytes, ExitStack, list[int]]] = deque()

    def send(self, moved: Moved) -> None:
        """Sends a connection away, which is no longer this process's."""
        if len(self._waiting) >= _MOST_WAITING:
            moved.socket.close()
            return
        self._waiting.append(_packed(moved))
        if len(self._waiting) == 1 and self._flush():
            asyncio.get_running_loop().add_writer(self._end, self._go_on)

    def close(self) -> None:
        """Closes the way, and what waits."""
        if self._waiting:
            asyncio.get_running_loop().remove_writer(self._end)
        while self._waiting:
            self._waiting.popleft()[1].close()
        self._end.close()

    def _go_on(self) -> None:
        if not self._flush():
            asyncio.get_running_loop().remove_writer(self._end)

    def _flush(self) -> bool:
        """Sends what can be sent; whether something is left."""
        while self._waiting:
            message, held, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._end, [message], descriptors)
            except BlockingIOError:
                return True
            except OSError as error:
                _log.warning("a connection could not be given to another process", reason=error.strerror)
            self._waiting.popleft()
            held.close()
        return False


class Arrivals:
    """Connections that other processes send to this one."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._arrived: Callable[[Moved], None] | None = None

    def start(self, arrived: Callable[[Moved], None]) -> None:
        """Gives every connection to `arrived` from now on."""
        self._arrived = arrived
        asyncio.get_running_loop().add_reader(self._end, self._readable)

    def close(self) -> None:
        """Takes no more. What others send waits for the next process in this one's place."""
        if self._arrived is not None:
            self._arrived = None
            asyncio.get_running_loop().remove_reader(self._end)
        self._end.close()

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            if self._arrived is None:
                return
            try:
                message, descriptors, flags, _ = socket.recv_fds(
                    self._end, _HEADER + _INLINE, 2, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                _log.error("no connection can come from other processes any more", reason=error.strerror)
                self.close()
                return
            if descriptors and not flags & socket.MSG_CTRUNC:
                self._arrived(_unpacked(message, descriptors))
            else:
                # The system closes what a process has no descriptors for. A connection may come without its bytes, and
                # would have what follows taken for a request.
                for descriptor in descriptors:
                    os.close(descriptor)
                _log.warning("a connection from another process was lost for want of descriptors")


@dataclass(frozen=True)
class Neighbours:
    """The other processes that serve beside this one.

    `whose` tells by a request's target which of them it is for; None if this one is to serve it.
    """

    arrivals: Arrivals
    whose: Callable[[str], Departures | None]


class Tunnel:
    """Carries bytes both ways between two streams, no faster than either takes them, until one of them ends."""

    def __init__(self, one: IOStream, other: IOStream) -> None:
        self.ended = asyncio.ensure_future(_carry_both(one, other))

    def close(self) -> None:
        """Ends both."""
        self.ended.cancel()


def tunnelled(stream: IOStream) -> tuple[socket.socket, Tunnel]:
    """A socket that stands for a stream, for another process, and the tunnel between them."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return theirs, Tunnel(stream, IOStream(ours))


async def _carry_both(one: IOStream, other: IOStream) -> None:
    try:
        await asyncio.gather(_carry(one, other), _carry(other, one))
    finally:
        one.close()
        other.close()


async def _carry(source: IOStream, sink: IOStream) -> None:
    try:
        while True:
            await sink.write(await source.read_bytes(_CHUNK, partial=True))
    except StreamClosedError:
        source.close()
        sink.close()


def _packed(moved: Moved) -> tuple[bytes, ExitStack, list[int]]:
    """The message, what is closed once it is sent, and the descriptors that go with it."""
    held = ExitStack()
    held.callback(moved.socket.close)
    descriptors, unread = [moved.socket.fileno()], moved.unread
    if len(unread) > _INLINE:
        memory = os.memfd_create("unread")
        held.callback(os.close, memory)
        _write_all(memory, unread)
        descriptors.append(memory)
        unread = b""
    host, port, *_ = moved.address
    return msgspec.json.encode(([host, port], moved.protocol)) + b"\n" + unread, held, descriptors


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _unpacked(message: bytes, descriptors: Iterable[int]) -> Moved:
    connection, *memory = descriptors
    header, _, unread = message.partition(b"\n")
    address, protocol = _decode(header)
    for descriptor in memory:
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            unread = file.read()
    moved = socket.socket(fileno=connection)
    moved.setblocking(False)
    return Moved(moved, tuple(address), protocol, unread)
