"""How many requests a second two workers answer to one's, and what the machine had left for them.

One server has one worker, the other two; both have a database of their own on one private Postgres, get the same load
over keep-alive connections, and take turns in short measurements. A machine with few cores cannot show all that a
second worker is worth, since Postgres and the load need what it would take: so what they took is told, and what the
costs of a request let one expect where cores are free (twice that at one worker to that at two). `healthz` needs no
Postgres.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import table
from bench.command_line import interleaved, parser, positive, progress, run, write_json
from bench.http import ENDPOINTS
from bench.http_load import Target, measure, request
from bench.load import Load, Sample, summed_up
from bench.machine import Machine
from bench.private_postgres import PrivatePostgres, private_postgres
from bench.rounds import Results, verdict
from bench.servers.minutebook import World, started
from bench.servers.process import core_seconds
from bench.worker import Worker, measure_together, workers

ONE, TWO = "one worker", "two workers"
COUNTS = {TWO: 2, ONE: 1}
GOAL = 1.6
HEADER = (
    "",
    "",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "server's core, us a request",
    "load's core",
    "two to one (extremes)",
)
HEALTH = "healthz"


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.workers", str(__doc__), rounds=3, seconds=3.0)
    options.add_argument("--connections", type=positive, default=64, help="keep-alive connections (64)")
    arguments = options.parse_args()
    load = Load(arguments.connections, arguments.warm_up, arguments.seconds)
    with private_postgres(arguments.folder) as postgres:
        machine = Machine.of(postgres)
        print(machine.headline())
        print(
            f"{arguments.rounds} rounds, {arguments.seconds:g} s a measurement; "
            f"workers, Postgres and load share these {machine.cores} cores\n"
        )
        results = _race(postgres, arguments.folder, load, arguments.rounds)
    print(table.table(HEADER, _rows(results)))
    for case in results.cases():
        print(_outcome(results, case))
    write_json(arguments.json, arguments, machine, results)


@dataclass(frozen=True)
class _Entrant:
    """A server with one worker or two: its processes that serve, its port and the tokens of its accounts."""

    serving: tuple[int, ...]
    port: int
    tokens: tuple[str, ...]

    def target(self, endpoint: str) -> Target:
        if endpoint == HEALTH:
            return Target(self.port, (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",))
        path, rest = f"/api/v3/{endpoint}/", ENDPOINTS[endpoint]
        return Target(self.port, tuple(request(path, {"token": token, **rest}) for token in self.tokens))

    def core(self) -> float:
        return sum(core_seconds(pid) or 0.0 for pid in self.serving)


def _race(postgres: PrivatePostgres, folder: Path | None, load: Load, rounds: int) -> Results:
    results = Results()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minutebook-bench-", dir=folder)))
        entrants = {}
        for name, count in COUNTS.items():
            progress(f"starting {name}")
            entrants[name] = stack.enter_context(_serving(postgres.make_database(f"workers_{count}"), place, count))
        [client] = stack.enter_context(workers(measure))
        for number in range(rounds):
            for endpoint in (HEALTH, *ENDPOINTS):
                for name in interleaved(list(entrants), number):
                    progress(f"round {number + 1} of {rounds}: {endpoint}, {name}")
                    postgres.settle()
                    results.add(endpoint, name, _measure(client, entrants[name], endpoint, load))
    return results


@contextlib.contextmanager
def _serving(conninfo: str, place: Path, count: int) -> Iterator[_Entrant]:
    folder = place / str(count)
    folder.mkdir()
    with started(folder, {"--database-url": conninfo, "--workers": str(count)}) as (pid, port):
        # Made by all of them, so that they serve by now.
        tokens = World(port).make()
        yield _Entrant(_children(pid) if count > 1 else (pid,), port, tokens)


def _children(pid: int) -> tuple[int, ...]:
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _measure(client: Worker[Target], entrant: _Entrant, endpoint: str, load: Load) -> Sample:
    before = entrant.core()
    [measured] = measure_together([client], entrant.target(endpoint), load)
    taken = entrant.core() - before
    return dataclasses.replace(summed_up([measured]), server_us=taken / measured.calls * 1_000_000)


def _rows(results: Results) -> list[list[str]]:
    return [_row(results, case, name) for case in results.cases() for name in results.contestants(case)]


def _row(results: Results, case: str, name: str) -> list[str]:
    sample, ratio = results.median(case, name), results.ratio(case, name)
    latencies = [table.milliseconds(sample.p50_ms), table.milliseconds(sample.p99_ms)]
    figures = [table.rate(sample.rate), *latencies, f"{sample.server_us or 0:.0f}", f"{sample.cpu or 0:.0%}"]
    return [case, name, *figures, table.ratio(ratio)]


def _outcome(results: Results, case: str) -> str:
    """How two stand to one, and what they took."""
    two, ratio = results.median(case, TWO), results.ratio(case, ONE)
    if ratio is None:
        return f"{case}: nothing to compare"
    took = f"the two took {_cores(two):.2f} of a core and the load {two.cpu or 0:.2f}"
    expected = 2 * (results.median(case, ONE).server_us or 0) / (two.server_us or 1)
    return f"{case}: {ratio.median:.2f}, {took}; by their costs {expected:.2f}; goal {verdict(ratio.median, GOAL)}"


def _cores(sample: Sample) -> float:
    return sample.rate * (sample.server_us or 0) / 1_000_000


if __name__ == "__main__":
    run(main)
