"""Appending: versions, command ids, batches and faults, on a real Postgres.

What is held: an append that was acknowledged is in the log exactly once, at the positions that it was told; one that
failed is not, or at most once when the log was away; and whatever happens positions are gapless, versions without
holes, and nobody pays for another one's failure.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import msgspec
import psycopg
import pytest
import sqlalchemy as sa

from eventstore import canonical
from eventstore import connection as connection_module
from eventstore.errors import InvalidEvent, LogError, LogUnavailable, TimedOut, WrongVersion
from eventstore.events import Appended, Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog
from eventstore.projection import Change, Projection, Source, number, of_type
from tests import tables
from tests.conftest import Enter, until
from tests.tables import Outage

CONTEXT = Context(actor=None, correlation_id="a test")
Outcome = Appended | BaseException


def thing(number: int = 0, kind: str = "Thing") -> NewEvent:
    return NewEvent(kind, canonical.encode({"number": number}))


def write(stream: str, expected_version: int | None = 0, *, events: int = 1, number: int = 0) -> StreamWrite:
    return StreamWrite(stream, [thing(number) for _ in range(events)], expected_version)


async def append(log: EventLog, *writes: StreamWrite, command_id: str | None = None) -> Appended:
    return await log.append(*writes, context=CONTEXT, command_id=command_id)


async def append_together(log: EventLog, *appends: Sequence[StreamWrite]) -> list[Outcome]:
    """The outcomes of appends that were handed in within one turn of the loop, and so share a batch."""
    return await asyncio.gather(*(append(log, *writes) for writes in appends), return_exceptions=True)


async def everything(log: EventLog) -> list[RecordedEvent]:
    """The whole log, which is held to be gapless, with versions without holes, and with times that never go back."""
    found: list[RecordedEvent] = []
    while page := await log.read(found[-1].position if found else 0):
        found.extend(page)
    assert [event.position for event in found] == list(range(1, len(found) + 1))
    assert len(found) == await log.head()
    versions: dict[str, int] = {}
    for event in found:
        assert event.version == versions.get(event.stream, 0) + 1
        versions[event.stream] = event.version
    assert all(before.recorded_at <= after.recorded_at for before, after in itertools.pairwise(found))
    return found


async def streams(log: EventLog) -> list[str]:
    return [event.stream for event in await everything(log)]


def numbers(events: Sequence[RecordedEvent]) -> list[int]:
    return [event.body()["number"] for event in events]


def appended(outcomes: Sequence[Outcome]) -> list[Appended]:
    return [outcome for outcome in outcomes if isinstance(outcome, Appended)]


@contextmanager
def head_locked(database: str) -> Iterator[None]:
    """Holds up all commits: what is in flight waits for the head row until the end of the block."""
    with tables.connect(database) as connection, connection.transaction():
        connection.execute("SELECT position FROM log_head FOR UPDATE")
        yield


async def someone_waits_for_the_head(database: str) -> None:
    with tables.connect(database) as connection:
        query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await until(lambda: tables.rows(connection, query))


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_append_is_told_its_positions_and_is_read_back_there(bare_log: EventLog) -> None:
    first = await append(bare_log, write("a", events=3, number=7))
    second = await append(bare_log, write("b"))

    assert (first, second) == (Appended(1, 3), Appended(4, 4))
    found = await everything(bare_log)
    assert [(event.stream, event.version, event.type) for event in found] == [
        ("a", 1, "Thing"),
        ("a", 2, "Thing"),
        ("a", 3, "Thing"),
        ("b", 1, "Thing"),
    ]
    assert [event.data for event in found] == [b'{"number":7}'] * 3 + [b'{"number":0}']
    assert await bare_log.read_stream("a", after=1) == found[1:3]
    assert await bare_log.event_at(4) == found[3]
    assert await bare_log.event_at(5) is None


@pytest.mark.gen_test
async def test_metadata_says_who_in_the_course_of_what_and_which_event(bare_log: EventLog) -> None:
    event = NewEvent("Thing", b"{}", schema=3)
    await bare_log.append(StreamWrite("a", [event, event]), context=Context(1000, 'é"\\'), command_id="command")

    found = await everything(bare_log)

    metadata = [msgspec.json.decode(event.metadata) for event in found]
    assert len({each.pop("event_id") for each in metadata}) == 2
    assert metadata == [{"actor": 1000, "command_id": "command", "correlation_id": 'é"\\', "schema": 3}] * 2
    assert [event.schema() for event in found] == [3, 3]


@pytest.mark.gen_test
async def test_a_stream_goes_on_from_the_version_that_was_expected(bare_log: EventLog) -> None:
    await append(bare_log, write("a", 0, events=2))

    assert await append(bare_log, write("a", 2)) == Appended(3, 3)
    assert await append(bare_log, write("a", None)) == Appended(4, 4)
    assert await append(bare_log, write("a", 4)) == Appended(5, 5)
    assert len(await everything(bare_log)) == 5


@pytest.mark.gen_test
async def test_a_stream_at_another_version_refuses(bare_log: EventLog) -> None:
    await append(bare_log, write("a", events=2))

    for expected in (0, 1, 3, 100, 2**62, -1):
        with pytest.raises(WrongVersion) as refused:
            await append(bare_log, write("a", expected))
        assert (refused.value.stream, refused.value.expected) == ("a", expected)

    assert await streams(bare_log) == ["a", "a"]


@pytest.mark.gen_test
async def test_a_stream_that_is_not_there_is_at_version_0(bare_log: EventLog) -> None:
    for expected in (1, 7, -1):
        with pytest.raises(WrongVersion):
            await append(bare_log, write("a", expected))

    assert await everything(bare_log) == []
    assert await append(bare_log, write("a", None)) == Appended(1, 1)


@pytest.mark.gen_test
async def test_of_many_who_begin_one_stream_at_once_exactly_one_does(bare_log: EventLog) -> None:
    outcomes = await append_together(bare_log, *([write("a", number=n)] for n in range(10)))

    assert len(appended(outcomes)) == 1
    assert [type(outcome) for outcome in outcomes].count(WrongVersion) == 9
    [event] = await everything(bare_log)
    assert isinstance(outcomes[event.body()["number"]], Appended)


@pytest.mark.gen_test
async def test_of_many_who_expect_one_version_at_once_exactly_one_gets_it(bare_log: EventLog) -> None:
    await append(bare_log, write("a", events=2))

    outcomes = await append_together(bare_log, *([write("a", 2, number=n)] for n in range(10)))

    assert len(appended(outcomes)) == 1
    assert [type(outcome) for outcome in outcomes].count(WrongVersion) == 9
    assert len(await everything(bare_log)) == 3


@pytest.mark.gen_test
async def test_a_conflict_fails_alone_within_its_batch(bare_log: EventLog) -> None:
    await append(bare_log, write("old", events=3))
    batches: list[Sequence[RecordedEvent]] = []
    bare_log.subscribe(batches.append)
    appends = [[write(f"new-{n}")] for n in range(20)]
    appends[5] = [write("old", 2)]
    appends[11] = [write("old", 9)]

    outcomes = await append_together(bare_log, *appends)

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, WrongVersion)] == [5, 11]
    assert len(appended(outcomes)) == 18
    assert [len(batch) for batch in batches] == [18]
    assert await streams(bare_log) == ["old"] * 3 + [f"new-{n}" for n in range(20) if n not in (5, 11)]


@pytest.mark.gen_test
async def test_a_conflict_that_only_the_commit_finds_fails_alone_too(bare_log: EventLog) -> None:
    await append(bare_log, write("old"))
    appends = [[write(f"new-{n}")] for n in range(20)]
    # Nobody looks up a stream that must be new: the unique pair of stream and version tells.
    appends[5] = [write("old", 0)]

    outcomes = await append_together(bare_log, *appends)

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, WrongVersion)] == [5]
    found = await everything(bare_log)
    for n, outcome in enumerate(outcomes):
        if isinstance(outcome, Appended):
            assert found[outcome.first_position - 1].stream == f"new-{n}"


@pytest.mark.gen_test
async def test_those_who_take_a_stream_as_it_is_all_get_a_place_in_the_order_in_which_they_came(
    bare_log: EventLog,
) -> None:
    outcomes = await append_together(bare_log, *([write("a", None, number=n)] for n in range(30)))

    assert outcomes == [Appended(n, n) for n in range(1, 31)]
    assert numbers(await everything(bare_log)) == list(range(30))


@pytest.mark.gen_test
async def test_versions_that_follow_each_other_may_share_a_batch(bare_log: EventLog) -> None:
    outcomes = await append_together(
        bare_log, [write("a", 0)], [write("a", 1, events=2)], [write("a", 3)], [write("a", 3)], [write("a", None)]
    )

    assert [type(outcome) for outcome in outcomes] == [Appended, Appended, Appended, WrongVersion, Appended]
    assert await streams(bare_log) == ["a"] * 5


@pytest.mark.gen_test
async def test_events_of_several_streams_stand_together(bare_log: EventLog) -> None:
    await append(bare_log, write("b", events=2))

    outcome = await append(bare_log, write("a", events=2), write("b", 2), write("c", None, events=2))

    assert outcome == Appended(3, 7)
    assert (await streams(bare_log))[2:] == ["a", "a", "b", "c", "c"]


@pytest.mark.gen_test
async def test_several_streams_are_written_together_or_not_at_all(bare_log: EventLog) -> None:
    await append(bare_log, write("taken", events=2))

    for expected, place in itertools.product((0, 1, 7), range(3)):
        writes = [write("a"), write("b", None)]
        writes.insert(place, write("taken", expected))
        with pytest.raises(WrongVersion):
            await append(bare_log, *writes)

    assert await streams(bare_log) == ["taken"] * 2


@pytest.mark.gen_test
async def test_one_append_may_write_to_a_stream_twice(bare_log: EventLog) -> None:
    assert await append(bare_log, write("a", 0), write("b"), write("a", 1)) == Appended(1, 3)
    with pytest.raises(WrongVersion):
        await append(bare_log, write("c", 0), write("c", 0))

    assert await streams(bare_log) == ["a", "b", "a"]


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_append_without_events_is_refused(bare_log: EventLog) -> None:
    beside = [StreamWrite("a", []), StreamWrite("b", [thing()])]
    for writes in ([], [StreamWrite("a", [])], [StreamWrite("a", []), StreamWrite("b", [])], beside):
        with pytest.raises(InvalidEvent, match="at least one event"):
            await append(bare_log, *writes)

    assert await everything(bare_log) == []


BAD_NAMES = ["", " ", "a b", "a\n", "a" * 201, "é", "a\0", 'a"', "a\\", "a\ud800"]


@pytest.mark.gen_test
async def test_a_name_that_the_log_does_not_know_to_write_is_refused(bare_log: EventLog) -> None:
    for name in BAD_NAMES:
        for bad in (StreamWrite(name, [thing()]), StreamWrite("a", [thing(kind=name)])):
            with pytest.raises(InvalidEvent, match="is named by"):
                await append(bare_log, write("good"), bad)

    assert await everything(bare_log) == []


@pytest.mark.gen_test
async def test_metadata_that_cannot_be_written_is_refused(bare_log: EventLog) -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(InvalidEvent):
            await bare_log.append(write("a"), context=Context(None, text))
        with pytest.raises(InvalidEvent):
            await append(bare_log, write("a"), command_id=text)

    assert await everything(bare_log) == []


@pytest.mark.gen_test
async def test_data_that_is_no_json_fails_alone_within_its_batch(bare_log: EventLog) -> None:
    no_json = {2: b"", 5: b"{", 6: b"no json", 11: b'{"a":"\xff"}', 19: b"{}\0"}
    appends = [[StreamWrite(f"a-{n}", [NewEvent("Thing", no_json.get(n, b"{}"))])] for n in range(20)]

    outcomes = await append_together(bare_log, *appends)

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, LogError)] == list(no_json)
    assert not any(isinstance(outcome, LogUnavailable | WrongVersion) for outcome in outcomes)
    assert await streams(bare_log) == [f"a-{n}" for n in range(20) if n not in no_json]


@pytest.mark.gen_test
async def test_a_log_for_reading_takes_nothing(database: str) -> None:
    async with EventLog(database, writable=False) as log:
        with pytest.raises(TypeError, match="for reading only"):
            await append(log, write("a"))


CHANGES = [
    "UPDATE events SET data = '{}'",
    "UPDATE events SET data = NULL, salt = NULL, data_hash = sha256(salt || convert_to(data::text, 'UTF8'))",
    "UPDATE events SET leaf_hash = '' WHERE position = 1",
    "DELETE FROM events WHERE position = 2",
    "TRUNCATE events",
    "TRUNCATE events CASCADE",
    "MERGE INTO events USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    "INSERT INTO events SELECT * FROM events ON CONFLICT (position) DO UPDATE SET type = 'Other'",
]


@pytest.mark.gen_test
# The role of a replica skips ordinary triggers.
@pytest.mark.parametrize("role", ["origin", "replica"])
async def test_the_database_refuses_to_change_what_was_recorded(bare_log: EventLog, database: str, role: str) -> None:
    await append(bare_log, write("a", events=3))
    before = await everything(bare_log)

    with tables.connect(database) as connection:
        tables.run(connection, f"SET session_replication_role = {role}")
        for statement in CHANGES:
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="the log is immutable"):
                connection.execute(statement.encode())

    assert await everything(bare_log) == before


# --- command ids -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_repeated_command_gets_its_first_outcome(bare_log: EventLog) -> None:
    writes = [write("a", events=2), write("b", None, events=3)]
    first = await append(bare_log, *writes, command_id="c")
    await append(bare_log, write("other"))

    again = await append(bare_log, *writes, command_id="c")

    assert first == Appended(1, 5)
    assert again == Appended(1, 5, repeated=True)
    assert len(await everything(bare_log)) == 6


@pytest.mark.gen_test
async def test_a_command_is_known_though_its_stream_has_moved_on(bare_log: EventLog) -> None:
    await append(bare_log, write("at-2", events=2))
    streams_then = {"new": 0, "at-2": 2, "at-any": None}
    first = {name: await append(bare_log, write(name, then), command_id=name) for name, then in streams_then.items()}
    for name in streams_then:
        await append(bare_log, write(name, None, events=4))

    again = {name: await append(bare_log, write(name, then), command_id=name) for name, then in streams_then.items()}

    assert again == {
        name: Appended(once.first_position, once.last_position, repeated=True) for name, once in first.items()
    }


@pytest.mark.gen_test
@pytest.mark.parametrize("expected", [0, None])
async def test_the_repeats_of_a_command_within_one_batch_are_found(bare_log: EventLog, expected: int | None) -> None:
    others = [append(bare_log, write(f"other-{n}")) for n in range(5)]
    repeats = [append(bare_log, write("a", expected, events=2), command_id="c") for _ in range(6)]
    mixed = itertools.chain(others[:2], repeats[:3], others[2:], repeats[3:])

    outcomes = await asyncio.gather(*mixed)

    of_command = [*outcomes[2:5], *outcomes[8:]]
    assert [outcome.repeated for outcome in of_command] == [False] + [True] * 5
    assert {outcome.first_position for outcome in of_command} == {of_command[0].first_position}
    assert {outcome.last_position for outcome in of_command} == {of_command[0].first_position + 1}
    found = await streams(bare_log)
    assert sorted(found) == ["a", "a"] + [f"other-{n}" for n in range(5)]


@pytest.mark.gen_test
async def test_a_repeat_costs_the_others_of_its_batch_nothing(bare_log: EventLog) -> None:
    await append(bare_log, write("a"), command_id="c")

    outcomes = await asyncio.gather(
        *(append(bare_log, write(f"b-{n}"), command_id=f"d-{n}") for n in range(5)),
        append(bare_log, write("a"), command_id="c"),
        *(append(bare_log, write(f"e-{n}")) for n in range(5)),
    )

    assert [outcome.repeated for outcome in outcomes] == [False] * 5 + [True] + [False] * 5
    assert outcomes[5] == Appended(1, 1, repeated=True)
    assert await streams(bare_log) == ["a"] + [f"b-{n}" for n in range(5)] + [f"e-{n}" for n in range(5)]


@pytest.mark.gen_test
async def test_a_command_that_failed_may_be_tried_again(bare_log: EventLog) -> None:
    await append(bare_log, write("a"))
    with pytest.raises(WrongVersion):
        await append(bare_log, write("a"), command_id="c")

    assert await append(bare_log, write("a", 1), command_id="c") == Appended(2, 2)


@pytest.mark.gen_test
async def test_a_command_is_known_to_other_processes_and_after_a_restart(bare_log: EventLog, database: str) -> None:
    first = await append(bare_log, write("a", events=2), command_id="c")

    async with EventLog(database) as other:
        again = await append(other, write("a", events=2), command_id="c")

    assert again == Appended(first.first_position, first.last_position, repeated=True)


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_what_waits_together_is_committed_together(bare_log: EventLog, database: str) -> None:
    batches: list[Sequence[RecordedEvent]] = []
    bare_log.subscribe(batches.append)
    with head_locked(database):
        first = asyncio.create_task(append(bare_log, write("first")))
        await someone_waits_for_the_head(database)
        waiting = asyncio.create_task(append_together(bare_log, *([write(f"a-{n}")] for n in range(20))))
        await asyncio.sleep(0)

    await first
    assert appended(await waiting) == [Appended(n, n) for n in range(2, 22)]
    assert [len(batch) for batch in batches] == [1, 20]
    found = await everything(bare_log)
    assert len({event.recorded_at for event in found[1:]}) == 1


@pytest.mark.gen_test
async def test_a_caller_who_goes_away_disturbs_nobody(bare_log: EventLog, database: str) -> None:
    with head_locked(database):
        in_flight = asyncio.create_task(append(bare_log, write("in-flight")))
        await someone_waits_for_the_head(database)
        waiting = [asyncio.create_task(append(bare_log, write(f"waiting-{n}"))) for n in range(5)]
        await asyncio.sleep(0)
        for gone in (in_flight, waiting[0], waiting[3]):
            gone.cancel()

    outcomes = await asyncio.gather(in_flight, *waiting, return_exceptions=True)

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, asyncio.CancelledError)] == [0, 1, 4]
    # What was in flight could not be called back; what only waited was never sent.
    assert await streams(bare_log) == ["in-flight", "waiting-1", "waiting-2", "waiting-4"]


@pytest.mark.gen_test
async def test_a_batch_of_which_nobody_is_left_is_no_batch(bare_log: EventLog, database: str) -> None:
    with head_locked(database):
        first = asyncio.create_task(append(bare_log, write("first")))
        await someone_waits_for_the_head(database)
        gone = asyncio.create_task(append(bare_log, write("gone")))
        await asyncio.sleep(0)
        gone.cancel()

    await first
    await append(bare_log, write("last"))
    assert await streams(bare_log) == ["first", "last"]


@pytest.mark.gen_test
async def test_ten_thousand_appends_at_once_all_get_through(bare_log: EventLog) -> None:
    outcomes = await append_together(bare_log, *([write(f"a-{n}", number=n)] for n in range(10_000)))

    assert outcomes == [Appended(n, n) for n in range(1, 10_001)]
    assert numbers(await everything(bare_log)) == list(range(10_000))


@pytest.mark.gen_test
async def test_ten_thousand_events_in_one_append_get_through(bare_log: EventLog) -> None:
    first, large, last = await append_together(
        bare_log, [write("first")], [write("large", events=10_000)], [write("last")]
    )

    assert (first, large, last) == (Appended(1, 1), Appended(2, 10_001), Appended(10_002, 10_002))
    assert len(await bare_log.read_stream("large", limit=20_000)) == 10_000


@pytest.mark.gen_test
async def test_large_events_get_through(bare_log: EventLog) -> None:
    # Three times what a batch may hold, alone, and many that make up more than that together.
    sizes = [3 << 20, *[100_000] * 30, 3 << 20, 10]
    texts = [canonical.encode({"text": chr(ord("a") + n % 26) * size}) for n, size in enumerate(sizes)]

    outcomes = await append_together(
        bare_log, *([StreamWrite(f"a-{n}", [NewEvent("Thing", text)])] for n, text in enumerate(texts))
    )

    assert outcomes == [Appended(n, n) for n in range(1, len(texts) + 1)]
    assert [event.data for event in await everything(bare_log)] == texts


@pytest.mark.gen_test
async def test_a_clock_that_was_set_back_puts_no_event_before_another(bare_log: EventLog, database: str) -> None:
    await append(bare_log, write("a"))
    with tables.connect(database) as connection:
        tables.run(connection, "UPDATE log_head SET recorded_at = now() + interval '1 hour'")

    await append(bare_log, write("b"))
    await append(bare_log, write("c"))

    first, second, third = await everything(bare_log)
    assert first.recorded_at < second.recorded_at == third.recorded_at


@pytest.mark.gen_test
async def test_failures_leave_no_gaps(bare_log: EventLog) -> None:
    await append(bare_log, write("taken"))
    bad = [
        [write("taken")],
        [write("new", 5)],
        [StreamWrite("bad", [NewEvent("Thing", b"no json")])],
        [write("half"), write("taken")],
    ]
    appends = [bad[n % 4] if n % 3 == 0 else [write(f"good-{n}")] for n in range(60)]

    outcomes = await append_together(bare_log, *appends)

    assert len(appended(outcomes)) == 40
    assert await streams(bare_log) == ["taken"] + [f"good-{n}" for n in range(60) if n % 3]


@pytest.mark.gen_test
async def test_closing_waits_for_what_was_handed_in_and_takes_nothing_more(database: str) -> None:
    async with EventLog(database) as log:
        handed_in = [asyncio.create_task(append(log, write(f"a-{n}"))) for n in range(50)]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*handed_in)

    assert [outcome.first_position for outcome in outcomes] == list(range(1, 51))
    with pytest.raises(LogUnavailable):
        await append(log, write("too-late"))


# --- projections that fail ---------------------------------------------------------------------------------------

_numbered = sa.Table(
    "numbered", sa.MetaData(), sa.Column("position", sa.BigInteger), sa.Column("number", sa.BigInteger)
)


def _insert_numbered(source: Source) -> sa.Insert:
    rows = sa.select(source.c.position, number(source, "number")).where(of_type(source, "Numbered"))
    return sa.insert(_numbered).from_select(["position", "number"], rows)


NUMBERED = Projection("numbered", (_numbered,), (Change(frozenset({"Numbered"}), _insert_numbered),))


@pytest.fixture
def numbered_log(enter: Enter[EventLog], database: str) -> EventLog:
    """A log with a read model that takes no number twice, and none of a hundred or more."""
    with tables.connect(database) as connection:
        tables.run(
            connection, "CREATE TABLE numbered (position bigint PRIMARY KEY, number bigint UNIQUE CHECK (number < 100))"
        )
    return enter(EventLog(database, [NUMBERED]))


def numbered(stream: str, *numbers_given: int, expected_version: int | None = 0) -> StreamWrite:
    return StreamWrite(stream, [thing(n, kind="Numbered") for n in numbers_given], expected_version)


async def held_together(log: EventLog, database: str) -> list[int]:
    """The numbers in the log, which are held to be those of the read model, at the same positions."""
    found = [(event.position, event.body()["number"]) for event in await everything(log) if event.type == "Numbered"]
    with tables.connect(database) as connection:
        assert tables.rows(connection, "SELECT position, number FROM numbered ORDER BY position") == found
    return [n for _, n in found]


@pytest.mark.gen_test
async def test_what_a_read_model_cannot_hold_fails_alone_within_its_batch(
    numbered_log: EventLog, database: str
) -> None:
    appends = [[numbered(f"a-{n}", n)] for n in range(20)]
    appends[7] = [numbered("too-large", 100)]
    appends[12] = [write("of-another-type")]

    outcomes = await append_together(numbered_log, *appends)

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [7]
    assert isinstance(outcomes[7], LogError)
    assert not isinstance(outcomes[7], WrongVersion | LogUnavailable | InvalidEvent)
    assert await held_together(numbered_log, database) == [n for n in range(20) if n not in (7, 12)]


@pytest.mark.gen_test
async def test_a_read_model_s_own_unique_values_are_not_taken_for_a_stream_s_versions(
    numbered_log: EventLog, database: str
) -> None:
    await append(numbered_log, numbered("a", 1))

    with pytest.raises(LogError, match="numbered") as refused:
        await append(numbered_log, numbered("b", 1))

    assert not isinstance(refused.value, WrongVersion | LogUnavailable)
    assert await held_together(numbered_log, database) == [1]


@pytest.mark.gen_test
async def test_one_event_that_a_read_model_cannot_hold_fails_its_whole_append(
    numbered_log: EventLog, database: str
) -> None:
    first, second, third = await append_together(
        numbered_log,
        [numbered("a", 1)],
        [numbered("b", 2, 200, 3), write("c")],
        [numbered("d", 4)],
    )

    assert (first, third) == (Appended(1, 1), Appended(2, 2))
    assert isinstance(second, LogError)
    assert await held_together(numbered_log, database) == [1, 4]


# --- the database goes away --------------------------------------------------------------------------------------


@asynccontextmanager
async def crowd(log: EventLog, writers: int = 16) -> AsyncIterator[dict[int, Appended | None]]:
    """Writers that append numbers of their own until the end of the block: what became of each; None: not known."""
    outcomes: dict[int, Appended | None] = {}
    fresh = itertools.count()
    going_on = True

    async def write_on() -> None:
        while going_on:
            mine = next(fresh)
            outcomes[mine] = None
            try:
                outcomes[mine] = await append(log, write(f"a-{mine}", number=mine))
            except LogUnavailable:
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for _ in range(writers):
            group.create_task(write_on())
        yield outcomes
        going_on = False


@pytest.mark.gen_test
async def test_nothing_acknowledged_is_lost_or_doubled_when_connections_break(
    bare_log: EventLog, outage: Outage
) -> None:
    async with crowd(bare_log) as outcomes:
        for _ in range(5):
            await fifty_more(outcomes)
            outage.end_connections()
        await fifty_more(outcomes)

    found = await everything(bare_log)
    where = {event.body()["number"]: event.position for event in found}
    assert len(where) == len(found)
    acknowledged = acknowledged_of(outcomes)
    assert {n: outcome.first_position for n, outcome in acknowledged.items()} == {n: where[n] for n in acknowledged}
    assert where.keys() <= outcomes.keys()
    # Else no connection broke under anybody, and this has shown nothing.
    assert len(outcomes) > len(acknowledged)


def acknowledged_of(outcomes: dict[int, Appended | None]) -> dict[int, Appended]:
    return {n: outcome for n, outcome in outcomes.items() if outcome is not None}


async def fifty_more(outcomes: dict[int, Appended | None]) -> None:
    enough = len(acknowledged_of(outcomes)) + 50
    await until(lambda: len(acknowledged_of(outcomes)) >= enough)


@pytest.mark.gen_test
async def test_while_the_log_is_away_appends_fail_at_once_and_later_they_are_taken_again(
    bare_log: EventLog, outage: Outage
) -> None:
    await append(bare_log, write("before"))
    outage.begin()
    try:
        began = time.monotonic()
        for n in range(20):
            with pytest.raises(LogUnavailable):
                await append(bare_log, write(f"during-{n}"))
            await asyncio.sleep(0)
        assert time.monotonic() - began < 1
        assert not bare_log.ready
    finally:
        outage.end()

    await until(lambda: bare_log.ready)
    await append(bare_log, write("after"))
    assert await streams(bare_log) == ["before", "after"]


@pytest.mark.gen_test
async def test_those_who_wait_for_a_commit_hear_of_it_when_the_connection_breaks(
    bare_log: EventLog, database: str, outage: Outage
) -> None:
    with head_locked(database):
        in_flight = asyncio.create_task(append(bare_log, write("in-flight")))
        await someone_waits_for_the_head(database)
        waiting = asyncio.create_task(append_together(bare_log, *([write(f"waiting-{n}")] for n in range(5))))
        await asyncio.sleep(0)
        end_waiting_backends(database)

        async with asyncio.timeout(2):
            with pytest.raises(LogUnavailable):
                await in_flight
            outcomes = await waiting

    await until(lambda: bare_log.ready)
    assert [type(outcome) for outcome in outcomes] == [LogUnavailable] * 5
    assert await everything(bare_log) == []
    assert await append(bare_log, write("after")) == Appended(1, 1)


@pytest.mark.gen_test
async def test_an_append_whose_turn_does_not_come_was_not_committed_and_its_caller_knows(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = connection_module._SETTINGS.replace("lock_timeout = '10s'", "lock_timeout = '100ms'")
    monkeypatch.setattr(connection_module, "_SETTINGS", shorter)
    async with EventLog(database) as log:
        with head_locked(database), pytest.raises(TimedOut, match="lock timeout"):
            await append(log, write("late"))

        await until(lambda: log.ready)
        assert await append(log, write("after")) == Appended(1, 1)


def end_waiting_backends(database: str) -> None:
    with tables.connect(database) as connection:
        ended = tables.rows(
            connection,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
    assert ended == [(True,)]


def done(tasks: Sequence[asyncio.Task[Appended]], least: int) -> bool:
    return sum(task.done() for task in tasks) >= least


@pytest.mark.gen_test
async def test_a_command_id_makes_an_append_safe_to_repeat_across_an_outage(bare_log: EventLog, outage: Outage) -> None:
    async def insist(n: int) -> Appended:
        command_id = new_id()
        while True:
            try:
                return await append(bare_log, write("shared", None, number=n), command_id=command_id)
            except LogUnavailable:
                await asyncio.sleep(0.01)

    inserting = [asyncio.create_task(insist(n)) for n in range(400)]
    for least in (1, 100, 200):
        await until(partial(done, inserting, least))
        outage.end_connections()
    outcomes = await asyncio.gather(*inserting)

    found = await everything(bare_log)
    assert sorted(numbers(found)) == list(range(400))
    assert [found[outcome.first_position - 1].body()["number"] for outcome in outcomes] == list(range(400))
