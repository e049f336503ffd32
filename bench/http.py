"""How many requests a second the server answers, end to end, by each of its parsers of HTTP, beside FastAPI on uvicorn.

64 keep-alive connections each send a request, wait for its answer and send it again; every answer must be a 200.
A message is answered after its commit. The peers do one INSERT and commit a request through a pool of 10
connections, with asyncpg and with psycopg; tokens, channels and members they keep in memory, so no request costs
them more than one statement. "alone" is a small endpoint without a database, beside what else answers HTTP. All servers
run beside each other on one private Postgres and take turns in short measurements.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

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
from bench.http_load import Target, measure, request
from bench.load import Load, Sample, summed_up
from bench.machine import Machine
from bench.private_postgres import PrivatePostgres, private_postgres
from bench.rounds import Results, verdict
from bench.servers import (
    ARCHIVE,
    CHATTED,
    READ,
    TEXT,
    Contestant,
    Running,
    alone,
    fastapi_asyncpg,
    fastapi_psycopg,
    minutebook,
)
from bench.servers.process import core_seconds
from bench.worker import Worker, measure_together, workers

SERVERS = (minutebook.SERVER, minutebook.BY_TORNADO, fastapi_asyncpg.SERVER, fastapi_psycopg.SERVER)

ALONE = "alone"
# What each endpoint is sent beside the token.
ENDPOINTS: dict[str, dict[str, object]] = {
    "sendmessage": {"message": TEXT, "channel": CHATTED},
    "getchannels": {},
    "readmessagesfromchannel": {"name": ARCHIVE, "count": READ},
}
# How many times as many requests a second ours is to answer as each of these.
GOALS = {
    ALONE: {alone.AIOHTTP.name: 1.0, alone.STARLETTE.name: 1.0},
    "sendmessage": {fastapi_asyncpg.SERVER.name: 6.0},
    "getchannels": {fastapi_asyncpg.SERVER.name: 4.0},
    "readmessagesfromchannel": {fastapi_asyncpg.SERVER.name: 4.0},
}
HEADER = (
    "",
    "",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "server's core, us a request",
    "client's core",
    "ours to this one (extremes)",
)


def main() -> None:
    """Runs the benchmark as the command line says."""
    options = parser("bench.http", str(__doc__), rounds=3, seconds=3.0)
    options.add_argument("--connections", type=positive, default=64, help="keep-alive connections (64)")
    arguments = options.parse_args()
    contestants = dict.fromkeys(ENDPOINTS, taking_part(SERVERS))
    contestants = {ALONE: taking_part(alone.SERVERS), **contestants}
    with private_postgres(arguments.folder) as postgres:
        machine = Machine.of(postgres)
        print(machine.headline())
        print(
            f"{arguments.rounds} rounds, {arguments.seconds:g} s a measurement; "
            f"server, Postgres and client share these {machine.cores} cores\n"
        )
        results = _race(postgres, contestants, arguments)
    print(table.table(HEADER, _rows(results)))
    for case in results.cases():
        for peer, goal in GOALS[case].items():
            print(_outcome(results, case, peer, goal))
    write_json(arguments.json, arguments, machine, results)


@dataclass(frozen=True)
class _Entrant:
    """A contestant that takes requests."""

    contestant: Contestant
    server: Running
    database: str

    def target(self, case: str) -> Target:
        endpoint = "sendmessage" if case == ALONE else case
        path, rest = f"/api/v3/{endpoint}/", ENDPOINTS[endpoint]
        return Target(self.server.port, tuple(request(path, {"token": token, **rest}) for token in self.server.tokens))

    def messages(self) -> int:
        with psycopg.connect(self.database) as connection:
            row = connection.execute(self.contestant.messages.encode()).fetchone()
            return int(row[0]) if row else 0


_Contestants = Mapping[str, Sequence[Contestant]]
"""Who takes part in each case."""


def _race(postgres: PrivatePostgres, contestants: _Contestants, arguments: argparse.Namespace) -> Results:
    results = Results()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="minutebook-bench-", dir=arguments.folder))
        entrants = _started(stack, postgres, Path(folder), contestants)
        [client] = stack.enter_context(workers(measure))
        load = Load(arguments.connections, arguments.warm_up, arguments.seconds)
        for number in range(arguments.rounds):
            for case, taking in contestants.items():
                for contestant in interleaved(taking, number):
                    progress(f"round {number + 1} of {arguments.rounds}: {case}, {contestant.name}")
                    postgres.settle()
                    results.add(case, contestant.name, _measure(client, entrants[contestant], case, load))
    return results


def _started(
    stack: contextlib.ExitStack, postgres: PrivatePostgres, folder: Path, contestants: _Contestants
) -> dict[Contestant, _Entrant]:
    entrants: dict[Contestant, _Entrant] = {}
    for i, contestant in enumerate(dict.fromkeys(each for taking in contestants.values() for each in taking)):
        progress(f"starting {contestant.name}")
        database, place = postgres.make_database(f"contestant_{i}"), folder / str(i)
        place.mkdir()
        server = stack.enter_context(contestant.serve(database, place))
        entrants[contestant] = _Entrant(contestant, server, database)
    return entrants


def _measure(client: Worker[Target], entrant: _Entrant, case: str, load: Load) -> Sample:
    """One measurement; messages that were acknowledged and are not there, once each, end the benchmark."""
    before, core_before = entrant.messages(), core_seconds(entrant.server.pid)
    [measured] = measure_together([client], entrant.target(case), load)
    core_after, kept = core_seconds(entrant.server.pid), entrant.messages() - before
    if case == "sendmessage" and kept != measured.calls:
        raise RuntimeError(f"{entrant.contestant.name} acknowledged {measured.calls} messages and has kept {kept}")
    sample = summed_up([measured])
    if core_before is None or core_after is None:
        return sample
    return dataclasses.replace(sample, server_us=(core_after - core_before) / measured.calls * 1_000_000)


def _rows(results: Results) -> list[list[str]]:
    return [
        _row(endpoint, name, results.median(endpoint, name), table.ratio(results.ratio(endpoint, name)))
        for endpoint in results.cases()
        for name in results.contestants(endpoint)
    ]


def _row(endpoint: str, name: str, sample: Sample, ratio: str) -> list[str]:
    latencies = [table.milliseconds(sample.p50_ms), table.milliseconds(sample.p99_ms)]
    server = "" if sample.server_us is None else f"{sample.server_us:.0f}"
    return [endpoint, name, table.rate(sample.rate), *latencies, server, f"{(sample.cpu or 0):.0%}", ratio]


def _outcome(results: Results, case: str, peer: str, goal: float) -> str:
    """How we stand to a peer."""
    ratio = results.ratio(case, peer)
    if ratio is None:
        return f"{case}: {peer} is not there to compare with"
    return f"{case}: {ratio.median:.2f} of {peer}; goal {verdict(ratio.median, goal)}"


if __name__ == "__main__":
    run(main)
