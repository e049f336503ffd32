"""Verification: an account's first connection verifies it, and a device that has verified another one flags it."""

from __future__ import annotations

import asyncio
import hmac

import pytest

import projections
from chat.commands import Account
from chat.connections import Connections
from chat.names import DeviceDigests
from chat.refusals import Malformed
from eventstore.log import EventLog
from projections.models import ReadModels
from projections.verification import Verification
from tests.conftest import SECRET

ALICE, BOB, CAROL = Account(1000, "alice"), Account(1001, "bob"), Account(1002, "carol")
NOT_VERIFIED, FLAGGED, VERIFIED = -1, 0, 1


@pytest.fixture
def verification(models: ReadModels) -> Verification:
    return models.verification


async def types(log: EventLog) -> list[str]:
    return [event.type for event in await log.read()]


@pytest.mark.gen_test
async def test_an_account_is_verified_by_its_first_connection_and_only_by_that(
    connections: Connections, verification: Verification, log: EventLog
) -> None:
    assert await verification.status(ALICE.account_id) == NOT_VERIFIED

    await connections.open(ALICE, 1, "a", "c", device="phone")
    await connections.open(ALICE, 1, "b", "c", device="another phone")

    assert await verification.status(ALICE.account_id) == VERIFIED
    assert await verification.status(BOB.account_id) == NOT_VERIFIED
    assert await types(log) == ["ConnectionOpened", "AccountVerified", "DeviceClaimed", "ConnectionOpened"]


@pytest.mark.gen_test
async def test_an_account_from_a_device_that_verified_another_one_is_flagged(
    connections: Connections, verification: Verification
) -> None:
    await connections.open(ALICE, 1, "a", "c", device="phone")
    await connections.open(BOB, 1, "b", "c", device="phone")
    await connections.open(CAROL, 1, "c", "c", device="Phone")

    statuses = [await verification.status(each.account_id) for each in (ALICE, BOB, CAROL)]
    assert statuses == [VERIFIED, FLAGGED, VERIFIED]
    digest = DeviceDigests(SECRET).digest("phone")
    assert await verification.account_of_device(digest) == ALICE.account_id


@pytest.mark.gen_test
@pytest.mark.parametrize("device", [None, ""])
async def test_accounts_that_tell_no_device_are_not_taken_for_one(
    connections: Connections, verification: Verification, device: str | None
) -> None:
    await connections.open(ALICE, 1, "a", "c", device=device)
    await connections.open(BOB, 1, "b", "c", device=device)

    assert [await verification.status(each.account_id) for each in (ALICE, BOB)] == [VERIFIED, VERIFIED]


@pytest.mark.gen_test
async def test_a_device_that_comes_after_the_verification_flags_nobody(
    connections: Connections, verification: Verification
) -> None:
    await connections.open(ALICE, 1, "a", "c", device="phone")
    await connections.open(BOB, 1, "b", "c")
    await connections.open(BOB, 1, "b2", "c", device="phone")

    assert await verification.status(BOB.account_id) == VERIFIED


@pytest.mark.gen_test
async def test_an_account_that_comes_by_several_connections_at_once_is_verified_once(
    connections: Connections, database: str, log: EventLog
) -> None:
    async with EventLog(database, projections.ALL) as second:
        nodes = [connections, Connections(second, ReadModels(second), SECRET, "other-node")]
        await asyncio.gather(
            *(nodes[number % 2].open(ALICE, 1, f"a{number}", "c", device=f"d{number % 3}") for number in range(10))
        )

    found = await types(log)
    assert [found.count(name) for name in ("ConnectionOpened", "AccountVerified", "DeviceClaimed")] == [10, 1, 1]


@pytest.mark.gen_test
async def test_of_accounts_that_come_from_one_device_at_once_all_but_one_are_flagged(
    connections: Connections, verification: Verification, database: str, log: EventLog
) -> None:
    accounts = [Account(1000 + number, f"user{number}") for number in range(10)]
    async with EventLog(database, projections.ALL) as second:
        nodes = [connections, Connections(second, ReadModels(second), SECRET, "other-node")]
        await asyncio.gather(
            *(
                nodes[number % 2].open(account, 1, f"c{number}", "c", device="phone")
                for number, account in enumerate(accounts)
            )
        )

    statuses = [await verification.status(account.account_id) for account in accounts]
    assert sorted(statuses) == [FLAGGED] * 9 + [VERIFIED]
    assert (await types(log)).count("DeviceClaimed") == 1


@pytest.mark.gen_test
async def test_a_device_has_at_most_256_characters(connections: Connections, log: EventLog) -> None:
    await connections.open(ALICE, 1, "a", "c", device="é" * 256)
    before = await log.head()

    with pytest.raises(Malformed, match="256") as malformed:
        await connections.open(BOB, 1, "b", "c", device="d" * 257)

    assert malformed.value.field == "device"
    assert await log.head() == before


def test_a_device_s_digest_stays_the_same_for_ever_and_does_not_tell_the_device() -> None:
    # A change here would let every device verify another account.
    key = hmac.new(SECRET, b"minutebook devices", "sha256").digest()

    assert DeviceDigests(SECRET).digest("phone") == hmac.new(key, b"phone", "sha256").hexdigest()[:32]
    assert DeviceDigests(b"another").digest("phone") != DeviceDigests(SECRET).digest("phone")
    assert len(DeviceDigests(SECRET).digest("no text at all: \ud800 \0 😀")) == 32
