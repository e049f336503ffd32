"""What clients that never read cost the others, and the server, beside Socket.IO on Node by its two engines.

A room of clients gets events of 2 KiB at a steady pace: once alone, and once with clients beside them that read nothing
more once they are connected. The others' latency is to stay what it was. Of the server's memory the figure is by how
much it rose for each client that does not read, at its highest: ours bounds what waits for a client (1 MiB) and cuts
off those who are above it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from statistics import median

from bench import table
from bench.command_line import duration, interleaved, parser, positive, run, write_json
from bench.load import Sample
from bench.machine import Machine
from bench.rooms import TEXT_VARIABLE, minutebook, node
from bench.rooms.program import resident_kib
from bench.rooms.stage import Entrant, entrants, stage, summed_up, tell, versions
from bench.rounds import OURS, Results, verdict

CONTESTANTS = (minutebook.SERVER, node.BY_DEFAULT, node.BY_UWS)
ALONE, BESIDE = "alone", "beside clients that never read"
TEXT = "Minutes. " * 220
PER_SECOND = 500
# What a client may make wait in the server, and half as much again for what surrounds it.
GOAL_KIB = 1536.0
# How much worse the others' latency may get: what two measurements of the same thing differ by here.
GOAL_P99 = 1.5
_LOOK_SECONDS = 0.05

HEADER = ("", "", "p50 ms", "p99 ms", "server's core, us a delivery", "KiB a client that never reads", "cut off")


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.slow_consumer", str(__doc__), rounds=3, postgres=False)
    options.add_argument("--seconds", type=duration, default=10.0, help="length of each measurement (10)")
    options.add_argument("--clients", type=positive, default=50, help="clients that read (50)")
    options.add_argument("--stalled", type=positive, default=10, help="clients that never read (10)")
    arguments = options.parse_args()
    contestants = [_with_text(entrant) for entrant in entrants(CONTESTANTS)]
    machine = Machine.of(None, versions())
    print(machine.headline())
    print(
        f"{arguments.rounds} rounds; {PER_SECOND} events/s to {arguments.clients} clients, "
        f"then with {arguments.stalled} more that never read\n"
    )
    results, cut_off = _race(contestants, arguments)
    print(table.table(HEADER, _rows(results, cut_off)))
    for line in _outcome(results):
        print(line)
    write_json(arguments.json, arguments, machine, results)


def _with_text(entrant: Entrant) -> Entrant:
    environment = {**entrant.command.environment, TEXT_VARIABLE: TEXT}
    return Entrant(entrant.name, dataclasses.replace(entrant.command, environment=environment))


def _race(contestants: Sequence[Entrant], arguments: argparse.Namespace) -> tuple[Results, dict[str, list[int]]]:
    results = Results()
    cut_off: dict[str, list[int]] = {entrant.name: [] for entrant in contestants}
    by_name = {entrant.name: entrant for entrant in contestants}
    for number in range(arguments.rounds):
        for name in interleaved(list(by_name), number):
            tell(number, arguments.rounds, f"{arguments.stalled} clients that never read", by_name[name])
            alone, beside, cut = _measure(by_name[name], arguments)
            results.add(ALONE, name, alone)
            results.add(BESIDE, name, beside)
            cut_off[name].append(cut)
    return results, cut_off


def _measure(entrant: Entrant, arguments: argparse.Namespace) -> tuple[Sample, Sample, int]:
    """The room alone, the room beside the stalled, and how many of those the server has cut off."""
    events = round(PER_SECOND * arguments.seconds)
    with stage(entrant) as running:
        running.load.open(arguments.clients)
        running.paced(PER_SECOND, PER_SECOND)  # a warm-up
        alone = summed_up([running.paced(PER_SECOND, events)])
        running.load.open(arguments.stalled)
        running.load.stall(arguments.stalled)
        with _highest_memory(running.server.pid) as risen:
            beside = summed_up([running.paced(PER_SECOND, events)])
        left = int(running.server.ask("connections")["open"])
        held = dataclasses.replace(beside, memory_kib=max(risen[0], 1) / arguments.stalled)
        return alone, held, arguments.clients + arguments.stalled - left


@contextlib.contextmanager
def _highest_memory(pid: int) -> Iterator[list[int]]:
    """By how many KiB a process's memory is above what it was, at the highest so far."""
    before, risen, over = resident_kib(pid), [0], threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            risen[0] = max(risen[0], resident_kib(pid) - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield risen
    finally:
        over.set()
        watcher.join()


def _rows(results: Results, cut_off: dict[str, list[int]]) -> list[list[str]]:
    return [_row(results, case, name, cut_off[name]) for name in cut_off for case in (ALONE, BESIDE)]


def _row(results: Results, case: str, name: str, cut: list[int]) -> list[str]:
    sample = results.median(case, name)
    latencies = [table.milliseconds(sample.p50_ms), table.milliseconds(sample.p99_ms)]
    memory, ended = "", ""
    if sample.memory_kib is not None:
        memory, ended = table.rate(sample.memory_kib), " ".join(map(str, cut))
    return [name, case, *latencies, f"{sample.server_us or 0:.2f}", memory, ended]


def _outcome(results: Results) -> Iterator[str]:
    pairs = zip(results.samples(BESIDE, OURS), results.samples(ALONE, OURS), strict=True)
    worse = median((beside.p99_ms or 0) / (alone.p99_ms or 1) for beside, alone in pairs)
    yield f"the others' p99 is {worse:.2f} of what it was; goal {verdict(worse, GOAL_P99, at_most=True)}"
    held = results.median(BESIDE, OURS).memory_kib or 0
    kept = "met" if held <= GOAL_KIB else "NOT MET"
    yield f"a client that never reads holds {held:,.0f} KiB at most; goal at most {GOAL_KIB:,.0f} KiB: {kept}"


if __name__ == "__main__":
    run(main)
