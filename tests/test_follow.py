"""Following the log: from any place and for ever, in order, without gaps and without doubles.

A follower keeps one number. It hears of its own process's commits directly, and of others' by NOTIFY, by a poll
where a notification is lost, and from the table after anything that kept it from listening.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from eventstore import feed
from eventstore.canonical import encode
from eventstore.connection import Connection, Row
from eventstore.errors import LogUnavailable
from eventstore.events import Appended, Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.feed import Feed
from eventstore.log import EventLog
from eventstore.statements import Statement
from tests import tables
from tests.conftest import Enter, until
from tests.tables import Outage

CONTEXT = Context(actor=None, correlation_id="a test")
# A follower that depends on the poll for anything would not get it within the time of any test here.
NEVER = 3600.0


async def append(log: EventLog, stream: str, events: int = 1) -> Appended:
    data = [NewEvent("Thing", encode({"number": number})) for number in range(events)]
    return await log.append(StreamWrite(stream, data), context=CONTEXT)


async def append_many(log: EventLog, name: str, count: int) -> None:
    """One append after the other, each of them a batch of its own."""
    for number in range(count):
        await append(log, f"{name}-{number}", events=1 + number % 3)


class Follower:
    """Somebody who follows a log, and what they have seen so far."""

    def __init__(self, log: EventLog, after: int = 0) -> None:
        self.log = log
        self.after = after
        self.seen: list[RecordedEvent] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def run(self) -> None:
        async for batch in self.log.follow(self.after):
            assert batch
            self.seen.extend(batch)
            await self.go_on.wait()

    async def reaches(self, position: int, seconds: float = 10.0) -> list[RecordedEvent]:
        """What was seen, once the position is; held to be all that lies behind the beginning, in order."""
        await until(lambda: self.seen and self.seen[-1].position >= position, seconds)
        positions = [event.position for event in self.seen]
        assert positions == list(range(self.after + 1, self.after + 1 + len(positions)))
        return self.seen


@asynccontextmanager
async def following(*followers: Follower) -> AsyncIterator[None]:
    """The followers are at work in the block."""
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)


@asynccontextmanager
async def another_log(database: str) -> AsyncIterator[EventLog]:
    """A second user of the same log, as another process would be one."""
    async with EventLog(database) as log:
        await log.listening()
        yield log


async def whole(log: EventLog) -> list[RecordedEvent]:
    return await log.read(limit=100_000)


@pytest.fixture
def deaf_log(enter: Enter[EventLog], database: str) -> EventLog:
    """A log that never polls."""
    return enter(EventLog(database, poll_seconds=NEVER))


# --- from the table, then live -----------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("after", [0, 7, 20])
async def test_a_follower_gets_what_lies_behind_its_place_and_then_what_comes(bare_log: EventLog, after: int) -> None:
    await append(bare_log, "old", events=20)
    follower = Follower(bare_log, after)

    async with following(follower):
        await append_many(bare_log, "new", 10)
        seen = await follower.reaches(await bare_log.head())

    assert seen == (await whole(bare_log))[after:]


@pytest.mark.gen_test
async def test_a_follower_of_an_older_log_begins_with_what_was_there_before_it_was_opened(database: str) -> None:
    async with EventLog(database) as earlier:
        await append_many(earlier, "old", 20)
    async with EventLog(database) as log:
        from_the_start, from_the_middle = Follower(log), Follower(log, 11)

        async with following(from_the_start, from_the_middle):
            await append_many(log, "new", 5)
            head = await log.head()
            assert await from_the_start.reaches(head) == await whole(log)
            assert await from_the_middle.reaches(head) == (await whole(log))[11:]


@pytest.mark.gen_test
async def test_a_follower_whose_place_is_yet_to_come_waits_for_it(bare_log: EventLog) -> None:
    follower = Follower(bare_log, after=5)

    async with following(follower):
        await append(bare_log, "before", events=5)
        await append(bare_log, "behind", events=2)
        seen = await follower.reaches(7)

    assert [event.stream for event in seen] == ["behind"] * 2


@pytest.mark.gen_test
async def test_followers_of_any_place_see_the_same_order_while_many_write(bare_log: EventLog) -> None:
    followers = [Follower(bare_log, after) for after in range(0, 120, 7)]

    async with following(*followers):
        await asyncio.gather(*(append_many(bare_log, f"writer-{n}", 20) for n in range(8)))
        late = Follower(bare_log, 33)
        async with following(late):
            head = await bare_log.head()
            seen = {follower.after: await follower.reaches(head) for follower in (*followers, late)}

    everything = await whole(bare_log)
    assert all(events == everything[after:] for after, events in seen.items())


@pytest.mark.gen_test
async def test_a_follower_that_falls_behind_the_window_gets_everything_from_the_table(
    bare_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "WINDOW", 20)
    monkeypatch.setattr(feed, "PAGE", 7)
    slow, quick = Follower(bare_log), Follower(bare_log)
    slow.go_on.clear()

    async with following(slow, quick):
        await append_many(bare_log, "writer", 100)
        head = await bare_log.head()
        await quick.reaches(head)
        assert len(slow.seen) < 20 < head
        slow.go_on.set()
        await append_many(bare_log, "more", 10)
        head = await bare_log.head()
        assert await slow.reaches(head) == await quick.reaches(head) == await whole(bare_log)


@pytest.mark.gen_test
async def test_a_log_for_reading_is_followed_too(database: str, bare_log: EventLog) -> None:
    async with EventLog(database, writable=False, poll_seconds=NEVER) as reading:
        follower = Follower(reading)
        async with following(follower):
            await append_many(bare_log, "new", 10)
            seen = await follower.reaches(await bare_log.head())

    assert seen == await whole(bare_log)


# --- other processes ---------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_another_process_s_events_arrive_by_notification(deaf_log: EventLog, database: str) -> None:
    await deaf_log.listening()
    follower = Follower(deaf_log)

    async with following(follower), another_log(database) as other:
        for number in range(20):
            appended = await append(other, f"other-{number}", events=3)
            await follower.reaches(appended.last_position)

    assert follower.seen == await whole(deaf_log)


@pytest.mark.gen_test
async def test_what_was_written_before_the_process_began_to_listen_arrives_too(database: str) -> None:
    async with another_log(database) as other, EventLog(database, poll_seconds=NEVER) as log:
        assert not log.ready
        follower = Follower(log)
        async with following(follower):
            await append(other, "other", events=3)
            seen = await follower.reaches(3)

    assert [event.stream for event in seen] == ["other"] * 3


@pytest.mark.gen_test
async def test_a_lost_notification_is_made_up_for_by_the_poll(database: str) -> None:
    async with EventLog(database, poll_seconds=0.05) as log:
        await log.listening()
        follower = Follower(log)
        async with following(follower):
            await append(log, "own")
            for position in (2, 3):
                append_silently(database, position)
                await follower.reaches(position)

    assert [event.stream for event in follower.seen] == ["own", "silent-2", "silent-3"]


@pytest.mark.gen_test
async def test_who_waits_for_a_position_has_the_table_read_when_no_notification_comes(
    deaf_log: EventLog, database: str
) -> None:
    await deaf_log.listening()
    append_silently(database, 1)

    assert await deaf_log._feed.reached(1, seconds=5)


def append_silently(database: str, position: int) -> None:
    """Writes an event as the log does, but tells nobody."""
    with tables.connect(database) as connection, connection.transaction():
        tables.run(connection, "UPDATE log_head SET position = position + 1")
        tables.run(
            connection,
            "INSERT INTO events (position, stream, version, type, data, metadata, recorded_at, salt, leaf_hash) "
            f"VALUES ({position}, 'silent-{position}', 1, 'Thing', '{{{{}}}}', '{{{{}}}}', now(), '', '')",
        )


@pytest.mark.gen_test
async def test_own_commits_bring_along_what_another_process_wrote_silently_before_them(
    deaf_log: EventLog, database: str
) -> None:
    await deaf_log.listening()
    follower = Follower(deaf_log)

    async with following(follower):
        append_silently(database, 1)
        assert await append(deaf_log, "own") == Appended(2, 2)
        seen = await follower.reaches(2)

    assert [event.stream for event in seen] == ["silent-1", "own"]


@pytest.mark.gen_test
async def test_own_commits_are_not_read_from_the_table(
    deaf_log: EventLog, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deaf_log.listening()
    follower = Follower(deaf_log)
    reads = spied_reads(deaf_log, monkeypatch)

    async with following(follower), another_log(database) as other:
        await append_many(deaf_log, "own", 50)
        # Its notification comes behind all of those.
        await follower.reaches((await append(other, "other")).last_position)

    assert len(reads) <= 2


@pytest.mark.gen_test
async def test_own_commits_behind_others_events_are_not_read_again(
    deaf_log: EventLog, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deaf_log.listening()
    follower = Follower(deaf_log)
    reads = spied_reads(deaf_log, monkeypatch)

    async with following(follower):
        for position in range(1, 21, 2):
            append_silently(database, position)
            await append(deaf_log, f"own-{position}")
            await follower.reaches(position + 1)

    assert [len(rows) for rows in reads] == [1] * 10
    assert follower.seen == await whole(deaf_log)


@pytest.mark.gen_test
async def test_more_own_commits_behind_others_events_than_may_wait_are_read(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_AHEAD", 1)
    # So long that all of them are offered between two looks at the table.
    monkeypatch.setattr(feed, "PAUSE_SECONDS", 0.5)
    async with EventLog(database, poll_seconds=NEVER) as log:
        await log.listening()
        follower = Follower(log)
        async with following(follower):
            append_silently(database, 1)
            await append_many(log, "own", 5)
            seen = await follower.reaches(await log.head())

        assert seen == await whole(log)


def spied_reads(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """What the log reads from now on."""
    read = log.reader.fetch
    reads: list[list[Row]] = []

    async def fetch(statement: Statement, **values: object) -> list[Row]:
        rows = await read(statement, **values)
        reads.append(rows)
        return rows

    monkeypatch.setattr(log.reader, "fetch", fetch)
    return reads


@pytest.mark.gen_test
async def test_a_commit_of_which_the_answer_was_lost_is_followed(
    deaf_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deaf_log.listening()
    notified = spied_on(Feed, "_furthest_notified", monkeypatch)
    committed = Connection.fetch

    async def fetch(self: Connection, text: str, parameters: Sequence[bytes]) -> list[Row]:
        answer = await committed(self, text, parameters)
        if "INSERT" not in text:
            return answer
        await until(lambda: notified)
        raise LogUnavailable("its answer was lost")

    monkeypatch.setattr(Connection, "fetch", fetch)
    follower = Follower(deaf_log)
    async with following(follower):
        with pytest.raises(LogUnavailable):
            await append(deaf_log, "own")
        seen = await follower.reaches(1)

    assert [event.stream for event in seen] == ["own"]


def spied_on(kind: type[Feed], name: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a method has returned from now on."""
    method = getattr(kind, name)
    returned: list[object] = []

    def spy(self: Feed, *arguments: object) -> object:
        returned.append(method(self, *arguments))
        return returned[-1]

    monkeypatch.setattr(kind, name, spy)
    return returned


