"""What 10,000 idle listeners cost one server: its memory and cores, and what is left of its REST latency.

The server runs as its users start it, with its embedded Postgres. Every connection is registered by the token of one
of 64 accounts, and answers its heartbeats for as long as the benchmark lasts; meanwhile a client asks for its channels
20 times a second. Before that the same client asks a server without connections.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import table
from bench.command_line import duration, folder, new_file, positive, progress, run
from bench.load import percentile
from bench.machine import Machine
from bench.probe import Api, ticks
from bench.rooms.program import core_time, resident_kib
from bench.rooms.websocket_load import WebsocketLoad, websocket_load
from bench.servers.minutebook import World, started
from bench.servers.process import ServerFailed, core_seconds

PER_SECOND = 20
BEFORE_SECONDS = 10.0
HEADER = ("", "REST p50 ms", "REST p99 ms", "server's core", "Postgres's cores", "heartbeats/s")


@dataclass(frozen=True)
class Spell:
    """A stretch of time: latencies of the requests in it, and what it took of the cores, as shares of one."""

    p50_ms: float
    p99_ms: float
    server: float
    postgres: float
    heartbeats: float  # a second


def main() -> None:
    """Runs the benchmark as the command line says."""
    arguments = _arguments()
    _raise_descriptor_limit(arguments.connections)
    machine = Machine.of(None)
    print(machine.headline(), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="minutebook-bench-", dir=arguments.folder) as place:
        figures = _measure(Path(place), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": asdict(machine), **figures}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m bench.idle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--connections", type=positive, default=10_000, help="registered connections (10000)")
    options.add_argument("--seconds", type=duration, default=300.0, help="how long they are held (300)")
    options.add_argument("--folder", type=folder, help="where to put the server's data (a temporary folder)")
    options.add_argument("--json", type=new_file, metavar="FILE", help="write all figures to this file too")
    return options.parse_args()


def _raise_descriptor_limit(connections: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < connections + 200:
        raise ServerFailed(f"the system lets a process have {most} files: take fewer --connections")


def _measure(place: Path, arguments: argparse.Namespace) -> dict[str, object]:
    with contextlib.ExitStack() as stack:
        progress("starting the server")
        pid, port = stack.enter_context(started(place, {"--login-limit": "0"}))
        tokens = World(port).make()
        api = stack.enter_context(contextlib.closing(Api(port)))
        load = stack.enter_context(websocket_load(port))
        before = _spell(pid, place, api, tokens[0], load, BEFORE_SECONDS)
        memory_before = resident_kib(pid)
        progress(f"opening {arguments.connections:,} connections")
        for token in tokens:
            load.authenticate(json.dumps({"token": token}))
        opened = load.open(arguments.connections)
        _check_online(api, len(tokens))
        progress(f"holding them for {arguments.seconds:.0f} s")
        during = _spell(pid, place, api, tokens[0], load, arguments.seconds)
        held = (resident_kib(pid) - memory_before) / arguments.connections
        status = load.status()
        _check_online(api, len(tokens))
    name = f"{arguments.connections:,} connections"
    print(table.table(HEADER, [_row("no connections", before), _row(name, during)]))
    print(f"\nregistered: {table.rate(opened.count / opened.seconds)} connections a second")
    print(f"memory: {held:.1f} KiB a connection (of the server's process)")
    print(
        f"lost in {arguments.seconds:.0f} s: {status['closed']}; goal 0: {'met' if not status['closed'] else 'NOT MET'}"
    )
    return {
        "before": asdict(before),
        "during": asdict(during),
        "opened_per_second": opened.count / opened.seconds,
        "kib_a_connection": held,
        "lost": status["closed"],
    }


def _spell(pid: int, place: Path, api: Api, token: str, load: WebsocketLoad, seconds: float) -> Spell:
    began, core, postgres = time.monotonic(), core_time(pid), _cores(place)
    pings = load.status()["pings"]
    latencies = []
    for moment in ticks(PER_SECOND, seconds):
        api.post("getchannels", {"token": token})
        latencies.append(time.monotonic() - moment)
    elapsed = time.monotonic() - began
    latencies.sort()
    return Spell(
        p50_ms=percentile(latencies, 50) * 1000,
        p99_ms=percentile(latencies, 99) * 1000,
        server=(core_time(pid) - core) / elapsed,
        postgres=(_cores(place) - postgres) / elapsed,
        heartbeats=(load.status()["pings"] - pings) / elapsed,
    )


def _check_online(api: Api, accounts: int) -> None:
    """The server must know every account to be online, and its bot."""
    online = api.get("/api/v1/onlineUsers")["result"]
    if online != accounts + 1:
        raise ServerFailed(f"{online} accounts are online in place of {accounts + 1}")


def _cores(place: Path) -> float:
    """The seconds that the processes of the embedded Postgres, as many as there are now, have spent on cores."""
    postmaster = int((place / "data" / "postgres" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return sum(core_seconds(pid) or 0.0 for pid in (postmaster, *map(int, children)))


def _row(name: str, spell: Spell) -> list[str]:
    return [
        name,
        f"{spell.p50_ms:.2f}",
        f"{spell.p99_ms:.2f}",
        f"{spell.server:.1%}",
        f"{spell.postgres:.1%}",
        table.rate(spell.heartbeats),
    ]


if __name__ == "__main__":
    run(main)
