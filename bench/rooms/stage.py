"""Who takes part in a benchmark of rooms, and the stage of a measurement: a fresh server and a load, on a core each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.command_line import progress
from bench.load import Sample
from bench.rooms import Command, Contestant, node
from bench.rooms.program import Program, core_time, program, two_cores
from bench.rooms.websocket_load import Received, WebsocketLoad, build, websocket_load
from bench.servers.process import ServerFailed

_WITHIN = 120.0  # seconds that a measurement's deliveries may take


@dataclass(frozen=True)
class Entrant:
    """A contestant that is ready to start."""

    name: str
    command: Command


def entrants(contestants: Sequence[Contestant]) -> list[Entrant]:
    """Those contestants that can take part; says which cannot, and why."""
    build()
    ready = []
    for contestant in contestants:
        prepared = contestant.prepare()
        if isinstance(prepared, Command):
            ready.append(Entrant(contestant.name, prepared))
        else:
            print(f"LEFT OUT: {contestant.name}: {prepared}")
    return ready


def versions() -> dict[str, str]:
    """The versions of what takes part."""
    return node.versions()


@dataclass(frozen=True)
class Stage:
    """A running server and the load on it."""

    server: Program
    load: WebsocketLoad

    def burst(self, events: int, per_turn: int) -> Burst:
        """Lets the server emit as fast as it can, and waits until every client has everything."""
        return self._measure(f"burst {events} {per_turn}", events, timed=False)

    def paced(self, per_second: int, events: int) -> Burst:
        """Lets the server emit at a rate, and waits until every client has everything."""
        return self._measure(f"paced {per_second} {events}", events, timed=True)

    def _measure(self, command: str, events: int, *, timed: bool) -> Burst:
        core_before = core_time(self.server.pid)
        self.load.expect(events, timed=timed)
        self.server.say(command)
        received = self.load.received(_WITHIN)
        began_ns = int(self.server.answer()["began_ns"])
        if received.missing:
            raise ServerFailed(f"{received.missing} of the deliveries of {command!r} are missing")
        seconds = (received.last_ns - began_ns) / 1e9
        return Burst(received, seconds, core_time(self.server.pid) - core_before)


@dataclass(frozen=True)
class Burst:
    """What came of events that were emitted: in how many seconds, and what they took of the server's core."""

    received: Received
    seconds: float
    server_seconds: float


def summed_up(bursts: Sequence[Burst]) -> Sample:
    """One sample of bursts that followed each other; latencies are those of the last one."""
    deliveries = sum(burst.received.deliveries for burst in bursts)
    seconds = sum(burst.seconds for burst in bursts)
    last = bursts[-1].received
    return Sample(
        rate=deliveries / seconds,
        p50_ms=last.p50_ms or None,
        p99_ms=last.p99_ms or None,
        cpu=sum(burst.received.core * burst.seconds for burst in bursts) / seconds,
        server_us=sum(burst.server_seconds for burst in bursts) / deliveries * 1_000_000,
    )


@contextlib.contextmanager
def stage(entrant: Entrant) -> Iterator[Stage]:
    """Starts a contestant's server and a load without connections; both end with the context."""
    core, load_core = two_cores()
    with program(entrant.command.words, core, entrant.command.environment) as server:
        port = int(server.answer()["port"])
        with websocket_load(port, load_core) as load:
            yield Stage(server, load)


def tell(number: int, rounds: int, what: str, entrant: Entrant) -> None:
    """Says on standard error which measurement comes."""
    progress(f"round {number + 1} of {rounds}: {what}, {entrant.name}")
