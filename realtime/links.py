"""How bytes reach a client's socket and come from it: by its descriptor, or through a stream that encrypts."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Protocol

from tornado.iostream import IOStream, StreamClosedError

# A read may be thousands of tiny packets, and others wait while they are handled.
READ_SIZE = 8 * 1024
# As many as Linux takes in one writev.
_VECTORS = 1024
_STREAM_CHUNK = 64 * 1024


class Link(Protocol):
    """One client's socket."""

    # What can be written to directly; -1 if nothing can.
    descriptor: int

    def start_reading(self, received: Callable[[bytes], None]) -> None:
        """Calls `received` with what arrives; with nothing at its end. Not called for an error: the end follows."""

    def stop_reading(self) -> None:
        """Lets what arrives wait in the system."""

    def write(self, chunks: deque[bytes | memoryview]) -> int:
        """Writes of the chunks what the socket takes now, the number of bytes; raises `OSError`."""

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Calls back whenever `write` may take more."""

    def stop_writing(self) -> None:
        """Ends the calling back."""

    def end(self) -> None:
        """Tells the client that nothing more will come."""

    def close(self) -> None:
        """Closes the socket. For the hub alone (see its invariants)."""


class SocketLink:
    """A socket by its descriptor, read and written to without anything in between."""

    __slots__ = ("_loop", "_received", "descriptor")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._received: Callable[[bytes], None] | None = None

    def start_reading(self, received: Callable[[bytes], None]) -> None:
        self._received = received
        self._loop.add_reader(self.descriptor, self._readable)

    def stop_reading(self) -> None:
        self._loop.remove_reader(self.descriptor)

    def write(self, chunks: deque[bytes | memoryview]) -> int:
        try:
            return os.writev(self.descriptor, list(islice(chunks, _VECTORS)))
        except BlockingIOError:
            return 0

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._loop.add_writer(self.descriptor, callback)

    def stop_writing(self) -> None:
        self._loop.remove_writer(self.descriptor)

    def end(self) -> None:
        try:
            # The descriptor stays this link's own: the socket object is only the way to say it.
            borrowed = socket.socket(fileno=self.descriptor)
        except OSError:
            return
        try:
            borrowed.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            borrowed.detach()

    def close(self) -> None:
        self._loop.remove_reader(self.descriptor)
        self._loop.remove_writer(self.descriptor)
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def _readable(self) -> None:
        try:
            data = os.read(self.descriptor, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._received is not None:
            self._received(data)


class StreamLink:
    """A socket behind a Tornado stream, which TLS needs."""

    __slots__ = ("_reading", "_received", "_stream", "_wanted", "_writable", "descriptor")

    def __init__(self, stream: IOStream) -> None:
        self.descriptor = -1
        self._stream = stream
        # One task for the link's whole life: a stream does not get over a read that was cancelled.
        self._reading: asyncio.Task[None] | None = None
        self._received: Callable[[bytes], None] | None = None
        self._wanted = asyncio.Event()
        self._writable: Callable[[], None] | None = None

    def start_reading(self, received: Callable[[bytes], None]) -> None:
        self._received = received
        self._wanted.set()
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())

    def stop_reading(self) -> None:
        self._wanted.clear()

    def write(self, chunks: deque[bytes | memoryview]) -> int:
        # One piece at a time, so that what waits is counted by the hub and not hidden in the stream.
        if self._stream.closed():
            raise OSError("the stream is closed")
        if self._stream.writing():
            return 0
        piece = _front(chunks, _STREAM_CHUNK)
        self._stream.write(piece).add_done_callback(self._written)
        return len(piece)

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._writable = callback
        asyncio.get_running_loop().call_soon(callback)

    def stop_writing(self) -> None:
        self._writable = None

    def end(self) -> None:
        """Nothing: TLS ends both ways at once."""

    def close(self) -> None:
        self._received = None
        self._wanted.set()
        self.stop_writing()
        self._stream.close()

    def _written(self, future: asyncio.Future[None]) -> None:
        future.exception()  # a closed stream is told by reading
        if self._writable is not None:
            self._writable()

    async def _read(self) -> None:
        data = b"..."
        while data:
            await self._wanted.wait()
            try:
                data = await self._stream.read_bytes(READ_SIZE, partial=True)
            except StreamClosedError:
                data = b""
            await self._wanted.wait()
            if self._received is not None:
                self._received(data)


def _front(chunks: Iterable[bytes | memoryview], size: int) -> bytes:
    piece = bytearray()
    for chunk in chunks:
        piece += chunk[: size - len(piece)]
        if len(piece) == size:
            break
    return bytes(piece)
