"""The benchmarks of rooms, tried with a few clients: that they count what they say, and fail where they must."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator

import pytest

from bench import fanout
from bench.rooms import minutebook
from bench.rooms.stage import Entrant, Stage, entrants, stage
from bench.servers.process import ServerFailed

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="the load is written in C, for Linux"
)
ROOM = 5


@pytest.fixture
def ours() -> Entrant:
    [entrant] = entrants([minutebook.SERVER])
    return entrant


@pytest.fixture
def running(ours: Entrant) -> Iterator[Stage]:
    with stage(ours) as running:
        running.load.open(ROOM)
        yield running


@pytest.mark.parametrize("per_turn", [1, 10])
def test_every_event_is_counted_at_every_client(running: Stage, per_turn: int) -> None:
    burst = running.burst(40, per_turn)

    assert (burst.received.deliveries, burst.received.missing) == (40 * ROOM, 0)
    assert burst.seconds > 0
    assert burst.server_seconds > 0


def test_paced_events_have_latencies(running: Stage) -> None:
    paced = running.paced(100, 20)

    assert 0 < paced.received.p50_ms <= paced.received.p99_ms < 1000
    assert paced.seconds >= 19 / 100


def test_events_that_do_not_come_are_missed(running: Stage) -> None:
    running.load.expect(3, timed=False)
    running.server.ask("burst 2 1")

    received = running.load.received(within=0.2)

    assert (received.deliveries, received.missing) == (2 * ROOM, ROOM)


def test_clients_that_never_read_are_not_expected_to_receive(running: Stage) -> None:
    running.load.stall(2)

    assert running.burst(10, 1).received.deliveries == 10 * (ROOM - 2)


def test_a_server_that_is_gone_is_told_of(running: Stage) -> None:
    running.server.say("no such command")

    with pytest.raises(ServerFailed, match="KeyError: 'no'"):
        running.server.answer()


def test_a_room_has_all_figures(ours: Entrant) -> None:
    samples = fanout._measure(ours, ROOM, argparse.Namespace(seconds=0.01, paced_seconds=0.2))

    assert set(samples) == {fanout.CONNECTING, fanout.PACED, *(batch.name for batch in fanout.BATCHES)}
    assert all(sample.rate > 0 for sample in samples.values())
    assert all((sample.server_us or 0) > 0 for name, sample in samples.items() if name != fanout.CONNECTING)
