"""What a replay costs those who write meanwhile: requests a second, latencies, and how long the swap holds them up.

A server on a log of many events takes messages from 64 keep-alive connections, each of which sends the next one when
the last is answered: at first undisturbed, then while all read models are replayed again and again. A request that
fails, or a message that was acknowledged and is not there, ends the benchmark. At last the read models are compared
with the log. Server, Postgres, load and replay share this machine's cores.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg

import projections
from bench import table
from bench.command_line import parser, positive, progress, run, write_json
from bench.history import write_history
from bench.http_load import Target, measure, request
from bench.load import Load, Measured, summed_up
from bench.machine import Machine
from bench.private_postgres import private_postgres
from bench.rounds import Results
from bench.servers import CHATTED, TEXT, Running, minutebook
from bench.worker import Worker, measure_together, workers
from eventstore.rebuild import Rebuilt, check, rebuild

CASE = "sendmessage"
UNDISTURBED, DURING = "undisturbed", "during replays"
GOAL_MS = 200  # that the swap may hold appends up
HEADER = ("", "requests/s", "p50 ms", "p99 ms", "longest ms")
REPLAYS = ("replay", "events", "events/s", "appends waited ms", "attempts")


@dataclass(frozen=True)
class Replay:
    """A replay, and how long it took, in seconds."""

    done: Rebuilt
    seconds: float


class ModelsDiffer(Exception):
    """After the replays the read models are not what the log says, or lack an acknowledged message."""


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.replay_under_load", str(__doc__), rounds=3, seconds=10.0)
    options.add_argument("--events", type=positive, default=300_000, help="size of the log at first (300,000)")
    options.add_argument("--connections", type=positive, default=64, help="keep-alive connections (64)")
    arguments = options.parse_args()
    results, longest, replays = Results(), {UNDISTURBED: 0.0, DURING: 0.0}, list[Replay]()

    def add(name: str, measured: Measured) -> None:
        results.add(CASE, name, summed_up([measured]))
        longest[name] = max(longest[name], *measured.latencies)

    with private_postgres(arguments.folder) as postgres, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        machine = Machine.of(postgres)
        print(machine.headline())
        database = postgres.make_database("log")
        write_history(database, arguments.events, lambda _: None)
        alone = _replayed(database)
        with minutebook.SERVER.serve(database, Path(folder)) as server, workers(measure) as [client]:
            stage = _Stage(database, server, client, Load(arguments.connections, arguments.warm_up, arguments.seconds))
            for number in range(arguments.rounds):
                progress(f"round {number + 1} of {arguments.rounds}")
                add(UNDISTURBED, stage.measured())
                measured, more = stage.during_replays()
                add(DURING, measured)
                replays += more
        _compare(database)
    print(table.table(HEADER, [_row(name, results, longest[name]) for name in longest]))
    print(table.table(REPLAYS, [_replay("alone", alone), *(_replay("under load", each) for each in replays)]))
    print(_outcome(replays))
    write_json(arguments.json, arguments, machine, results)


@dataclass(frozen=True)
class _Stage:
    """What takes part."""

    database: str
    server: Running
    client: Worker[Target]
    load: Load

    def measured(self) -> Measured:
        """What is measured; all that was acknowledged must be there."""
        before = _messages(self.database)
        measured = self._measured()
        kept = _messages(self.database) - before
        if kept != measured.calls:
            raise ModelsDiffer(f"{measured.calls} messages were acknowledged, and {kept} are there")
        return measured

    def during_replays(self) -> tuple[Measured, list[Replay]]:
        """What is measured while one replay follows the other."""
        with ThreadPoolExecutor(1) as thread:
            replays: list[Replay] = []
            measuring = thread.submit(self.measured)
            while not measuring.done():
                replays.append(_replayed(self.database))
            return measuring.result(), replays

    def _measured(self) -> Measured:
        body = {"message": TEXT, "channel": CHATTED}
        requests = tuple(request("/api/v3/sendmessage/", {"token": token, **body}) for token in self.server.tokens)
        [measured] = measure_together([self.client], Target(self.server.port, requests), self.load)
        return measured


def _replayed(database: str) -> Replay:
    began = time.perf_counter()
    done = rebuild(database, projections.ALL)
    return Replay(done, time.perf_counter() - began)


def _compare(database: str) -> None:
    for difference in check(database, projections.ALL):
        raise ModelsDiffer(f"the read models are not what the log says: {difference}")


def _messages(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM messages").fetchone()
        return int(row[0]) if row else 0


def _row(name: str, results: Results, longest: float) -> list[str]:
    sample = results.median(CASE, name)
    latencies = (sample.p50_ms, sample.p99_ms, longest * 1000)
    return [name, table.rate(sample.rate), *map(table.milliseconds, latencies)]


def _replay(name: str, replay: Replay) -> list[str]:
    done = replay.done
    rate = table.rate(done.position / replay.seconds)
    return [name, f"{done.position:,}", rate, table.milliseconds(done.blocked * 1000), str(done.attempts)]


def _outcome(replays: Sequence[Replay]) -> str:
    longest = max(replay.done.blocked for replay in replays) * 1000
    met = "met" if longest < GOAL_MS else "NOT MET"
    return f"no request failed; a swap held appends up for {longest:.0f} ms at most; goal below {GOAL_MS} ms: {met}"


if __name__ == "__main__":
    run(main)
