"""How many requests a second two workers answer to one's, and what the machine had left for them.

One server has one worker, the other two; both have a database of their own on one private Postgres, get the same load
over keep-alive connections, and take turns in short measurements. A machine with few cores cannot show all that a
second worker is worth, since Postgres and the load need what it would take: so what they took is told, how much of all
cores was idle, and what the costs of a request let one expect where cores are free (twice that at one worker to that
at two). `healthz` needs no Postgres.

With --share each worker gets no more than that share of a core, by control groups (Linux, as root), and Postgres and
the load get what they ask for. So cores are left for the second worker, and the ratio says what it is worth where they
are: a share is small enough if the idle column stays well above zero at two workers. Every worker is slow by the same
measure, and Postgres and the disk seem faster to it than they are; so the ratio says nothing of what they, or the order
of the log, do to more messages a second than were sent here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import table
from bench.command_line import interleaved, parser, positive, progress, run, write_json
from bench.core_share import LEAST, CoreTimes, ShareUnavailable, check_available, limited
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
    "idle",
    "two to one (extremes)",
)
HEALTH = "healthz"


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.workers", str(__doc__), rounds=3, seconds=3.0)
    options.add_argument("--connections", type=positive, default=64, help="keep-alive connections (64)")
    options.add_argument(
        "--share",
        type=fraction,
        help=f"the share of a core that each worker may take, from {LEAST:g} to 1 (any)",
    )
    arguments = options.parse_args()
    load = Load(arguments.connections, arguments.warm_up, arguments.seconds)
    if arguments.share:
        check_available(arguments.share)
    with private_postgres(arguments.folder) as postgres:
        machine = Machine.of(postgres)
        print(machine.headline())
        print(
            f"{arguments.rounds} rounds, {arguments.seconds:g} s a measurement; "
            f"workers, Postgres and load share these {machine.cores} cores"
        )
        if arguments.share:
            print(f"each worker takes no more than {arguments.share:g} of a core")
        print()
        results = _race(postgres, load, arguments)
    print(table.table(HEADER, _rows(results)))
    for case in results.cases():
        print(_outcome(results, case, arguments.share))
    write_json(arguments.json, arguments, machine, results)


def fraction(text: str) -> float:
    """A share of a core that can be given."""
    value = float(text)
    if not LEAST <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from {LEAST:g} to 1")
    return value


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


def _race(postgres: PrivatePostgres, load: Load, arguments: argparse.Namespace) -> Results:
    results, rounds = Results(), arguments.rounds
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="minutebook-bench-", dir=arguments.folder)
        place = Path(stack.enter_context(folder))
        entrants = {}
        for name, count in COUNTS.items():
            progress(f"starting {name}")
            entrants[name] = stack.enter_context(_serving(postgres.make_database(f"workers_{count}"), place, count))
        if arguments.share:
            for pid in (pid for entrant in entrants.values() for pid in entrant.serving):
                stack.enter_context(limited(pid, arguments.share))
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
    before, times = entrant.core(), CoreTimes.now()
    [measured] = measure_together([client], entrant.target(endpoint), load)
    taken, idle = entrant.core() - before, times.idle_until(CoreTimes.now())
    return dataclasses.replace(summed_up([measured]), server_us=taken / measured.calls * 1_000_000, idle=idle)


def _rows(results: Results) -> list[list[str]]:
    return [_row(results, case, name) for case in results.cases() for name in results.contestants(case)]


def _row(results: Results, case: str, name: str) -> list[str]:
    sample, ratio = results.median(case, name), results.ratio(case, name)
    latencies = [table.milliseconds(sample.p50_ms), table.milliseconds(sample.p99_ms)]
    shares = [f"{sample.cpu or 0:.0%}", f"{sample.idle or 0:.0%}"]
    figures = [table.rate(sample.rate), *latencies, f"{sample.server_us or 0:.0f}", *shares]
    return [case, name, *figures, table.ratio(ratio)]


def _outcome(results: Results, case: str, share: float | None) -> str:
    """How two stand to one, what they took and what was free."""
    two, ratio = results.median(case, TWO), results.ratio(case, ONE)
    if ratio is None:
        return f"{case}: nothing to compare"
    allowed = f" of {2 * share:g}" if share else ""
    left = f"the load {two.cpu or 0:.2f}, {two.idle or 0:.0%} of all cores was idle"
    took = f"the two took {_cores(two):.2f}{allowed} cores, {left}"
    expected = 2 * (results.median(case, ONE).server_us or 0) / (two.server_us or 1)
    return f"{case}: {ratio.median:.2f}, {took}; by their costs {expected:.2f}; goal {verdict(ratio.median, GOAL)}"


def _cores(sample: Sample) -> float:
    return sample.rate * (sample.server_us or 0) / 1_000_000


if __name__ == "__main__":
    try:
        run(main)
    except ShareUnavailable as error:
        sys.exit(f"--share cannot be had: {error}")
