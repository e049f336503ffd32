"""Of several that would do a work, one at a time does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from structlog.testing import capture_logs

from eventstore.errors import LogUnavailable
from eventstore.leadership import Leadership
from tests import tables
from tests.conftest import until
from tests.tables import Outage

KEY = 0x7E57


@dataclass
class Candidate:
    """Somebody who would lead; `leads` while it does."""

    leads: bool = False
    terms: int = 0

    async def work(self) -> None:
        self.leads = True
        self.terms += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.leads = False


@asynccontextmanager
async def standing(database: str, *candidates: Candidate) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(Leadership(database, KEY, "the work").run(each.work)) for each in candidates]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def leading(candidates: Sequence[Candidate]) -> Callable[[], bool]:
    return lambda: [each.leads for each in candidates].count(True) == 1


@pytest.mark.gen_test
async def test_one_leads_and_another_takes_over_when_it_stops(database: str) -> None:
    candidates = Candidate(), Candidate()
    async with standing(database, *candidates) as tasks:
        await until(leading(candidates))
        first, second = (0, 1) if candidates[0].leads else (1, 0)
        await asyncio.sleep(0.6)
        assert (candidates[first].leads, candidates[second].terms) == (True, 0), "the other one has asked by now"

        tasks[first].cancel()

        await until(lambda: candidates[second].leads, 3)
        assert not candidates[first].leads


@pytest.mark.gen_test
async def test_who_loses_its_connection_stops_and_may_lead_again(database: str, outage: Outage) -> None:
    only = Candidate()
    async with standing(database, only):
        await until(lambda: only.leads)

        outage.end_connections()

        await until(lambda: only.terms == 2)
        assert only.leads


@pytest.mark.gen_test
async def test_nobody_leads_while_the_database_is_away(database: str, outage: Outage) -> None:
    candidates = Candidate(), Candidate()
    with capture_logs() as logs:
        async with standing(database, *candidates) as tasks:
            await until(leading(candidates))

            outage.begin()
            await until(lambda: not any(each.leads for each in candidates))
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in tasks)
            outage.end()

            await until(leading(candidates))

    told = sum(line["log_level"] == "warning" for line in logs)
    assert 1 <= told <= len(candidates), "of an outage, not of each try"


@pytest.mark.gen_test
async def test_leaderships_of_different_works_have_nothing_to_do_with_each_other(database: str) -> None:
    a, b = Candidate(), Candidate()
    other = asyncio.create_task(Leadership(database, KEY + 1, "another work").run(b.work))
    async with standing(database, a):
        await until(lambda: a.leads and b.leads)
    other.cancel()
    await asyncio.wait([other])


@pytest.mark.gen_test
async def test_what_ends_the_work_ends_the_leadership(database: str) -> None:
    async def fails() -> None:
        raise ValueError("the work's own fault")

    async def ends() -> None:
        return

    with pytest.raises(ValueError, match="the work's own fault"):
        await Leadership(database, KEY, "the work").run(fails)
    await Leadership(database, KEY, "the work").run(ends)

    with tables.connect(database) as connection:
        assert tables.rows(connection, "SELECT pg_try_advisory_lock(%(key)s)", key=KEY) == [(True,)]


@pytest.mark.gen_test
async def test_work_that_loses_the_log_is_begun_again(database: str) -> None:
    begun = []

    async def work() -> None:
        begun.append(1)
        if len(begun) == 1:
            raise LogUnavailable("away")

    await Leadership(database, KEY, "the work").run(work)

    assert len(begun) == 2
