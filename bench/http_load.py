"""The HTTP load: keep-alive connections that each send one prepared request again and again, and wait for its answer.

It is a process of its own and the same for every server. It does as little as it can, so as not to be what is
measured: requests are prepared bytes, and of an answer it looks at the status, which must be 200, and at
Content-Length. What it takes of its core is told with the results.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import time
from array import array
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import cast

import msgspec

from bench.load import Load, Measured, Window

_HEAD_END = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_clock = time.perf_counter


@dataclass(frozen=True)
class Target:
    """Where to send what: connection `i` sends `requests[i]`, counted round where there are more connections.

    `pause` is how many seconds after one request each connection sends the next, if not at once when it is answered.
    """

    port: int
    requests: tuple[bytes, ...]
    pause: float = 0.0


class UnexpectedAnswer(Exception):
    """The server answered something else than 200, or not HTTP as we know it; the message shows it."""


def request(path: str, body: object) -> bytes:
    """The bytes of a POST of JSON to `path`."""
    payload = msgspec.json.encode(body)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


def measure(target: Target, load: Load, ready: Callable[[], None]) -> Measured:
    """Measures requests under `load`, over a connection for each caller."""
    return _run(_measure(target, load, ready))


def _run(work: Coroutine[object, object, Measured]) -> Measured:
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(work)
    import uvloop  # may not be installed

    return uvloop.run(work)


async def _measure(target: Target, load: Load, ready: Callable[[], None]) -> Measured:
    loop = asyncio.get_running_loop()
    latencies = array("d")
    clients: list[_Client] = []
    for i in range(load.callers):
        request = target.requests[i % len(target.requests)]
        client = _Client(request, target.pause, latencies, loop.create_future())
        clients.append(client)
        await _connect(client, target.port)
    ready()
    window, cpu_before = Window.of(load), time.process_time()
    for i, client in enumerate(clients):
        client.begin(window, target.pause * i / load.callers)
    await asyncio.gather(*(client.done for client in clients))
    cpu = (time.process_time() - cpu_before) / (load.warm_up + load.seconds)
    for client in clients:
        client.close()
    return Measured(latencies, load.seconds, sum(client.answers for client in clients), cpu)


async def _connect(client: _Client, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)


class _Client(asyncio.Protocol):
    """One connection; `done` is resolved when its last answer has come after the end of the window."""

    def __init__(self, request: bytes, pause: float, latencies: array[float], done: asyncio.Future[None]) -> None:
        self.done = done
        self.answers = 0
        self._request = request
        self._pause = pause
        self._latencies = latencies
        self._transport: asyncio.Transport  # from `connection_made` on
        self._window = Window(0, 0)
        self._began = 0.0
        self._head = b""
        self._missing = 0  # bytes of the answer's body that are still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class

    def begin(self, window: Window, after: float) -> None:
        """Sends the first request, `after` so many seconds."""
        self._window = window
        self._send_after(after)

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def _send_after(self, seconds: float) -> None:
        if seconds > 0:
            asyncio.get_running_loop().call_later(seconds, self._send)
        else:
            self._send()

    def _send(self) -> None:
        self._began = _clock()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            data = self._head + data
            end = data.find(_HEAD_END)
            if end < 0:
                self._head = data
                return
            self._head = b""
            length = _CONTENT_LENGTH.search(data, 0, end)
            if length is None or not data.startswith(b"HTTP/1.1 200 "):
                self._fail(data)
                return
            self._missing = end + len(_HEAD_END) + int(length[1]) - len(data)
        if self._missing < 0:
            self._fail(data)
        elif not self._missing:
            self._answered()

    def _answered(self) -> None:
        ended = _clock()
        self.answers += 1
        if self._window.opens <= ended < self._window.closes:
            self._latencies.append(ended - self._began)
        if ended < self._window.closes:
            self._send_after(self._began + self._pause - ended)
        elif not self.done.done():
            self.done.set_result(None)

    def _fail(self, data: bytes) -> None:
        if not self.done.done():
            self.done.set_exception(UnexpectedAnswer(data[:500].decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(UnexpectedAnswer(f"the server closed the connection: {exc}"))
