"""The cache: bounded, and never with an answer that was out of date when it came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from projections.cache import Cache


class Question:
    """A query that counts how often it is asked."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer
        self.asked = 0

    async def __call__(self) -> str | None:
        self.asked += 1
        return self.answer


class SlowQuestion(Question):
    """A query that has read its answer, and hands it over when it is told to."""

    def __init__(self, answer: str | None) -> None:
        super().__init__(answer)
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self) -> str | None:
        read = await super().__call__()
        self.started.set()
        await self.go_on.wait()
        return read


def never(key: str) -> Callable[[], Awaitable[str | None]]:
    """A query that must not be asked."""

    async def query() -> str | None:
        raise AssertionError(f"{key} was not kept")

    return query


@pytest.mark.gen_test
async def test_a_kept_answer_is_not_asked_for_again() -> None:
    cache: Cache[str, str] = Cache(2)
    question = Question("yes")

    answers = [await cache.get("key", question) for _ in range(3)]

    assert answers == ["yes"] * 3
    assert question.asked == 1


@pytest.mark.gen_test
async def test_none_is_asked_for_again_each_time() -> None:
    cache: Cache[str, str] = Cache(2)
    question = Question(None)

    assert [await cache.get("key", question) for _ in range(3)] == [None] * 3
    assert question.asked == 3
    question.answer = "now there is one"
    assert await cache.get("key", question) == "now there is one"


@pytest.mark.gen_test
async def test_it_keeps_no_more_than_its_size_and_drops_the_oldest_first() -> None:
    cache: Cache[int, str] = Cache(3)
    for number in range(10):
        await cache.get(number, Question(str(number)))

    kept = [await cache.get(number, never(str(number))) for number in (7, 8, 9)]

    assert kept == ["7", "8", "9"]
    dropped = [Question(str(number)) for number in range(7)]
    for number in range(7):
        await cache.get(number, dropped[number])
    assert [question.asked for question in dropped] == [1] * 7


@pytest.mark.gen_test
async def test_many_at_once_do_not_make_it_larger_than_its_size() -> None:
    cache: Cache[int, str] = Cache(3)
    slow = [SlowQuestion(str(number)) for number in range(20)]
    asking = [asyncio.create_task(cache.get(number, question)) for number, question in enumerate(slow)]
    await asyncio.gather(*(question.started.wait() for question in slow))
    for question in slow:
        question.go_on.set()
    await asyncio.gather(*asking)

    again = [Question(str(number)) for number in range(20)]
    # Newest first: a question that has to be asked pushes out an answer that was kept, the oldest of them.
    for number in reversed(range(20)):
        await cache.get(number, again[number])

    assert [number for number in range(20) if not again[number].asked] == [17, 18, 19]


@pytest.mark.gen_test
async def test_forgetting_drops_the_unwanted_answers_and_only_those() -> None:
    cache: Cache[str, str] = Cache(5)
    for key in ("a", "b", "c"):
        await cache.get(key, Question(key))

    cache.forget(lambda answer: answer == "b")

    assert await cache.get("a", never("a")) == "a"
    assert await cache.get("c", never("c")) == "c"
    assert await cache.get("b", Question("new")) == "new"


@pytest.mark.gen_test
async def test_an_answer_that_was_under_way_when_something_was_forgotten_is_given_but_not_kept() -> None:
    cache: Cache[str, str] = Cache(5)
    slow = SlowQuestion("out of date")
    asking = asyncio.create_task(cache.get("key", slow))
    await slow.started.wait()

    cache.forget(lambda answer: answer == "out of date")
    slow.go_on.set()

    assert await asking == "out of date"
    assert await cache.get("key", Question("new")) == "new"
    assert await cache.get("key", never("key")) == "new"


@pytest.mark.gen_test
async def test_a_query_that_fails_leaves_nothing_behind() -> None:
    cache: Cache[str, str] = Cache(5)

    with pytest.raises(AssertionError, match="was not kept"):
        await cache.get("key", never("key"))

    assert await cache.get("key", Question("answer")) == "answer"
