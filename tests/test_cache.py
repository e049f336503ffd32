"""The cache: bounded, and never with an answer that was out of date when it came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
async def test_forgetting_drops_the_answers_about_its_subject_and_only_those() -> None:
    cache: Cache[str, str] = Cache(5, lambda answer: answer[0])
    for key, answer in {"a": "alice", "b": "bob", "c": "carol", "d": "bert"}.items():
        await cache.get(key, Question(answer))

    cache.forget("b")

    assert await cache.get("a", never("a")) == "alice"
    assert await cache.get("c", never("c")) == "carol"
    assert await cache.get("b", Question("new")) == "new"
    assert await cache.get("d", Question("new")) == "new"


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("get"), st.integers(0, 5), st.integers(0, 3)),
            st.tuples(st.just("forget"), st.just(0), st.integers(0, 3)),
            st.tuples(st.just("clear"), st.just(0), st.just(0)),
        )
    ),
    size=st.integers(1, 4),
)
def test_whatever_was_kept_pushed_out_and_forgotten_it_keeps_what_a_plain_one_would(
    steps: list[tuple[str, int, int]], size: int
) -> None:
    async def walk() -> None:
        cache: Cache[int, str] = Cache(size, lambda answer: int(answer))
        plain: dict[int, str] = {}
        for what, key, subject in steps:
            if what == "get":
                await cache.get(key, Question(str(subject)))
                if key not in plain and len(plain) == size:
                    del plain[next(iter(plain))]
                plain.setdefault(key, str(subject))
            elif what == "forget":
                cache.forget(subject)
                plain = {key: answer for key, answer in plain.items() if answer != str(subject)}
            else:
                cache.clear()
                plain = {}
            assert {key: cache.kept(key) for key in range(6) if cache.kept(key)} == plain

    asyncio.run(walk())


@pytest.mark.gen_test
async def test_one_that_was_cleared_asks_again() -> None:
    cache: Cache[str, str] = Cache(2)
    await cache.get("key", Question("old"))

    cache.clear()

    assert cache.kept("key") is None
    assert await cache.get("key", Question("new")) == "new"


@pytest.mark.gen_test
@pytest.mark.parametrize("forget", [lambda cache: cache.forget("of something else"), Cache.clear])
async def test_an_answer_that_was_under_way_when_something_was_forgotten_is_given_but_not_kept(
    forget: Callable[[Cache[str, str]], None],
) -> None:
    cache: Cache[str, str] = Cache(5, lambda answer: answer)
    slow = SlowQuestion("out of date")
    asking = asyncio.create_task(cache.get("key", slow))
    await slow.started.wait()

    forget(cache)
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
