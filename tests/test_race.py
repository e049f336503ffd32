"""Two processes race for one log, and a third one follows: nothing is lost, doubled, skipped or out of order.

`python -m tests.test_race CONNINFO NAME` is one of the racing processes. Its writers append to streams that
they share, with everybody else and with a condition, and to streams of their own, and print what they were told.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventstore.canonical import encode
from eventstore.errors import WrongVersion
from eventstore.events import Appended, Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.log import EventLog

WRITERS = 24
ROUNDS = 60
SHARED = 5
COMMANDS = 150
NAMES = ("first", "second")
CONTEXT = Context(actor=None, correlation_id="a race")


class Acknowledged(msgspec.Struct):
    """What a writer was told: its events, by marks of their own, stand at these positions."""

    marks: list[str]
    first: int
    last: int
    repeated: bool
    command_id: str | None


class Told(msgspec.Struct):
    """What a racing process prints in the end."""

    acknowledged: list[Acknowledged]
    conflicts: int


# --- a racing process --------------------------------------------------------------------------------------------


class Racer:
    """The writers of one process."""

    def __init__(self, log: EventLog, name: str) -> None:
        self._log = log
        self._name = name
        self._random = random.Random(name)
        self._marks = itertools.count()
        self._streams = itertools.count()
        self._told = Told([], 0)

    async def race(self) -> Told:
        await asyncio.gather(*(self._write() for _ in range(WRITERS)))
        return self._told

    async def _write(self) -> None:
        ways: list[Callable[[], Awaitable[None]]] = [
            self._with_a_condition,
            self._as_it_is,
            self._free,
            self._several,
            self._command,
        ]
        for _ in range(ROUNDS):
            await self._random.choice(ways)()

    async def _with_a_condition(self) -> None:
        stream = self._shared("conditional")
        version = len(await self._log.read_stream(stream, limit=10_000))
        await self._append(StreamWrite(stream, self._events(1), expected_version=version))

    async def _as_it_is(self) -> None:
        await self._append(StreamWrite(self._shared("open"), self._events(2), expected_version=None))

    async def _free(self) -> None:
        await self._append(StreamWrite(self._own(), self._events(3)))

    async def _several(self) -> None:
        """A stream of its own and one that everybody wants to begin, together or not at all."""
        await self._append(
            StreamWrite(self._own(), self._events(1)),
            StreamWrite(f"contested-{self._random.randrange(COMMANDS)}", self._events(1)),
        )

    async def _command(self) -> None:
        """A command that others try too, under the same id."""
        command_id = f"command-{self._random.randrange(COMMANDS)}"
        await self._append(StreamWrite(command_id, self._events(2), expected_version=None), command_id=command_id)

    async def _append(self, *writes: StreamWrite, command_id: str | None = None) -> None:
        try:
            outcome = await self._log.append(*writes, context=CONTEXT, command_id=command_id)
        except WrongVersion:
            self._told.conflicts += 1
        else:
            marks = [json.loads(event.data)["mark"] for write in writes for event in write.events]
            self._told.acknowledged.append(_acknowledged(marks, outcome, command_id))

    def _shared(self, kind: str) -> str:
        return f"{kind}-{self._random.randrange(SHARED)}"

    def _own(self) -> str:
        return f"{self._name}-{next(self._streams)}"

    def _events(self, count: int) -> list[NewEvent]:
        return [NewEvent("Thing", encode({"mark": f"{self._name}-{next(self._marks)}"})) for _ in range(count)]


def _acknowledged(marks: list[str], outcome: Appended, command_id: str | None) -> Acknowledged:
    return Acknowledged(marks, outcome.first_position, outcome.last_position, outcome.repeated, command_id)


async def main(conninfo: str, name: str) -> None:
    async with EventLog(conninfo) as log:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        told = await Racer(log, name).race()
    say(msgspec.json.encode(told).decode())


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# --- the race ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def racing_process(conninfo: str, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.test_race",
        conninfo,
        name,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        limit=1 << 24,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    text = (await process.stdout.readline()).decode().strip()
    assert text, "the process ended early"
    return text


def start(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")


async def follow(log: EventLog, seen: list[RecordedEvent]) -> None:
    """Keeps one number, and asserts that each event is the next one."""
    position = 0
    async for batch in log.follow(position):
        for event in batch:
            assert event.position == position + 1
            position = event.position
        seen.extend(batch)


async def followed_to(seen: list[RecordedEvent], position: int) -> None:
    async with asyncio.timeout(10):
        while not seen or seen[-1].position < position:  # noqa: ASYNC110 - the follower tells nobody how far it is
            await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.gen_test
async def test_two_processes_race_and_a_follower_sees_it_all(database: str) -> None:
    seen: list[RecordedEvent] = []
    async with (
        EventLog(database, writable=False) as log,
        racing_process(database, NAMES[0]) as first,
        racing_process(database, NAMES[1]) as second,
    ):
        following = asyncio.create_task(follow(log, seen))
        assert [await line(first), await line(second)] == ["ready", "ready"]
        start(first)
        start(second)
        told = [msgspec.json.decode(await line(process), type=Told) for process in (first, second)]
        await followed_to(seen, await log.head())
        assert not following.done()
        following.cancel()
        stored = await log.read(limit=1_000_000)
        assert await first.wait() == await second.wait() == 0

    assert seen == stored
    assert_positions_and_versions_are_without_holes(seen)
    assert_everything_acknowledged_is_there_once(seen, told)
    assert_each_command_was_carried_out_once(seen, told)
    assert_they_were_in_each_other_s_way(seen, told)


def assert_positions_and_versions_are_without_holes(seen: list[RecordedEvent]) -> None:
    assert [event.position for event in seen] == list(range(1, len(seen) + 1))
    versions: Counter[str] = Counter()
    for event in seen:
        versions[event.stream] += 1
        assert event.version == versions[event.stream]
    assert all(before.recorded_at <= after.recorded_at for before, after in itertools.pairwise(seen))


def assert_everything_acknowledged_is_there_once(seen: list[RecordedEvent], told: list[Told]) -> None:
    marks = [mark_of(event) for event in seen]
    assert len(set(marks)) == len(marks)
    acknowledged = [one for each in told for one in each.acknowledged if not one.repeated]
    for one in acknowledged:
        assert marks[one.first - 1 : one.last] == one.marks
    # Nobody's connection broke, so nothing is there that was not acknowledged.
    assert sum(len(one.marks) for one in acknowledged) == len(seen)


def assert_each_command_was_carried_out_once(seen: list[RecordedEvent], told: list[Told]) -> None:
    of_commands = [one for each in told for one in each.acknowledged if one.command_id is not None]
    carried_out = {one.command_id: (one.first, one.last) for one in of_commands if not one.repeated}
    assert len(carried_out) == sum(not one.repeated for one in of_commands)
    assert all(carried_out[one.command_id] == (one.first, one.last) for one in of_commands)
    for command_id, (first, last) in carried_out.items():
        assert {event.stream for event in seen[first - 1 : last]} == {command_id}


def assert_they_were_in_each_other_s_way(seen: list[RecordedEvent], told: list[Told]) -> None:
    """Else there was no race, and this has shown nothing."""
    assert all(each.conflicts > 10 for each in told)
    assert all(any(one.repeated for one in each.acknowledged) for each in told)
    names = [mark_of(event).partition("-")[0] for event in seen]
    assert sum(before != after for before, after in itertools.pairwise(names)) > 20


def mark_of(event: RecordedEvent) -> str:
    body: dict[str, Any] = event.body()
    return str(body["mark"])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
