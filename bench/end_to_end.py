"""From a POST of `sendmessage` to the frame at a Socket.IO listener: how long it takes, commit included.

The server runs as its users start it, with its embedded Postgres. A client sends 20 messages a second to a channel
with five listeners: once with nothing else going on, and once at half load. Full load is what 64 connections get
through by sending as fast as they are answered, into another channel with 50 listeners; half load is half as many.
Server, Postgres, load and listeners share this machine's cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import table
from bench.command_line import parser, progress, run
from bench.http_load import Target, measure, request
from bench.load import Load, percentile, summed_up
from bench.machine import Machine
from bench.probe import Api, ticks
from bench.rooms import mark
from bench.rooms.program import core_time
from bench.rooms.websocket_load import WebsocketLoad, websocket_load
from bench.servers import CHATTED, TEXT
from bench.servers.minutebook import World, started
from bench.servers.process import ServerFailed
from bench.worker import Worker, measure_together, workers

PER_SECOND = 20
LISTENERS = 5
CROWD = 50
CALLERS = 64
PROBED = "probes"
PASSWORD = "Minutes-1776!"
IDLE, HALF = "idle", "half load"
HEADER = ("", "messages/s beside", "answer p50 ms", "p99 ms", "listener p50 ms", "p99 ms", "server's core")


@dataclass(frozen=True)
class Latency:
    """Latencies until the answer to the POST, and until the frame at a listener, with so many messages beside."""

    beside: float  # messages a second
    answer_p50_ms: float
    answer_p99_ms: float
    listener_p50_ms: float
    listener_p99_ms: float
    core: float  # the share of a core that the server took


@dataclass(frozen=True)
class Scene:
    """What takes part."""

    pid: int
    port: int
    api: Api
    token: str  # the one who sends
    listeners: WebsocketLoad
    tokens: Sequence[str]  # those who are the load
    loader: Worker[Target]

    def target(self, pause: float = 0.0) -> Target:
        """The load: messages into the channel of the crowd."""
        body = {"message": TEXT, "channel": CHATTED}
        requests = tuple(request("/api/v3/sendmessage/", {"token": token, **body}) for token in self.tokens)
        return Target(self.port, requests, pause)


def main() -> None:
    """Runs the benchmark as the command line says."""
    arguments = parser("bench.end_to_end", str(__doc__), rounds=3, seconds=10.0).parse_args()
    machine = Machine.of(None)
    print(machine.headline(), end="\n\n")
    with (
        tempfile.TemporaryDirectory(prefix="minutebook-bench-", dir=arguments.folder) as place,
        _scene(Path(place)) as scene,
    ):
        figures = _rounds(scene, arguments)
    print(table.table(HEADER, [_row(name, figures[name]) for name in (IDLE, HALF)]))
    if arguments.json:
        rounds = {name: [asdict(each) for each in figures[name]] for name in figures}
        arguments.json.write_text(json.dumps({"machine": asdict(machine), "rounds": rounds}, indent=2) + "\n")


@contextlib.contextmanager
def _scene(place: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        progress("starting the server")
        pid, port = stack.enter_context(started(place))
        world = World(port)
        tokens = world.make()
        sender, *others = _probers(world)
        listeners = stack.enter_context(websocket_load(port))
        crowd = stack.enter_context(websocket_load(port))
        _listen(listeners, others, LISTENERS)
        _listen(crowd, tokens, CROWD)
        [loader] = stack.enter_context(workers(measure))
        api = stack.enter_context(contextlib.closing(Api(port)))
        yield Scene(pid, port, api, sender, listeners, tokens, loader)
        lost = listeners.status()["closed"] + crowd.status()["closed"]
        if lost:
            raise ServerFailed(f"{lost} listeners were cut off")


def _probers(world: World) -> list[str]:
    """The tokens of accounts that are in the probed channel and in no other."""
    names = [f"Prober {number}" for number in range(1 + LISTENERS)]
    credentials = [{"username": name, "password": PASSWORD} for name in names]
    world.post([("register", each) for each in credentials])
    tokens = [str(answer["token"]) for answer in world.post([("generatetoken", each) for each in credentials])]
    world.post([("makechannel", {"token": tokens[0], "name": PROBED})])
    world.post([("addusertochannel", {"token": tokens[0], "name": PROBED, "username": name}) for name in names[1:]])
    return tokens


def _listen(load: WebsocketLoad, tokens: Sequence[str], count: int) -> None:
    for token in tokens[:count]:
        load.authenticate(json.dumps({"token": token}))
    load.open(count)


def _rounds(scene: Scene, arguments: argparse.Namespace) -> dict[str, list[Latency]]:
    figures: dict[str, list[Latency]] = {IDLE: [], HALF: []}
    load = Load(CALLERS, arguments.warm_up, arguments.seconds)
    for number in range(arguments.rounds):
        progress(f"round {number + 1} of {arguments.rounds}: {IDLE}")
        figures[IDLE].append(_probe(scene, arguments.seconds))
        progress(f"round {number + 1} of {arguments.rounds}: full load, to know what half of it is")
        full = summed_up(measure_together([scene.loader], scene.target(), load)).rate
        progress(f"round {number + 1} of {arguments.rounds}: {HALF}, {full / 2:,.0f} messages/s")
        figures[HALF].append(_probe_beside(scene, full / 2, load))
    return figures


def _probe_beside(scene: Scene, rate: float, load: Load) -> Latency:
    """Probes while the load sends at that rate; the load's last second is for the probes that are under way."""
    longer = Load(load.callers, load.warm_up, load.seconds + 1)
    scene.loader.prepare(scene.target(CALLERS / rate), longer)
    scene.loader.await_ready()
    scene.loader.go()
    time.sleep(load.warm_up)
    found = _probe(scene, load.seconds)
    sent = scene.loader.result(longer)
    return Latency(**{**asdict(found), "beside": summed_up([sent]).rate})


def _probe(scene: Scene, seconds: float) -> Latency:
    events = round(PER_SECOND * seconds)
    scene.listeners.expect(events, timed=True)
    began, core = time.monotonic(), core_time(scene.pid)
    answers = []
    for number, moment in enumerate(ticks(PER_SECOND, seconds)):
        text = f"{mark(number, int(moment * 1e9))} {TEXT}"
        scene.api.post("sendmessage", {"token": scene.token, "message": text, "channel": PROBED})
        answers.append(time.monotonic() - moment)
    share = (core_time(scene.pid) - core) / (time.monotonic() - began)
    received = scene.listeners.received()
    if received.missing:
        raise ServerFailed(f"{received.missing} messages did not reach a listener")
    answers.sort()
    return Latency(
        beside=0.0,
        answer_p50_ms=percentile(answers, 50) * 1000,
        answer_p99_ms=percentile(answers, 99) * 1000,
        listener_p50_ms=received.p50_ms,
        listener_p99_ms=received.p99_ms,
        core=share,
    )


def _row(name: str, rounds: Sequence[Latency]) -> list[str]:
    """The medians of the rounds."""
    figures = {key: median(asdict(each)[key] for each in rounds) for key in asdict(rounds[0])}
    latencies = ("answer_p50_ms", "answer_p99_ms", "listener_p50_ms", "listener_p99_ms")
    return [
        name,
        table.rate(figures["beside"]),
        *(f"{figures[key]:.2f}" for key in latencies),
        f"{figures['core']:.0%}",
    ]


if __name__ == "__main__":
    run(main)
