"""How many requests a second the server answers, end to end, beside FastAPI, Starlette, aiohttp and Node.

64 keep-alive connections each send a request, wait for its answer and send it again; every answer must be a 200.
A message is answered after its commit. The peers do one INSERT and commit a request through a pool of 10
connections, with asyncpg (FastAPI with psycopg, too) or with Node's pg; tokens, channels and members they keep in
memory, so no request costs them more than one statement. "alone" is a small endpoint without a database. In "mixed"
one connection in ten sends messages into the channel whose last messages the others read; what either kind got has
rows of its own, since a server may answer more of one kind by answering less of the other. All servers run beside
each other on one private Postgres and take turns in short measurements.

In our favour: a connection's requests all have the same head, and ours remembers heads. Ours also answers lists that
nothing has changed from memory, and all who wait share one look at whether that is so, where the peers ask for the rows
each time; only in "mixed" does a list change. And ours lets Python's collector of garbage run less often than it does
by default, as it runs in the peers.
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

from bench import npm, table
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
from bench.machine import Machine, python_packages
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
    minutebook,
    on_asyncpg,
    on_node,
    on_psycopg,
)
from bench.servers.answers import check_answers
from bench.servers.process import core_seconds
from bench.worker import Worker, measure_each, workers

ALONE, MIXED = "alone", "mixed"
READS, MESSAGES = "mixed, its reads", "mixed, its messages"
# What each endpoint is sent beside the token.
ENDPOINTS: dict[str, dict[str, object]] = {
    "sendmessage": {"message": TEXT, "channel": CHATTED},
    "getchannels": {},
    "readmessagesfromchannel": {"name": ARCHIVE, "count": READ},
}
CASES = (ALONE, *ENDPOINTS, MIXED)
_PEERS = (on_asyncpg.FASTAPI, on_asyncpg.STARLETTE, on_asyncpg.AIOHTTP)
# One case shows what another driver or parser does, and the run stays short.
_MORE = {"sendmessage": (on_psycopg.SERVER,), "getchannels": (minutebook.BY_TORNADO,)}
# Of so many connections of "mixed" one sends messages.
_ONE_SENDS_IN = 10
# How many times as many requests a second ours is to answer as each of these.
GOALS = {
    ALONE: {alone.AIOHTTP.name: 1.0, alone.STARLETTE.name: 1.0},
    "sendmessage": {on_asyncpg.FASTAPI.name: 6.0},
    "getchannels": {on_asyncpg.FASTAPI.name: 4.0},
    "readmessagesfromchannel": {on_asyncpg.FASTAPI.name: 4.0},
    MIXED: {on_asyncpg.FASTAPI.name: 4.0},
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
    options.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="what is measured (everything)")
    arguments = options.parse_args()
    contestants = _contestants(arguments.cases)
    with private_postgres(arguments.folder) as postgres:
        machine = Machine.of(postgres, {**python_packages(), **on_node.versions()})
        print(machine.headline())
        print(
            f"{arguments.rounds} rounds, {arguments.seconds:g} s a measurement; "
            f"server, Postgres and client share these {machine.cores} cores\n"
        )
        results = _race(postgres, contestants, arguments)
    print(table.table(HEADER, _rows(results)))
    for case in results.cases():
        for peer, goal in GOALS.get(case, {}).items():
            print(_outcome(results, case, peer, goal))
    write_json(arguments.json, arguments, machine, results)


@dataclass(frozen=True)
class _Entrant:
    """A contestant that takes requests."""

    contestant: Contestant
    server: Running
    database: str

    def target(self, endpoint: str, **other: object) -> Target:
        """An endpoint with its usual body, or with another one in part."""
        path, rest = f"/api/v3/{endpoint}/", {**ENDPOINTS[endpoint], **other}
        return Target(self.server.port, tuple(request(path, {"token": token, **rest}) for token in self.server.tokens))

    def messages(self) -> int:
        with psycopg.connect(self.database) as connection:
            row = connection.execute(self.contestant.messages.encode()).fetchone()
            return int(row[0]) if row else 0


_Contestants = Mapping[str, Sequence[Contestant]]
"""Who takes part in each case."""
_Clients = Sequence[Worker[Target]]
"""Two processes of load, the second for what "mixed" sends beside its reads."""


def _contestants(cases: Sequence[str]) -> _Contestants:
    in_python = {case: (minutebook.SERVER, *_PEERS, *_MORE.get(case, ())) for case in CASES} | {ALONE: alone.PYTHON}
    present = set(taking_part({each: None for case in cases for each in in_python[case]}))
    with_postgres = on_node.prepared()
    on_nodes = dict.fromkeys(CASES, with_postgres) | {ALONE: [alone.NODE] if npm.node() else []}
    return {case: [each for each in in_python[case] if each in present] + on_nodes[case] for case in cases}


def _race(postgres: PrivatePostgres, contestants: _Contestants, arguments: argparse.Namespace) -> Results:
    results = Results()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="minutebook-bench-", dir=arguments.folder))
        entrants = _started(stack, postgres, Path(folder), contestants)
        clients = stack.enter_context(workers(measure, 2))
        load = Load(arguments.connections, arguments.warm_up, arguments.seconds)
        for number in range(arguments.rounds):
            for case, taking in contestants.items():
                for contestant in interleaved(taking, number):
                    progress(f"round {number + 1} of {arguments.rounds}: {case}, {contestant.name}")
                    postgres.settle()
                    for name, sample in _measure(clients, entrants[contestant], case, load).items():
                        results.add(name, contestant.name, sample)
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
        if contestant.messages != alone.NOTHING_KEPT:
            check_answers(server)
    return entrants


def _measure(clients: _Clients, entrant: _Entrant, case: str, load: Load) -> dict[str, Sample]:
    """One measurement; messages that were acknowledged and are not there, once each, end the benchmark."""
    before, core_before = entrant.messages(), core_seconds(entrant.server.pid)
    measured = measure_each(list(zip(clients, *_parts(entrant, case, load), strict=False)))
    core_after, kept = core_seconds(entrant.server.pid), entrant.messages() - before
    sent = {"sendmessage": measured[0].calls, MIXED: measured[-1].calls}.get(case, 0)
    if kept != sent:
        raise RuntimeError(f"{entrant.contestant.name} acknowledged {sent} messages and has kept {kept}")
    sample, calls = summed_up(measured), sum(part.calls for part in measured)
    if core_before is not None and core_after is not None:
        sample = dataclasses.replace(sample, server_us=(core_after - core_before) / calls * 1_000_000)
    if case != MIXED:
        return {case: sample}
    reads, messages = measured
    return {case: sample, READS: summed_up([reads]), MESSAGES: summed_up([messages])}


def _parts(entrant: _Entrant, case: str, load: Load) -> tuple[Sequence[Target], Sequence[Load]]:
    """What is sent at the same time, each under its own load."""
    if case != MIXED:
        return [entrant.target("sendmessage" if case == ALONE else case)], [load]
    senders = -(-load.callers // _ONE_SENDS_IN)
    reads, messages = entrant.target("readmessagesfromchannel"), entrant.target("sendmessage", channel=ARCHIVE)
    callers = load.callers - senders, senders
    return [reads, messages], [dataclasses.replace(load, callers=each) for each in callers]


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
