"""Leases: which nodes are alive, by the database's clock, and what a node learns that was away for too long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from eventstore import leases as leases_module
from eventstore.errors import LogUnavailable
from eventstore.leases import LEASE_SECONDS, RENEW_SECONDS, Leases
from tests import tables
from tests.conftest import until
from tests.tables import Outage


@asynccontextmanager
async def lease(database: str, node_id: str = "node") -> AsyncIterator[Leases]:
    made = Leases(database, node_id)
    try:
        yield made
    finally:
        await made.close()


def let_pass(database: str, node_id: str, seconds: float) -> None:
    """Puts a lease as far back as if so much time had passed since."""
    with tables.connect(database) as connection:
        connection.execute(
            "UPDATE node_leases SET renewed_at = renewed_at - make_interval(secs => %s) WHERE node_id = %s",
            (seconds, node_id),
        )


def renewed_at(database: str) -> list[tuple[object, ...]]:
    with tables.connect(database) as connection:
        return tables.rows(connection, "SELECT node_id, renewed_at FROM node_leases ORDER BY node_id")


def test_a_lease_outlasts_several_renewals_that_fail() -> None:
    assert LEASE_SECONDS >= 3 * RENEW_SECONDS


@pytest.mark.gen_test
async def test_a_node_is_alive_until_it_was_not_heard_of_for_as_long_as_a_lease_lasts(database: str) -> None:
    async with lease(database, "a") as a, lease(database, "b") as b:
        assert (await a.alive(), await a.expired()) == ([], [])
        await a.renew()
        await b.renew()
        assert (await a.alive(), await a.expired()) == (["a", "b"], [])

        let_pass(database, "b", LEASE_SECONDS - 5)
        assert (await a.alive(), await a.expired()) == (["a", "b"], [])
        let_pass(database, "b", 6)
        assert (await a.alive(), await a.expired()) == (["a"], ["b"])

        await b.renew()
        assert (await a.alive(), await a.expired()) == (["a", "b"], [])


@pytest.mark.gen_test
async def test_a_lease_that_was_given_back_is_neither_alive_nor_expired(database: str) -> None:
    async with lease(database, "a") as a, lease(database, "b") as b:
        await a.renew()
        await b.renew()

        await b.release()

        assert (await a.alive(), await a.expired()) == (["a"], [])


@pytest.mark.gen_test
async def test_closing_leaves_the_lease_to_lapse(database: str) -> None:
    async with lease(database, "a") as a:
        async with lease(database, "b") as b:
            await b.renew()

        assert await a.alive() == ["b"]


@pytest.mark.gen_test
async def test_a_node_that_was_away_for_too_long_is_told_once(database: str) -> None:
    async with lease(database, "a") as a:
        assert not await a.renew()
        assert not await a.renew()
        let_pass(database, "a", LEASE_SECONDS - 5)
        assert not await a.renew()

        let_pass(database, "a", LEASE_SECONDS + 1)
        assert await a.renew()
        assert not await a.renew()


@pytest.mark.gen_test
async def test_a_node_that_others_have_forgotten_is_told_too(database: str) -> None:
    async with lease(database, "a") as a, lease(database, "b") as b:
        await a.renew()
        let_pass(database, "a", LEASE_SECONDS + 1)
        await b.drop(await b.expired())
        assert renewed_at(database) == []

        assert await a.renew()
        assert await b.alive() == ["a"]


@pytest.mark.gen_test
async def test_a_node_that_takes_the_lease_of_one_before_it_is_told_nothing(database: str) -> None:
    async with lease(database, "a") as before:
        await before.renew()
    let_pass(database, "a", LEASE_SECONDS + 1)

    async with lease(database, "a") as after:
        assert not await after.renew()


@pytest.mark.gen_test
async def test_a_node_that_came_back_is_not_forgotten(database: str) -> None:
    async with lease(database, "a") as a, lease(database, "b") as b:
        await a.renew()
        let_pass(database, "a", LEASE_SECONDS + 1)
        expired = await b.expired()
        await a.renew()

        await b.drop([*expired, "never heard of"])

        assert await b.alive() == ["a"]


@pytest.mark.gen_test
async def test_running_renews_it_again_and_again_through_an_outage(
    database: str, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "RENEW_SECONDS", 0.01)

    async with lease(database, "a") as a:
        running = asyncio.create_task(a.run())
        await until(lambda: renewed_at(database))
        first = renewed_at(database)
        await until(lambda: renewed_at(database) != first)

        outage.begin()
        with pytest.raises(LogUnavailable):
            await a.renew()
        assert not running.done()
        outage.end()
        last = renewed_at(database)
        await until(lambda: renewed_at(database) != last)

        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@pytest.mark.gen_test
async def test_a_lease_needs_no_slot_of_a_busy_log(database: str) -> None:
    with tables.connect(database) as connection:
        before = tables.rows(connection, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        async with lease(database, "a") as a:
            await a.renew()
            after = tables.rows(connection, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

    assert after[0][0] == before[0][0] + 1
