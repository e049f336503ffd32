"""How many deliveries a second a room gives, beside Socket.IO on Node by its two engines.

A room of 100, 1,000 and 5,000 websocket clients, events of about 200 bytes of JSON. The server emits one event in each
turn of its loop, or 10, or 100, as the log delivers them in batches, and goes on in the next turn. A burst counts until
its last event is with its last client, every client must have received every event in order, and bursts are repeated
until the time is over. Ours joins events of turns that follow each other at once into one write, which shows in the
bursts of one event a turn. Then events at a steady pace, each on its own, for their latency: from the call that emits
one to its arrival. Before all that, the connections: how many a second are opened until each has its CONNECT reply, 64
at a time, and what each of them holds of the server's memory.

Every server is one process on one core, started anew for each room; the load is one process in C on another core. Its
share of that core is shown: where it is near 100 %, the server may be faster than shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from bench import table
from bench.command_line import duration, interleaved, parser, positive, run, write_json
from bench.load import Sample
from bench.machine import Machine
from bench.rooms import minutebook, node
from bench.rooms.program import resident_kib
from bench.rooms.stage import Burst, Entrant, Stage, entrants, stage, summed_up, tell, versions
from bench.rounds import Results, verdict
from bench.servers.process import ServerFailed

CONTESTANTS = (minutebook.SERVER, node.BY_DEFAULT, node.BY_UWS)
CONNECTING = "connecting"
PACED = "paced"
PER_SECOND = 20


@dataclass(frozen=True)
class Batch:
    """So many events in a turn."""

    name: str
    per_turn: int


BATCHES = (Batch("one a turn", 1), Batch("10 a turn", 10), Batch("100 a turn", 100))
# A burst is doubled until it lasts so many seconds, or is as large as it may be: a client may fall behind by no more
# than our server bears (1 MiB), and all together by no more than the system's memory does.
_LONG_ENOUGH = 0.25
_MOST_EVENTS = 4000
_MOST_DELIVERIES = 4_000_000


@dataclass(frozen=True)
class Goal:
    """What a figure of ours is to be to Socket.IO's on Node."""

    what: str
    case: str
    figure: str
    factor: float
    at_most: bool = False


GOALS = (
    Goal("deliveries/s, one a turn", "one a turn", "rate", 3),
    Goal("deliveries/s, 10 a turn", "10 a turn", "rate", 15),
    Goal("deliveries/s, 100 a turn", "100 a turn", "rate", 40),
    Goal(f"p99 at {PER_SECOND} events/s", PACED, "p99_ms", 0.6, at_most=True),
    Goal("memory a connection", CONNECTING, "memory_kib", 0.7, at_most=True),
    Goal("connections accepted a second", CONNECTING, "rate", 1.5),
)
DELIVERIES = (
    "clients",
    "",
    "",
    "deliveries/s",
    "server's core, us a delivery",
    "p50 ms",
    "p99 ms",
    "load's core",
    "ours to this one (extremes)",
)
CONNECTIONS = ("clients", "", "accepted/s", "load's core", "ours to this one", "KiB a connection", "ours to this one")


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.fanout", str(__doc__), rounds=3, postgres=False)
    options.add_argument("--seconds", type=duration, default=1.0, help="bursts are repeated for so long (1)")
    options.add_argument("--paced-seconds", type=duration, default=10.0, help="length of the steady pace (10)")
    options.add_argument(
        "--clients", type=positive, nargs="+", default=[100, 1000, 5000], help="sizes of the room (100 1000 5000)"
    )
    arguments = options.parse_args()
    contestants = entrants(CONTESTANTS)
    machine = Machine.of(None, versions())
    print(machine.headline())
    print(f"{arguments.rounds} rounds; server and load on a core each\n")
    results = _race(contestants, arguments)
    print(table.table(DELIVERIES, _deliveries(results, arguments.clients)))
    print()
    print(table.table(CONNECTIONS, _connections(results, arguments.clients)))
    print()
    for goal in GOALS:
        print(_outcome(results, goal, arguments.clients))
    write_json(arguments.json, arguments, machine, results)


def _race(contestants: Sequence[Entrant], arguments: argparse.Namespace) -> Results:
    results, by_name = Results(), {entrant.name: entrant for entrant in contestants}
    for number in range(arguments.rounds):
        for room in arguments.clients:
            for name in interleaved(list(by_name), number):
                tell(number, arguments.rounds, f"{room:,} clients", by_name[name])
                for case, sample in _measure(by_name[name], room, arguments).items():
                    results.add(_case(room, case), name, sample)
    return results


