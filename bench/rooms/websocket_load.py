"""The load: `websocket_load.c`, compiled once and then driven from here."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.rooms.program import PATIENCE, Program, program
from bench.servers.process import CACHE, ServerFailed

_SOURCE = Path(__file__).with_name("websocket_load.c")
_IN_FLIGHT = 64


@dataclass(frozen=True)
class Opened:
    """Connections that were opened; `core` is the share of its core that the load took."""

    count: int
    seconds: float
    core: float


@dataclass(frozen=True)
class Received:
    """What came of the events that were expected."""

    deliveries: int
    missing: int
    last_ns: int  # when the last one came
    core: float  # the share of its core that the load took since the first one came
    p50_ms: float
    p99_ms: float


class WebsocketLoad:
    """Clients that listen, and answer pings."""

    def __init__(self, running: Program) -> None:
        self._program = running

    @property
    def pid(self) -> int:
        return self._program.pid

    def authenticate(self, payload: str) -> None:
        """Gives a CONNECT payload, as JSON; connections that are opened later take the given ones in turn."""
        self._program.ask(f"auth {payload}")

    def open(self, count: int, in_flight: int = _IN_FLIGHT) -> Opened:
        """Opens connections as fast as it can and waits until each is connected to the main namespace."""
        answer = self._program.ask(f"open {count} {in_flight}", PATIENCE + count / 50)
        return Opened(count, float(answer["seconds"]), float(answer["core"]))

    def stall(self, count: int) -> None:
        """Lets the newest connections never read again; they are no longer expected to receive."""
        self._program.ask(f"stall {count}")

    def expect(self, events: int, *, timed: bool) -> None:
        """Counts from now on; every connection that reads is to receive so many events."""
        self._program.ask(f"expect {events} {int(timed)}")

    def received(self, within: float = PATIENCE) -> Received:
        """What has come when everything has come, or so many seconds are over."""
        answer = self._program.ask(f"wait {within}", within + PATIENCE)
        if answer["misplaced"]:
            raise ServerFailed(f"{answer['misplaced']} events came out of order")
        return Received(
            deliveries=int(answer["received"]),
            missing=int(answer["missing"]),
            last_ns=int(answer["last_ns"]),
            core=float(answer["core"]),
            p50_ms=float(answer["p50_ms"]),
            p99_ms=float(answer["p99_ms"]),
        )

    def status(self) -> dict[str, int]:
        """How many connections are open and were closed by the server; pings and other frames so far."""
        return {name: int(value) for name, value in self._program.ask("status").items()}


@contextlib.contextmanager
def websocket_load(port: int, core: int | None = None) -> Iterator[WebsocketLoad]:
    """A load on the server at that port of 127.0.0.1, on that core."""
    with program([str(build()), str(port)], core) as running:
        yield WebsocketLoad(running)


def build() -> Path:
    """The compiled program, made anew when its source has changed; ends the benchmark if there is no compiler."""
    source = _SOURCE.read_bytes()
    built = CACHE / f"websocket_load-{hashlib.sha256(source).hexdigest()[:12]}"
    if built.exists():
        return built
    if sys.platform != "linux":
        sys.exit("the load client is built on epoll: this benchmark runs on Linux only")
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("the load client is written in C, and there is no `cc` here (Debian: apt install gcc libc6-dev)")
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = built.with_suffix(".new")
    command = [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", str(unfinished), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return unfinished.rename(built)
