"""Tornado's streams where they are needed: under TLS, and for whoever takes a connection over.

asyncio can encrypt, too, but what it encrypts nobody can take over from it, as a WebSocket's handler does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

_READ_SIZE = 64 * 1024
# More than this waiting to be sent stops those who write, as in asyncio's own transports.
_HIGH_WATER = 64 * 1024


class ReadAgainStream(IOStream):
    """A stream over a socket from which some bytes were read before: they come first."""

    def __init__(self, connection: socket.socket, unread: bytes) -> None:
        # One read takes all of them, so that whoever takes the socket from the stream finds them in its buffer.
        super().__init__(connection, read_chunk_size=max(_READ_SIZE, len(unread)))
        self._unread = unread

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Reads what was read before, and then from the socket."""
        if self._unread:
            return _take(self, buf)
        return super().read_from_fd(buf)


class ReadAgainTlsStream(SSLIOStream):
    """A stream under TLS into which bytes can be put back."""

    _unread = b""

    def put_back(self, unread: bytes) -> None:
        """Lets these bytes be read before all others."""
        self._unread = unread

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Reads what was put back, and then from the socket."""
        if self._unread:
            return _take(self, buf)
        return super().read_from_fd(buf)


def _take(stream: ReadAgainStream | ReadAgainTlsStream, buf: bytearray | memoryview) -> int:
    size = min(len(buf), len(stream._unread))
    buf[:size] = stream._unread[:size]
    stream._unread = stream._unread[size:]
    return size


class TlsTransport(asyncio.Transport):
    """A stream under TLS as a transport for asyncio's protocols, from before the handshake on."""

    def __init__(self, stream: ReadAgainTlsStream, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": stream.socket})
        self._stream = stream
        self._protocol = protocol
        self._reads = asyncio.Event()
        self._reads.set()
        self._unsent = 0
        self._high_water = _HIGH_WATER
        self._is_paused = False
        self._is_closing = False
        self._is_ending = False
        self._is_over = False
        self._stream.set_close_callback(self._lost)
        protocol.connection_made(self)
        self._task = asyncio.ensure_future(self._read())

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes, in order."""
        if self._is_closing or self._is_ending or not data or self._stream.closed():
            return
        size = len(data)
        self._unsent += size
        written = self._stream.write(bytes(data))
        if written.done():
            # As most often: whoever asks now what is left must not hear of it.
            self._sent(written, size)
        else:
            written.add_done_callback(lambda future: self._sent(future, size))
            self._pause()

    def get_write_buffer_size(self) -> int:
        """How many bytes were not sent yet."""
        return self._unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002 - it always waits for the last byte
        """Stops those who write when more than `high` bytes wait, until none does."""
        self._high_water = _HIGH_WATER if high is None else high
        self._pause()

    def can_write_eof(self) -> bool:
        """Yes."""
        return True

    def write_eof(self) -> None:
        """Ends this side when everything is sent. What comes from then on is not decrypted any more."""
        self._is_ending = True
        if not self._unsent:
            self._end()

    def pause_reading(self) -> None:
        """Reads no more, once what is being read has come."""
        self._reads.clear()

    def resume_reading(self) -> None:
        """Reads again."""
        self._reads.set()

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self._is_closing

    def close(self) -> None:
        """Closes the connection when everything is sent."""
        self._is_closing = True
        if not self._unsent:
            self._stream.close()

    def abort(self) -> None:
        """Closes the connection now."""
        self._is_closing = True
        self._stream.close()

    def detach(self, unread: bytes) -> IOStream:
        """Gives the stream away, from which these bytes will be read first. For while nothing is being read."""
        self._is_over = True
        self._stream.set_close_callback(None)
        self._reads.set()
        self._stream.put_back(unread)
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)
        return self._stream

    def _pause(self) -> None:
        if self._unsent > self._high_water and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    async def _read(self) -> None:
        try:
            await self._stream.wait_for_handshake()
        except OSError:
            return  # whatever ended it: the stream tells so by its callback
        try:
            while not self._is_over:
                piece = asyncio.ensure_future(self._stream.read_bytes(_READ_SIZE, partial=True))
                was_there = piece.done()
                self._protocol.data_received(await piece)
                if was_there:
                    # Whoever sends as fast as can be read here shall not keep the loop from all others.
                    await asyncio.sleep(0)
                await self._reads.wait()
        except StreamClosedError:
            pass

    def _sent(self, future: asyncio.Future[None], size: int) -> None:
        self._unsent -= size
        if future.exception() is not None or self._is_over:
            return  # a stream that was closed tells so by its callback
        if self._is_closing and not self._unsent:
            self._stream.close()
        elif self._is_ending and not self._unsent:
            self._end()
        elif self._is_paused and not self._unsent:
            self._is_paused = False
            self._protocol.resume_writing()

    def _end(self) -> None:
        if self._stream.closed():
            return
        # The words of farewell are said, and then the client's are wanted, which cannot have come.
        with contextlib.suppress(OSError):
            self._stream.socket.unwrap()
        # From here on the socket gives away what comes as it is.
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)

    def _lost(self) -> None:
        self._is_over = True
        self._is_closing = True
        self._reads.set()
        self._protocol.connection_lost(None)


def taken_from(transport: asyncio.Transport, unread: bytes) -> IOStream:
    """The connection as a stream of Tornado's, from which the bytes will be read first; the transport ends.

    Everything that was written must have been sent.
    """
    if isinstance(transport, TlsTransport):
        return transport.detach(unread)
    return ReadAgainStream(socket_of(transport), unread)


def socket_of(transport: asyncio.Transport) -> socket.socket:
    """The socket of a connection that is not under TLS; the transport ends.

    Everything that was written must have been sent.
    """
    own = os.dup(transport.get_extra_info("socket").fileno())
    transport.abort()
    connection = socket.socket(fileno=own)
    connection.setblocking(False)
    return connection