@pytest.mark.gen_test
async def test_what_came_while_the_listener_was_cut_off_arrives_when_it_is_back(
    database: str, outage: Outage, deaf_log: EventLog
) -> None:
    await deaf_log.listening()
    follower = Follower(deaf_log)

    async with following(follower), another_log(database) as other:
        await append(other, "before")
        await follower.reaches(1)
        outage.keep_new_ones_out()
        outage.end_listeners()
        await until(lambda: not deaf_log.ready)
        await append(other, "during", events=5)
        # Nothing can have told it: the connection is closed, and no new one can be made.
        assert len(follower.seen) == 1
        outage.end()
        seen = await follower.reaches(6)
        await until(lambda: deaf_log.ready)
        await append(other, "after")
        await follower.reaches(7)

    assert [event.stream for event in seen] == ["before"] + ["during"] * 5 + ["after"]


@pytest.mark.gen_test
async def test_a_listener_that_is_cut_off_again_and_again_misses_nothing(
    database: str, outage: Outage, deaf_log: EventLog
) -> None:
    follower = Follower(deaf_log)

    with tables.connect(database) as watcher:
        async with following(follower), another_log(database) as other:
            for number in range(5):
                # Both logs, as the database sees them: they themselves notice late that they were cut off.
                await until(lambda: listeners(watcher) == 2)
                writing = asyncio.create_task(append_many(other, f"other-{number}", 20))
                await follower.reaches(len(follower.seen) + 5)
                outage.end_listeners()
                await writing
            seen = await follower.reaches(await other.head())

    assert len(seen) == len(await whole(deaf_log))


