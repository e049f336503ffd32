"""How many events a second the log takes, each acknowledged after its commit, beside its peers.

Every caller waits for its answer before it appends again, in one process of one core's Python, at 1, 16 and 64
callers; then our log once more with as many callers in one process and in two. All stores are databases of one
private Postgres, durable in the same way, and take turns in short measurements.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence

from bench import table
from bench.appenders import Appender, eventsourcing_library, message_db, minutebook, plain_insert
from bench.command_line import (
    interleaved,
    parser,
    positive,
    progress,
    run,
    taking_part,
    write_json,
)
from bench.load import Load, Sample, summed_up
from bench.machine import Machine
from bench.private_postgres import PrivatePostgres, private_postgres
from bench.rounds import OURS, Results, verdict
from bench.worker import Worker, measure_together, workers

APPENDERS = (
    minutebook.APPENDER,
    plain_insert.BY_DEFAULT,
    plain_insert.AUTOCOMMIT,
    message_db.APPENDER,
    eventsourcing_library.APPENDER,
)

# (callers, peer): how many times the peer's rate ours is to be.
GOALS = {
    (1, plain_insert.BY_DEFAULT.name): 1.0,
    (64, plain_insert.BY_DEFAULT.name): 6.0,
    (64, message_db.APPENDER.name): 15.0,
    (64, eventsourcing_library.APPENDER.name): 40.0,
}
ONE, TWO = f"{OURS}, one process", f"{OURS}, two processes"
GOAL_OF_TWO = 1.0

HEADER = ("callers", "", "events/s", "p50 ms", "p99 ms", "ours to this one (extremes)", "goal")


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.append", str(__doc__), rounds=3, seconds=2.0)
    options.add_argument("--callers", type=positive, nargs="+", default=[1, 16, 64], help="callers at once (1 16 64)")
    arguments = options.parse_args()
    contestants = taking_part(APPENDERS)
    with private_postgres(arguments.folder) as postgres:
        machine = Machine.of(postgres)
        print(machine.headline())
        print(
            f"{arguments.rounds} rounds, {arguments.seconds:g} s a measurement, client and Postgres on the same cores\n"
        )
        results = _Race(postgres, contestants, arguments).results()
    print(table.table(HEADER, [*_rows(results, arguments.callers), *_rows_of_two(results, arguments.callers)]))
    write_json(arguments.json, arguments, machine, results)


class _Race:
    """Everybody's databases and workers, and the rounds."""

    def __init__(
        self, postgres: PrivatePostgres, contestants: Sequence[Appender], arguments: argparse.Namespace
    ) -> None:
        self._postgres = postgres
        self._contestants = {appender.name: appender for appender in contestants}
        self._arguments = arguments
        self._databases: dict[str, str] = {}
        self._workers: dict[str, list[Worker[str]]] = {}
        self._results = Results()

    def results(self) -> Results:
        """Runs all rounds."""
        with contextlib.ExitStack() as stack:
            for i, (name, appender) in enumerate(self._contestants.items()):
                database = self._databases[name] = self._postgres.make_database(f"contestant_{i}")
                appender.prepare(database)
                count = 2 if name == OURS else 1
                self._workers[name] = stack.enter_context(workers(appender.measure, count))
            for number in range(self._arguments.rounds):
                self._round(number)
        return self._results

    def _round(self, number: int) -> None:
        for callers in self._arguments.callers:
            for name in interleaved(list(self._contestants), number):
                progress(f"round {number + 1} of {self._arguments.rounds}: {callers} callers, {name}")
                self._results.add(_case(callers), name, self._measure(name, callers, processes=1))
        callers = max(self._arguments.callers)
        for place in interleaved([TWO, ONE], number):
            progress(f"round {number + 1} of {self._arguments.rounds}: {callers} callers, {place}")
            sample = self._measure(OURS, callers, processes=2 if place == TWO else 1)
            self._results.add(_case_of_two(callers), place, sample)

    def _measure(self, name: str, callers: int, processes: int) -> Sample:
        database = self._databases[name]
        self._postgres.settle()
        load = Load(-(-callers // processes), self._arguments.warm_up, self._arguments.seconds)
        before = self._postgres.conflicts()
        sample = summed_up(measure_together(self._workers[name][:processes], database, load))
        return dataclasses.replace(sample, conflicts=self._postgres.conflicts() - before)


def _case(callers: int) -> str:
    return f"{callers} callers"


def _case_of_two(callers: int) -> str:
    return f"{callers} callers on one log"


def _rows(results: Results, all_callers: Sequence[int]) -> list[list[str]]:
    rows = []
    for callers in all_callers:
        case = _case(callers)
        for name in results.contestants(case):
            ratio = results.ratio(case, name)
            goal = GOALS.get((callers, name))
            told = verdict(ratio.median, goal) if ratio and goal else ""
            rows.append([str(callers), *_figures(name, results.median(case, name)), table.ratio(ratio), told])
    return rows


def _rows_of_two(results: Results, all_callers: Sequence[int]) -> list[list[str]]:
    callers = max(all_callers)
    case = _case_of_two(callers)
    one, two = results.median(case, ONE), results.median(case, TWO)
    ratio = results.ratio(case, ONE)
    told = verdict(ratio.median, GOAL_OF_TWO) if ratio else ""
    return [
        [str(callers), *_figures(TWO, two), "", f"{two.conflicts} conflicts"],
        [str(callers), *_figures(ONE, one), table.ratio(ratio), told],
    ]


def _figures(name: str, sample: Sample) -> list[str]:
    return [name, table.rate(sample.rate), table.milliseconds(sample.p50_ms), table.milliseconds(sample.p99_ms)]


if __name__ == "__main__":
    run(main)
