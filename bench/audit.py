"""How many events a second the auditors' tools go through: verify, replay, export, import.

A log of a million events (accounts, channels, members, messages, direct messages, deletions; true hashes) is written
into a private Postgres, and a checkpoint of all of it is signed. Then they take turns, each with the log for itself,
and with them the `eventsourcing` library, whose recorder is read in bulk and its events decoded: the least that any
of these jobs would take on it. Its log is smaller; its rate stands for a larger one.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import projections
from bench import table
from bench.command_line import interleaved, parser, positive, progress, run, taking_part, write_json
from bench.history import write_history
from bench.load import Sample
from bench.machine import Machine
from bench.private_postgres import PrivatePostgres, private_postgres
from bench.rebuilders import Rebuilder, WrongResult, eventsourcing_library
from bench.rounds import OURS, Results, verdict
from eventstore.integrity.inspection import inspect
from eventstore.migrate import migrate
from eventstore.projection import Projection
from eventstore.rebuild import check, rebuild
from eventstore.transfer.checking import read_header
from eventstore.transfer.exporting import export_log
from eventstore.transfer.importing import import_log
from eventstore.transparency.checkpoints import Checkpointer
from eventstore.transparency.notes import SigningKey
from projections import messages

ORIGIN = "bench.example/log"
HEADER = ("", "events", "events/s (extremes)", "seconds", "to the library's reading (extremes)", "goal")
_FILE = "export.jsonl"


@dataclass(frozen=True)
class Site:
    """Where the jobs work: the Postgres, the log's database, and a folder for files."""

    postgres: PrivatePostgres
    database: str
    folder: Path


@dataclass(frozen=True)
class Job:
    """One of the tools: `work` is what is timed; what it returns is called afterwards, to check and to clean up."""

    name: str
    work: Callable[[Site], Callable[[], None]]
    goal: int | None = None  # events a second


def _fine() -> None:
    """Nothing to check or to clean up."""


def _verify(site: Site) -> Callable[[], None]:
    if found := list(inspect(site.database)):
        raise WrongResult(f"verify found {found[0]}")
    return _fine


def _replay(*rebuilt: Projection) -> Callable[[Site], Callable[[], None]]:
    def work(site: Site) -> Callable[[], None]:
        rebuild(site.database, rebuilt)
        return _fine

    return work


def _check(site: Site) -> Callable[[], None]:
    if found := list(check(site.database, projections.ALL)):
        raise WrongResult(f"replay --check found {found[0]}")
    return _fine


def _export(site: Site) -> Callable[[], None]:
    with (site.folder / _FILE).open("wb") as file:
        export_log(site.database, file.write, origin=ORIGIN)
    return _fine


def _import(site: Site) -> Callable[[], None]:
    conninfo = site.postgres.make_database("imported")
    migrate(conninfo, [projections.MIGRATIONS])
    with (site.folder / _FILE).open("rb") as file:
        import_log(conninfo, read_header(file.readline()), file, projections.ALL)

    def drop() -> None:
        with psycopg.connect(site.postgres.conninfo, autocommit=True) as connection:
            name = str(conninfo_to_dict(conninfo)["dbname"])
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    return drop


# In this order at first: what replay makes is checked, what export writes is imported.
JOBS = (
    Job("verify", _verify, 300_000),
    Job("replay", _replay(*projections.ALL)),
    Job("replay messages", _replay(messages.projection), 300_000),
    Job("replay --check", _check),
    Job("export", _export),
    Job("import", _import),
)
LIBRARY = eventsourcing_library.RECORDER


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.audit", str(__doc__), rounds=3)
    options.add_argument("--events", type=positive, default=1_000_000, help="size of the log (1,000,000)")
    arguments = options.parse_args()
    peers = taking_part([LIBRARY])
    with private_postgres(arguments.folder) as postgres, TemporaryDirectory(dir=arguments.folder) as folder:
        machine = Machine.of(postgres)
        print(machine.headline())
        trial = _Trial(Site(postgres, postgres.make_database("log"), Path(folder)), peers, arguments)
        print(f"{arguments.rounds} rounds over a log of {arguments.events:,} events\n")
        trial.run()
    print(table.table(HEADER, [trial.row(job) for job in JOBS] + [trial.library_row() for _ in peers]))
    write_json(arguments.json, arguments, machine, trial.results)


class _Trial:
    """The log, and the rounds over it."""

    def __init__(self, site: Site, peers: list[Rebuilder], arguments: argparse.Namespace) -> None:
        self.results = Results()
        self._site = site
        self._peers = peers
        self._rounds = int(arguments.rounds)
        self._events = int(arguments.events)
        self.history = write_history(site.database, self._events, _tell)
        # The read models stand as they would in a log that was written by appends.
        rebuild(site.database, projections.ALL)
        asyncio.run(Checkpointer(site.database, SigningKey.generate(ORIGIN), 1).sign_now())
        _export(site)

    def run(self) -> None:
        """Runs all rounds."""
        jobs = {job.name: job for job in JOBS}
        for number in range(self._rounds):
            for name in interleaved(list(jobs), number):
                progress(f"round {number + 1} of {self._rounds}: {name}")
                self.results.add(name, OURS, self._ours(jobs[name]))
            for peer in self._peers:
                progress(f"round {number + 1} of {self._rounds}: {peer.name}")
                reading = self._theirs(peer)
                for name in jobs:
                    self.results.add(name, peer.name, reading)

    def _ours(self, job: Job) -> Sample:
        self._site.postgres.settle()
        began, cpu_before = time.perf_counter(), time.process_time()
        finish = job.work(self._site)
        taken, cpu = time.perf_counter() - began, time.process_time() - cpu_before
        finish()
        return Sample(rate=self._events / taken, cpu=cpu / taken)

    def _theirs(self, peer: Rebuilder) -> Sample:
        peer.prepare(self._site.database)
        self._site.postgres.settle()
        began, cpu_before = time.perf_counter(), time.process_time()
        count = peer.rebuild(self._site.database)
        taken, cpu = time.perf_counter() - began, time.process_time() - cpu_before
        peer.check(self._site.database, self.history)
        return Sample(rate=count / taken, cpu=cpu / taken)

    def row(self, job: Job) -> list[str]:
        """What a job came to."""
        reached = self.results.median(job.name, OURS).rate
        ratio = table.ratio(self.results.ratio(job.name, LIBRARY.name) if self._peers else None)
        goal = "" if job.goal is None else f"{job.goal:,}/s: {verdict(reached / job.goal, 1)}"
        return [
            job.name,
            f"{self._events:,}",
            self._rates(job.name, OURS),
            f"{self._events / reached:.2f}",
            ratio,
            goal,
        ]

    def library_row(self) -> list[str]:
        """What the library's reading came to."""
        count = eventsourcing_library.READ
        reached = self.results.median(JOBS[0].name, LIBRARY.name).rate
        return [LIBRARY.name, f"{count:,}", self._rates(JOBS[0].name, LIBRARY.name), f"{count / reached:.2f}", "", ""]

    def _rates(self, case: str, contestant: str) -> str:
        rates = [sample.rate for sample in self.results.samples(case, contestant)]
        middle = self.results.median(case, contestant).rate
        return f"{table.rate(middle)} ({table.rate(min(rates))}-{table.rate(max(rates))})"


def _tell(position: int) -> None:
    if position % 250_000 == 0:
        progress(f"{position:,} events are written")


if __name__ == "__main__":
    run(main)
