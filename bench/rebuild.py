"""How many events a second the read models are rebuilt from, indexes included.

A log of a million events (accounts, channels, members, messages, direct messages, deletions; true hashes) is written
into a private Postgres. Then they take turns: our rebuild of all read models with its swap, and that of messages
alone; a fold in Python over a server-side cursor that makes messages alone; and the `eventsourcing` library over
smaller logs of messages, whose rates stand for larger ones. Nobody else uses the database meanwhile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from bench import table
from bench.command_line import (
    interleaved,
    parser,
    positive,
    progress,
    run,
    taking_part,
    write_json,
)
from bench.history import History, write_history
from bench.load import Sample
from bench.machine import Machine
from bench.private_postgres import PrivatePostgres, private_postgres
from bench.rebuilders import Rebuilder, eventsourcing_library, minutebook, python_fold
from bench.rounds import OURS, Results

REBUILDERS = (
    minutebook.REBUILDER,
    minutebook.MESSAGES,
    python_fold.REBUILDER,
    eventsourcing_library.READING,
    eventsourcing_library.RUNNER,
)
GOALS = {OURS: 200_000, minutebook.MESSAGES.name: 300_000}  # events a second
_CASE = "rebuild"
HEADER = ("", "events", "events/s", "seconds", "ours to this one (extremes)")


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.rebuild", str(__doc__), rounds=3)
    options.add_argument("--events", type=positive, default=1_000_000, help="size of the log (1,000,000)")
    arguments = options.parse_args()
    contestants = taking_part(REBUILDERS)
    with private_postgres(arguments.folder) as postgres:
        machine = Machine.of(postgres)
        print(machine.headline())
        race = _Race(postgres, contestants, arguments)
        print(f"{arguments.rounds} rounds over a log of {race.history.events:,} events, {_seen(race.history)}\n")
        race.run()
    print(table.table(HEADER, race.rows()))
    for name, goal in GOALS.items():
        reached = race.results.median(_CASE, name).rate
        print(f"{name}: goal of {goal:,} events/s: {'met' if reached >= goal else 'NOT MET'}")
    write_json(arguments.json, arguments, machine, race.results)


def _seen(history: History) -> str:
    return f"of which {history.messages:,} messages and {history.dms:,} direct messages are still to be seen"


class _Race:
    """The log, and the rounds over it."""

    def __init__(
        self, postgres: PrivatePostgres, contestants: Sequence[Rebuilder], arguments: argparse.Namespace
    ) -> None:
        self.results = Results()
        self._postgres = postgres
        self._contestants = {rebuilder.name: rebuilder for rebuilder in contestants}
        self._arguments = arguments
        self._events: dict[str, int] = {}
        self._database = postgres.make_database("log")
        self.history = self._write()

    def _write(self) -> History:
        def tell(position: int) -> None:
            if position % 250_000 == 0:
                progress(f"{position:,} events are written")

        began = time.perf_counter()
        history = write_history(self._database, self._arguments.events, tell)
        progress(f"the log was written in {time.perf_counter() - began:.1f} s")
        return history

    def run(self) -> None:
        """Runs all rounds."""
        for number in range(self._arguments.rounds):
            for name in interleaved(list(self._contestants), number):
                progress(f"round {number + 1} of {self._arguments.rounds}: {name}")
                self.results.add(_CASE, name, self._measure(self._contestants[name]))

    def _measure(self, rebuilder: Rebuilder) -> Sample:
        rebuilder.prepare(self._database)
        self._postgres.settle()
        began, cpu_before = time.perf_counter(), time.process_time()
        count = rebuilder.rebuild(self._database)
        taken, cpu = time.perf_counter() - began, time.process_time() - cpu_before
        rebuilder.check(self._database, self.history)
        self._events[rebuilder.name] = count
        return Sample(rate=count / taken, cpu=cpu / taken)

    def rows(self) -> list[list[str]]:
        """A row for each contestant."""
        return [self._row(name, self.results.median(_CASE, name).rate) for name in self.results.contestants(_CASE)]

    def _row(self, name: str, rate: float) -> list[str]:
        count = self._events[name]
        ratio = table.ratio(self.results.ratio(_CASE, name))
        return [name, f"{count:,}", table.rate(rate), f"{count / rate:.2f}", ratio]


if __name__ == "__main__":
    run(main)
