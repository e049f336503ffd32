"""The read barrier: "yes" only to those whose every predecessor in the log was published, by few statements."""

from __future__ import annotations

import asyncio

import pytest

from eventstore import barrier
from eventstore.barrier import ReadBarrier
from eventstore.errors import LogUnavailable
from eventstore.log import EventLog
from tests.conftest import until
from tests.tables import Outage


class Feed:
    """A feed that a test publishes to."""

    def __init__(self) -> None:
        self.last = 0
        self.waits: list[int] = []
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def reached(self, position: int, seconds: float) -> bool:  # noqa: ARG002 - as long as it takes
        self.waits.append(position)
        return await self.answer


class Database:
    """A log's head whose every look takes until it is told to end; each sees what was there when it was sent."""

    def __init__(self) -> None:
        self.head = 0
        self.sent: list[asyncio.Future[int]] = []
        self.seen: list[int] = []

    async def read_head(self) -> int:
        self.seen.append(self.head)
        self.sent.append(asyncio.get_running_loop().create_future())
        return await self.sent[-1]

    async def end(self, number: int) -> None:
        """Ends this look, once it was sent."""
        await until(lambda: len(self.sent) > number)
        self.sent[number].set_result(self.seen[number])


async def asked(barrier: ReadBarrier, count: int = 1) -> list[asyncio.Task[bool]]:
    """Questions that have begun to wait."""
    tasks = [asyncio.create_task(barrier.caught_up()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.gen_test
async def test_many_who_ask_at_once_share_one_statement() -> None:
    feed, database = Feed(), Database()
    questions = await asked(ReadBarrier(database.read_head, feed), 50)

    await database.end(0)
    await database.end(1)

    assert await asyncio.gather(*questions) == [True] * 50
    # The first one asked before it was known that there are more.
    assert len(database.sent) == 2


@pytest.mark.gen_test
async def test_who_asks_while_a_statement_is_under_way_is_answered_by_the_next_one() -> None:
    feed, database = Feed(), Database()
    barrier = ReadBarrier(database.read_head, feed)
    [early] = await asked(barrier)
    await until(lambda: database.sent)
    # Somebody commits what is not published here, and somebody asks after that.
    database.head = 1
    [late] = await asked(barrier)

    await database.end(0)

    assert await early
    await database.end(1)
    await until(lambda: feed.waits == [1])
    assert not late.done()
    feed.answer.set_result(False)
    assert not await late


@pytest.mark.gen_test
async def test_whoever_asks_at_whatever_moment_is_answered() -> None:
    feed = Feed()

    async def read_head() -> int:
        await asyncio.sleep(0)
        return 0

    barrier = ReadBarrier(read_head, feed)

    async def ask(turns: int) -> bool:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await barrier.caught_up()

    for gap in range(1, 8):
        async with asyncio.timeout(5):
            assert all(await asyncio.gather(*(ask(gap * number) for number in range(10))))


@pytest.mark.gen_test
async def test_who_waits_for_the_feed_keeps_nobody_else_from_being_answered() -> None:
    feed, database = Feed(), Database()
    barrier = ReadBarrier(database.read_head, feed)
    database.head = 1
    [first] = await asked(barrier)
    await database.end(0)
    await until(lambda: feed.waits == [1])
    feed.last = 1

    [second] = await asked(barrier)
    await database.end(1)

    assert await second
    assert not first.done()
    feed.answer.set_result(True)
    assert await first


@pytest.mark.gen_test
async def test_who_gives_up_leaves_the_others_their_answer() -> None:
    feed, database = Feed(), Database()
    first, second, third = await asked(ReadBarrier(database.read_head, feed), 3)
    await until(lambda: database.sent)

    first.cancel()
    await until(lambda: len(database.sent) == 2)
    second.cancel()
    await database.end(1)

    assert await third


@pytest.mark.gen_test
async def test_a_failed_look_fails_those_who_share_it_and_not_the_next() -> None:
    feed, database = Feed(), Database()
    barrier = ReadBarrier(database.read_head, feed)
    early = await asked(barrier, 3)
    await database.end(0)
    await until(lambda: len(database.sent) == 2)
    late = await asked(barrier)

    assert await early.pop(0)
    database.sent[1].set_exception(LogUnavailable("gone"))
    await database.end(2)

    for question in early:
        with pytest.raises(LogUnavailable):
            await question
    assert await asyncio.gather(*late) == [True]


@pytest.mark.gen_test
async def test_a_look_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "HEAD_SECONDS", 0.05)
    hanging = Database()

    async def at_once() -> int:
        return 0

    looks = iter([hanging.read_head, at_once])
    [first, *behind] = await asked(ReadBarrier(lambda: next(looks)(), Feed()), 3)

    async with asyncio.timeout(5):
        assert not await first
        assert await asyncio.gather(*behind) == [True] * 2
    assert hanging.sent[0].cancelled()


@pytest.mark.gen_test
async def test_those_who_share_a_look_that_hangs_are_told_to_ask_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "HEAD_SECONDS", 0.05)
    questions = await asked(ReadBarrier(Database().read_head, Feed()), 3)

    async with asyncio.timeout(5):
        assert await asyncio.gather(*questions) == [False] * 3


@pytest.mark.gen_test
async def test_closing_fails_whoever_waits_for_whatever() -> None:
    feed, database = Feed(), Database()
    barrier = ReadBarrier(database.read_head, feed)
    [alone, *behind] = await asked(barrier, 2)
    await database.end(0)
    assert await alone
    database.head = 1
    await until(lambda: len(database.sent) == 2)
    database.seen[1] = 1
    await database.end(1)
    await until(lambda: feed.waits)
    [alone, *under_way] = await asked(barrier, 2)
    await database.end(2)
    await until(lambda: len(database.sent) == 4)
    next_one = await asked(barrier)

    await barrier.close()

    for question in (*behind, *under_way, *next_one):
        with pytest.raises(LogUnavailable):
            await question
    alone.cancel()


@pytest.mark.gen_test
async def test_a_log_that_is_left_fails_those_who_wait(database: str) -> None:
    async with EventLog(database) as log:
        [question] = await asked_of(log)

    with pytest.raises(LogUnavailable):
        await question


async def asked_of(log: EventLog) -> list[asyncio.Task[bool]]:
    """A question to a log that has begun to wait."""
    task = asyncio.create_task(log.caught_up())
    await asyncio.sleep(0)
    return [task]


@pytest.mark.gen_test
async def test_without_a_database_nobody_is_told_anything(bare_log: EventLog, outage: Outage) -> None:
    assert await bare_log.caught_up()
    outage.begin()
    try:
        with pytest.raises(LogUnavailable):
            await bare_log.caught_up()
    finally:
        outage.end()


def test_nobody_waits_for_the_feed_for_longer_than_people_notice() -> None:
    assert barrier.WAIT_SECONDS <= 0.1
