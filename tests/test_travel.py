"""Time travel: the read models at a position are those that the log up to it makes, and nothing else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tornado.ioloop import IOLoop

import projections
from chat.commands import Channel, Commands
from eventstore import travel
from eventstore.canonical import encode
from eventstore.comparison import Difference
from eventstore.errors import LogError, LogUnavailable
from eventstore.events import Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.log import EventLog
from eventstore.statements import Statement
from eventstore.travel import Interval, Past
from projections.messages import Messages
from tests import tables
from tests.conftest import on_loop
from tests.fold import Fold, Tables
from tests.stories import STORIES, Story, Teller

CONTEXT = Context(None, "c")
FACT = NewEvent("Fact", encode({}))
PASSWORD = "Passw0rd!"


@contextmanager
def role(database: str, *grants: str) -> Iterator[str]:
    """A role that may do nothing in a database but what it is granted; the connection string of those who play it."""
    name = str(conninfo_to_dict(database)["dbname"])
    with tables.connect(database) as connection:
        tables.run(connection, "CREATE ROLE {}", name)
        tables.run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
        for grant in grants:
            tables.run(connection, f"GRANT {grant.format(database='{}')} TO {{}}", *[name] * (1 + grant.count("{")))
    try:
        # Only its own user may log in to the tests' Postgres, so that one puts the role on.
        yield make_conninfo(database, options=f"-crole={name}")
    finally:
        with tables.connect(database) as connection:
            tables.run(connection, "DROP OWNED BY {}", name)
            tables.run(connection, "DROP ROLE {}", name)


async def rows_of(past: Past) -> Tables:
    """The rows of all tables that a past has, sorted."""
    return {table.name: sorted(await past.fetch(Statement(sa.select(table)))) for table in past.tables}


async def made(database: str, position: int) -> Tables:
    async with Past(database, projections.ALL) as past:
        await past.go_to(position)
        return await rows_of(past)


def naive(before: Tables, after: Tables) -> list[tuple[str, Any, Any]]:
    """The rows that are not in both, by table."""
    return [
        (
            name,
            [row for row in before[name] if row not in after[name]],
            [row for row in after[name] if row not in before[name]],
        )
        for name in before
    ]


def by_table(found: Sequence[Difference], names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """The differences in the shape of `naive`."""
    return [
        (
            name,
            sorted(tuple(each.before.values()) for each in found if each.table == name and each.before is not None),
            sorted(tuple(each.after.values()) for each in found if each.table == name and each.after is not None),
        )
        for name in names
    ]


# --- the past --------------------------------------------------------------------------------------------------------


def test_the_past_is_what_the_log_s_beginning_makes(
    io_loop: IOLoop, log: EventLog, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(travel, "RANGE", 7)
    monkeypatch.setattr(travel, "PAGE", 2)
    beside = tables.connect(database)

    async def tell(story: Story) -> list[RecordedEvent]:
        tables.empty(beside)
        await Teller().tell(log, story)
        return await log.read(limit=10_000)

    async def travelled(first: int, last: int) -> tuple[Tables, Tables, list[Difference]]:
        async with Interval(database, projections.ALL) as interval:
            await interval.go_to(first, last)
            found = [each async for each in interval.differences()]
            return await rows_of(interval.before), await rows_of(interval.after), found

    @settings(deadline=None, max_examples=8, phases=[Phase.reuse, Phase.generate, Phase.shrink])
    @given(STORIES, st.integers(0, 200), st.integers(0, 200))
    def check(story: Story, first: int, last: int) -> None:
        events = on_loop(io_loop, lambda: tell(story))
        first, last = first % (len(events) + 1), last % (len(events) + 1)

        before, after, found = on_loop(io_loop, lambda: travelled(first, last))

        assert before == Fold(events[:first]).tables()
        assert after == Fold(events[:last]).tables()
        assert by_table(found, list(before)) == naive(before, after)

    check()
    beside.close()


@pytest.mark.gen_test
async def test_rows_that_came_or_went_amid_others_are_the_only_differences(
    commands: Commands, log: EventLog, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await commands.register("Alice", PASSWORD, "c")
    await commands.make_channel(alice, "den", "c")
    sent = [(await commands.send_message(alice, "den", "x", "c")).first_position for _ in range(9)]
    first = await log.head()
    for message_id in (gone := [sent[1], sent[2], sent[3], sent[6]]):
        await commands.delete_message(alice, message_id, "c")
    last = await log.head()

    for before, after in ((first, last), (last, first)):
        async with Interval(database, projections.ALL) as interval:
            await interval.go_to(before, after)
            # Pages of the two end at different keys, and at the same.
            for page in (1, 2, 3, 4, 9, 10):
                monkeypatch.setattr(travel, "PAGE", page)
                found = [each async for each in interval.differences()]
                assert [(each.table, each.key["message_id"]) for each in found] == [("messages", each) for each in gone]
                assert {each.after is None for each in found} == {before == first}


@pytest.mark.gen_test
async def test_the_past_goes_forward_and_never_back(commands: Commands, log: EventLog, database: str) -> None:
    alice = await commands.register("Alice", PASSWORD, "c")
    await commands.make_channel(alice, "den", "c")
    head = await log.head()
    told: list[tuple[int, int]] = []

    async with Past(database, projections.ALL) as past:
        for position in range(head + 1):
            await past.go_to(position, lambda *reached: told.append(reached))
        stepwise = await rows_of(past)
        with pytest.raises(ValueError, match="lies before"):
            await past.go_to(head - 1)

    assert stepwise == await made(database, head)
    assert told == [(position, position) for position in range(1, head + 1)]


@pytest.mark.gen_test
async def test_a_message_stands_until_the_position_at_which_it_was_deleted(commands: Commands, database: str) -> None:
    alice = await commands.register("Alice", PASSWORD, "c")
    den = await commands.make_channel(alice, "den", "c")
    sent = (await commands.send_message(alice, "den", "Hello", "c")).first_position
    await commands.delete_message(alice, sent, "c")

    async def texts(position: int) -> list[str]:
        async with Past(database, projections.ALL) as past:
            await past.go_to(position)
            return [message.text for message in await Messages(past).newest_in_channel(den, 10)]

    assert [await texts(position) for position in (sent - 1, sent, sent + 1)] == [[], ["Hello"], []]


# --- in nobody's way -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_past_takes_no_right_but_to_read_the_log(commands: Commands, log: EventLog, database: str) -> None:
    await commands.make_channel(await commands.register("Alice", PASSWORD, "c"), "den", "c")
    with role(database, "SELECT ON events", "TEMPORARY ON DATABASE {database}") as conninfo:
        # No read model may be read by that role, so it is the past's own that answer.
        assert await made(conninfo, 3) == await made(database, 3) == Fold((await log.read())[:3]).tables()


@pytest.mark.gen_test
async def test_who_may_make_no_temporary_tables_is_told_so(database: str) -> None:
    with role(database) as conninfo, pytest.raises(LogError, match="permission denied to create temporary tables"):
        await made(conninfo, 1)


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["public", "public,pg_temp"])
async def test_the_live_tables_are_not_written_to_whatever_the_search_path_is(
    commands: Commands, log: EventLog, database: str, path: str
) -> None:
    await commands.make_channel(await commands.register("Alice", PASSWORD, "c"), "den", "c")
    with tables.connect(database) as connection:
        before = tables.read_models(connection)

    assert (
        await made(make_conninfo(database, options=f"-csearch_path={path}"), 4) == Fold((await log.read())[:4]).tables()
    )

    with tables.connect(database) as connection:
        assert tables.read_models(connection) == before


@pytest.mark.gen_test
async def test_a_past_can_write_nothing_but_its_own_tables(database: str) -> None:
    async with Past(database, projections.ALL) as past:
        await past.fetch(Statement(sa.text("DELETE FROM messages")))
        with pytest.raises(LogError, match="read-only"):
            await past.fetch(Statement(sa.text("DELETE FROM public.messages")))


@pytest.mark.gen_test
async def test_a_past_that_is_lost_does_not_answer_from_the_present(
    commands: Commands, database: str, outage: tables.Outage
) -> None:
    alice = await commands.register("Alice", PASSWORD, "c")
    den = await commands.make_channel(alice, "den", "c")
    await commands.send_message(alice, "den", "now", "c")

    async with Past(database, projections.ALL) as past:
        outage.end_connections()
        for _ in range(2):
            with pytest.raises(LogUnavailable):
                await Messages(past).newest_in_channel(Channel(den.channel_id, den.name), 10)


@pytest.mark.gen_test
async def test_an_interval_fails_with_the_error_of_the_one_that_failed(log: EventLog, database: str) -> None:
    await log.append(StreamWrite("s", [FACT] * 3), context=CONTEXT)

    async with Interval(database, projections.ALL) as interval:
        await interval.go_to(2, 3)
        await interval.before.__aexit__(None, None, None)
        with pytest.raises(LogUnavailable):
            await asyncio.wait_for(interval.go_to(3, 3), 10)


# --- positions by time -----------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_position_at_a_moment_is_the_last_one_recorded_by_then(bare_log: EventLog) -> None:
    for count in (1, 3, 2, 5):
        await bare_log.append(StreamWrite("s", [FACT] * count, expected_version=None), context=CONTEXT)
    times = [event.recorded_at for event in await bare_log.read()]
    assert len(set(times)) == 4, "those of one append were recorded at one moment"
    step = timedelta(microseconds=1)
    moments = [moment + change for moment in times for change in (-step, step * 0, step)]

    for moment in [datetime(1, 1, 1, tzinfo=UTC), *moments, datetime(9999, 1, 1, tzinfo=UTC)]:
        assert await bare_log.position_at(moment) == sum(time <= moment for time in times)


@pytest.mark.gen_test
async def test_an_empty_log_has_no_position_at_any_moment(bare_log: EventLog) -> None:
    assert await bare_log.position_at(datetime.now(UTC)) == 0


@pytest.mark.gen_test
async def test_a_log_with_a_hole_is_not_searched_as_if_it_had_none(bare_log: EventLog, database: str) -> None:
    await bare_log.append(StreamWrite("s", [FACT] * 3), context=CONTEXT)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM events WHERE position = 2")

    with pytest.raises(LogError, match="event 2 is missing"):
        await bare_log.position_at(datetime.now(UTC))
