"""The program of ours; `bench.rooms` tells what it is asked and what it answers."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping

from tornado.netutil import bind_sockets
from tornado.web import Application

from bench.rooms import TEXT_VARIABLE, mark
from bench.worker import quieten
from handlers.serving import make_server
from realtime.server import Namespace, Server, Socket

ROOM = "room"
# Timers are that coarse: an event that comes later than this is late because the server was busy.
_TIMER_NS = 2_000_000
_clock = time.monotonic_ns


class Emitter:
    """Emits to the room as it is told."""

    def __init__(self, namespace: Namespace, text: str) -> None:
        self._namespace = namespace
        self._text = text
        self._loop = asyncio.get_running_loop()

    def burst(self, events: int, per_turn: int) -> None:
        """Emits `per_turn` events in each turn of the loop."""
        self._turn(0, events, per_turn, _clock())

    def _turn(self, number: int, events: int, per_turn: int, began: int) -> None:
        end = min(number + per_turn, events)
        for each in range(number, end):
            self._emit(each, _clock())
        if end < events:
            self._loop.call_soon(self._turn, end, events, per_turn, began)
        else:
            answer({"began_ns": began})

    def paced(self, per_second: int, events: int) -> None:
        """Emits an event at each tick of a clock."""
        self._tick(0, events, 1_000_000_000 // per_second, _clock())

    def _tick(self, number: int, events: int, period: int, began: int) -> None:
        now, due = _clock(), began + number * period
        self._emit(number, due if now - due > _TIMER_NS else now)
        if number + 1 == events:
            answer({"began_ns": began})
            return
        rest = max(0, due + period - _clock())
        self._loop.call_later(rest / 1e9, self._tick, number + 1, events, period, began)

    def _emit(self, number: int, at: int) -> None:
        self._namespace.emit("event", {"mark": mark(number, at), "text": self._text}, room=ROOM)


def answer(value: Mapping[str, object]) -> None:
    """Writes an answer."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Serves until standard input ends."""
    server = Server()
    namespace = server.namespace("/")

    @namespace.on_connect
    def connect(socket: Socket, _auth: object) -> None:
        socket.join(ROOM)

    sockets = bind_sockets(0, "127.0.0.1")
    http = make_server(Application(server.routes("/socket.io/")), server.door("/socket.io/"))
    http.add_sockets(sockets)
    gc.collect()
    gc.freeze()
    answer({"port": sockets[0].getsockname()[1]})
    await _obey(server, Emitter(namespace, os.environ[TEXT_VARIABLE]))
    http.stop()
    await server.close()


async def _obey(server: Server, emitter: Emitter) -> None:
    def collect() -> None:
        gc.collect()
        answer({})

    commands: dict[str, Callable[..., None]] = {
        "burst": emitter.burst,
        "paced": emitter.paced,
        "collect": collect,
        "connections": lambda: answer({"open": server.statistics["open"]}),
    }
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async for line in lines:
        name, *numbers = line.decode().split()
        commands[name](*map(int, numbers))


if __name__ == "__main__":
    quieten()
    asyncio.run(main())