def _case(room: int, case: str) -> str:
    return f"{room:,} clients, {case}"


def _measure(entrant: Entrant, room: int, arguments: argparse.Namespace) -> dict[str, Sample]:
    """All figures of one server with a room of that size; a connection that is lost meanwhile ends the benchmark."""
    with stage(entrant) as running:
        samples = {CONNECTING: _connect(running, room)}
        for batch in BATCHES:
            samples[batch.name] = _bursts(running, batch, room, arguments.seconds)
        samples[PACED] = summed_up([running.paced(PER_SECOND, max(1, round(PER_SECOND * arguments.paced_seconds)))])
        lost = running.load.status()["closed"]
        if lost:
            raise ServerFailed(f"{entrant.name} closed {lost} connections")
        return samples


def _connect(running: Stage, room: int) -> Sample:
    running.server.ask("collect")
    before = resident_kib(running.server.pid)
    opened = running.load.open(room)
    running.server.ask("collect")
    held = (resident_kib(running.server.pid) - before) / room
    return Sample(rate=opened.count / opened.seconds, cpu=opened.core, memory_kib=held if held > 0 else None)


def _bursts(running: Stage, batch: Batch, room: int, seconds: float) -> Sample:
    most = min(_MOST_EVENTS, _MOST_DELIVERIES // room)
    events = 2 * batch.per_turn
    burst = running.burst(events, batch.per_turn)  # those up to the right size are the warm-up
    while burst.seconds < _LONG_ENOUGH and 2 * events <= most:
        events *= 2
        burst = running.burst(events, batch.per_turn)
    bursts: list[Burst] = []
    while sum(burst.seconds for burst in bursts) < seconds:
        bursts.append(running.burst(events, batch.per_turn))
    return summed_up(bursts)


def _deliveries(results: Results, rooms: Sequence[int]) -> list[list[str]]:
    return [
        _delivery_row(results, room, case, name)
        for room in rooms
        for case in (*(batch.name for batch in BATCHES), PACED)
        for name in results.contestants(_case(room, case))
    ]


def _delivery_row(results: Results, room: int, case: str, name: str) -> list[str]:
    key = _case(room, case)
    sample = results.median(key, name)
    rated = results.ratio(key, name, "p99_ms" if case == PACED else "rate")
    return [
        f"{room:,}",
        f"{PER_SECOND} events/s (ratio of p99)" if case == PACED else case,
        name,
        table.rate(sample.rate),
        f"{sample.server_us or 0:.2f}",
        table.milliseconds(sample.p50_ms),
        table.milliseconds(sample.p99_ms),
        f"{sample.cpu or 0:.0%}",
        table.ratio(rated),
    ]


def _connections(results: Results, rooms: Sequence[int]) -> list[list[str]]:
    return [
        _connection_row(results, room, name) for room in rooms for name in results.contestants(_case(room, CONNECTING))
    ]


def _connection_row(results: Results, room: int, name: str) -> list[str]:
    key = _case(room, CONNECTING)
    sample = results.median(key, name)
    return [
        f"{room:,}",
        name,
        table.rate(sample.rate),
        f"{sample.cpu or 0:.0%}",
        table.ratio(results.ratio(key, name)),
        "" if sample.memory_kib is None else f"{sample.memory_kib:.1f}",
        table.ratio(results.ratio(key, name, "memory_kib")),
    ]


def _outcome(results: Results, goal: Goal, rooms: Sequence[int]) -> str:
    """How we stand to a goal in each room, and to the peer that is to be beaten."""
    found = []
    for room in rooms:
        ratio = results.ratio(_case(room, goal.case), node.DEFAULT, goal.figure)
        if ratio is not None:
            stands = verdict(ratio.median, goal.factor, at_most=goal.at_most)
            found.append(f"\n  {room:>5,} clients: {ratio.median:.2f}, goal {stands}")
        other = results.ratio(_case(room, goal.case), node.UWS, goal.figure)
        if other is not None:
            found.append(f" (to uWebSockets.js {other.median:.2f})")
    return f"{goal.what}:{''.join(found) or ' nobody to compare with'}"


if __name__ == "__main__":
    run(main)
