"""The cache of results: bounded, each query asked once for all who want it, and nothing kept that was dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from projections.results import ResultCache
from tests.conftest import until

TOPIC, OTHER = ("a", 1), ("b", 2)


class Barrier:
    """A read barrier that says what a test wants, and does something first."""

    def __init__(self) -> None:
        self.answer = True
        self.asked = 0
        self.before: Callable[[], None] = lambda: None

    async def __call__(self) -> bool:
        self.asked += 1
        self.before()
        return self.answer


class Query:
    """A query whose every run takes until it is told to end."""

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[bytes]] = []

    async def __call__(self) -> bytes:
        self.runs.append(asyncio.get_running_loop().create_future())
        return await self.runs[-1]

    async def end(self, number: int, result: bytes | Exception) -> None:
        """Ends this run, once it has begun."""
        await until(lambda: len(self.runs) > number)
        if isinstance(result, Exception):
            self.runs[number].set_exception(result)
        else:
            self.runs[number].set_result(result)


def giving(result: bytes) -> Callable[[], Awaitable[bytes]]:
    """A query that ends at once."""

    async def query() -> bytes:
        return result

    return query


async def never() -> bytes:
    """A query that must not be asked."""
    raise AssertionError("it was not kept")


async def asking(
    cache: ResultCache, query: Callable[[], Awaitable[bytes]], count: int = 1
) -> list[asyncio.Task[bytes]]:
    """Questions that are under way."""
    tasks = [asyncio.create_task(cache.get(TOPIC, 1, query)) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


@pytest.mark.gen_test
async def test_a_kept_result_is_given_behind_the_barrier_and_a_new_one_without() -> None:
    barrier = Barrier()
    cache = ResultCache(barrier)

    assert await cache.get(TOPIC, 1, giving(b"one")) == b"one"
    assert barrier.asked == 0
    assert await cache.get(TOPIC, 1, never) == b"one"
    assert barrier.asked == 1
    assert await cache.get(TOPIC, 2, giving(b"two")) == b"two"
    assert await cache.get(OTHER, 1, giving(b"three")) == b"three"
    assert barrier.asked == 1


@pytest.mark.gen_test
async def test_what_is_dropped_while_the_barrier_is_passed_is_asked_for_anew() -> None:
    barrier = Barrier()
    cache = ResultCache(barrier)
    await cache.get(TOPIC, 1, giving(b"old"))
    barrier.before = lambda: cache.drop(TOPIC)

    assert await cache.get(TOPIC, 1, giving(b"new")) == b"new"
    barrier.before = lambda: None
    assert await cache.get(TOPIC, 1, never) == b"new"


@pytest.mark.gen_test
async def test_behind_a_barrier_that_is_not_passed_the_database_is_asked_and_nothing_kept() -> None:
    barrier = Barrier()
    cache = ResultCache(barrier)
    await cache.get(TOPIC, 1, giving(b"old"))
    barrier.answer = False

    assert await cache.get(TOPIC, 1, giving(b"new")) == b"new"
    barrier.answer = True
    assert await cache.get(TOPIC, 1, never) == b"old"


@pytest.mark.gen_test
async def test_a_query_under_way_answers_those_who_join_and_after_a_drop_nobody_else() -> None:
    cache, query = ResultCache(Barrier()), Query()
    before = await asking(cache, query, 3)
    cache.drop(TOPIC)
    after = await asking(cache, query, 3)
    assert len(query.runs) == 2

    await query.end(0, b"old")

    assert await asyncio.gather(*before) == [b"old"] * 3
    # Neither is the late one kept, nor does it take the place of the other.
    later = await asking(cache, query)
    assert len(query.runs) == 2
    await query.end(1, b"new")
    assert await asyncio.gather(*after, *later) == [b"new"] * 4
    assert await cache.get(TOPIC, 1, never) == b"new"


@pytest.mark.gen_test
async def test_clearing_drops_every_topic_and_what_is_under_way() -> None:
    cache, query = ResultCache(Barrier()), Query()
    await cache.get(OTHER, 1, giving(b"old"))
    [question] = await asking(cache, query)

    cache.clear()

    await query.end(0, b"old")
    assert await question == b"old"
    assert await cache.get(TOPIC, 1, giving(b"new")) == b"new"
    assert await cache.get(OTHER, 1, giving(b"new")) == b"new"


@pytest.mark.gen_test
async def test_who_gives_up_leaves_the_others_an_answer() -> None:
    cache, query = ResultCache(Barrier()), Query()
    first, *others = await asking(cache, query, 3)
    others[0].cancel()
    first.cancel()

    await query.end(1, b"one")

    assert await others[1] == b"one"
    assert first.cancelled()
    assert await cache.get(TOPIC, 1, never) == b"one"


@pytest.mark.gen_test
async def test_a_query_that_hangs_holds_up_only_who_asked_it() -> None:
    cache, hanging = ResultCache(Barrier(), patience=0.05), Query()
    queries: Iterator[Callable[[], Awaitable[bytes]]] = iter([hanging, giving(b"one")])
    first, *others = await asking(cache, lambda: next(queries)(), 3)

    async with asyncio.timeout(5):
        assert await asyncio.gather(*others) == [b"one"] * 2
    assert not first.done()
    await hanging.end(0, b"late")
    assert await first == b"late"
    assert await cache.get(TOPIC, 1, never) == b"one"


@pytest.mark.gen_test
async def test_a_failed_query_fails_all_who_joined_and_leaves_nothing() -> None:
    cache, query = ResultCache(Barrier()), Query()
    questions = await asking(cache, query, 3)

    await query.end(0, ConnectionError("gone"))

    for question in questions:
        with pytest.raises(ConnectionError):
            await question
    assert cache.is_empty
    assert cache.bytes == 0
    assert await cache.get(TOPIC, 1, giving(b"new")) == b"new"


@pytest.mark.gen_test
async def test_a_result_shows_for_a_bounded_time() -> None:
    cache = ResultCache(Barrier(), seconds=0.05)
    await cache.get(TOPIC, 1, giving(b"old"))
    assert await cache.get(TOPIC, 1, never) == b"old"

    async with asyncio.timeout(5):
        while await cache.get(TOPIC, 1, giving(b"new")) != b"new":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)

    assert cache.bytes < 1000


@pytest.mark.gen_test
async def test_it_keeps_no_more_bytes_than_it_may_and_those_that_were_used_last() -> None:
    cache = ResultCache(Barrier(), size=10_000)
    await cache.get(OTHER, 1, giving(bytes(1000)))
    for number in range(100):
        await cache.get(("a", number), 1, giving(bytes(1000)))
        # This one is in use all the time.
        assert await cache.get(OTHER, 1, never) == bytes(1000)
        assert cache.bytes <= 10_000

    for number in (96, 97, 98, 99):
        assert await cache.get(("a", number), 1, never) == bytes(1000)
    assert await cache.get(("a", 50), 1, giving(b"again")) == b"again"


@pytest.mark.gen_test
async def test_many_details_of_one_topic_and_many_empty_results_are_bounded_too() -> None:
    cache = ResultCache(Barrier(), size=10_000)
    for number in range(200):
        await cache.get(TOPIC, number, giving(bytes(number)))
        assert cache.bytes <= 10_000
        await cache.get(("empty", number), 1, giving(b""))
        assert cache.bytes <= 10_000
    cache.clear()

    assert cache.bytes == 0


@pytest.mark.gen_test
async def test_a_large_result_is_given_to_all_and_not_kept() -> None:
    cache, query = ResultCache(Barrier(), largest=1000), Query()
    questions = await asking(cache, query, 3)

    await query.end(0, bytes(1001))

    assert await asyncio.gather(*questions) == [bytes(1001)] * 3
    assert cache.is_empty
    assert await cache.get(TOPIC, 1, giving(bytes(1000))) == bytes(1000)
    assert await cache.get(TOPIC, 1, never) == bytes(1000)