def listeners(connection: tables.Connection) -> int:
    """How many connections to this database listen for notifications."""
    query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
    return len(tables.rows(connection, query))


@pytest.mark.gen_test
async def test_followers_of_two_processes_that_write_at_once_see_one_order(database: str) -> None:
    async with (
        EventLog(database, poll_seconds=NEVER) as first,
        EventLog(database, poll_seconds=NEVER) as second,
    ):
        await asyncio.gather(first.listening(), second.listening())
        followers = [Follower(first), Follower(second), Follower(first), Follower(second, 50)]
        async with following(*followers):
            await asyncio.gather(
                *(append_many(log, f"{name}-{n}", 25) for n in range(4) for name, log in (("a", first), ("b", second)))
            )
            head = await first.head()
            seen = [await follower.reaches(head) for follower in followers]

    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == seen[0][50:]
    by_a = [event.stream.startswith("a") for event in seen[0]]
    # Else they did not write at once, and this has shown nothing.
    assert sum(before != after for before, after in itertools.pairwise(by_a)) > 4


@pytest.mark.gen_test
async def test_followers_outlive_an_outage(bare_log: EventLog, outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WINDOW", 10)
    await append(bare_log, "before", events=30)
    live, from_the_table = Follower(bare_log), Follower(bare_log)
    from_the_table.go_on.clear()

    async with following(live):
        await live.reaches(30)
        outage.begin()
        async with following(from_the_table):
            await until(lambda: not bare_log.ready)
            from_the_table.go_on.set()
            with pytest.raises(LogUnavailable):
                await append(bare_log, "during")
            outage.end()
            await until(lambda: bare_log.ready)
            await append(bare_log, "after", events=3)
            assert await live.reaches(33) == await from_the_table.reaches(33)


@pytest.mark.gen_test
async def test_giving_up_on_a_connection_at_any_moment_of_its_opening_leaves_none_behind(database: str) -> None:
    for step in range(60):
        opening = asyncio.create_task(Connection.open(database))
        await asyncio.sleep(step * 0.0002)
        opening.cancel()
        [outcome] = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(outcome, Connection):
            await outcome.close()

    # A connection that nobody closed says so when it is collected, and a warning fails the test.
    gc.collect()


# --- subscribers -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_subscriber_hears_of_a_commit_before_its_appender_does(bare_log: EventLog) -> None:
    heard: list[str] = []
    bare_log.subscribe(lambda events: heard.extend(f"heard {event.stream}" for event in events))

    async def append_and_tell(stream: str) -> None:
        await append(bare_log, stream)
        heard.append(f"told {stream}")

    await asyncio.gather(*(append_and_tell(f"s-{n}") for n in range(50)))

    for n in range(50):
        assert heard.index(f"heard s-{n}") < heard.index(f"told s-{n}")


@pytest.mark.gen_test
async def test_a_subscriber_hears_of_its_own_process_s_commits_even_when_others_came_between(
    deaf_log: EventLog, database: str
) -> None:
    await deaf_log.listening()
    heard: list[int] = []
    deaf_log.subscribe(lambda events: heard.extend(event.position for event in events))
    append_silently(database, 1)

    await append(deaf_log, "own")
    at_once = list(heard)
    await until(lambda: heard[-2:] == [1, 2])

    # Of its own commit at once, whether or not what came before it is known by then; and in the end of both in order.
    assert at_once in ([2], [1, 2], [2, 1, 2])


@pytest.mark.gen_test
async def test_a_subscriber_hears_of_other_processes_commits(deaf_log: EventLog, database: str) -> None:
    await deaf_log.listening()
    heard: list[Sequence[RecordedEvent]] = []
    deaf_log.subscribe(heard.append)

    async with another_log(database) as other:
        await append(other, "other", events=3)
        await until(lambda: sum(map(len, heard)) == 3)

    assert [event for events in heard for event in events] == await whole(deaf_log)
