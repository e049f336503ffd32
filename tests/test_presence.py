"""Connections and who is online: opened, closed, opened again, by several nodes at once; and what a dead one left."""

from __future__ import annotations

import asyncio

import pytest

import projections
from chat.commands import Account, Commands
from chat.connections import NODE_LOST, ConnectionHistory, Connections, OpenConnection
from chat.names import BOT_ID
from eventstore.errors import LogUnavailable, WrongVersion
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from projections.models import ReadModels
from projections.presence import Presence
from tests.conftest import NODE, SECRET
from tests.tables import Outage

ALICE, BOB = Account(1000, "alice"), Account(1001, "bob")


@pytest.fixture
def presence(models: ReadModels) -> Presence:
    return models.presence


@pytest.fixture
def other_node(log: EventLog, models: ReadModels) -> Connections:
    return Connections(log, models, SECRET, "other-node")


async def of_connections(log: EventLog) -> list[RecordedEvent]:
    return [event for event in await log.read(limit=10_000) if event.stream.startswith("connection-")]


# --- being online ------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_account_is_online_from_its_first_connection_to_the_end_of_its_last(
    connections: Connections, presence: Presence
) -> None:
    assert not await presence.is_online(ALICE.account_id)
    await connections.open(ALICE, 1, "a", "c")
    await connections.open(ALICE, 1, "b", "c")

    await connections.close([("a", ALICE.account_id, 1)], "transport close")
    assert await presence.is_online(ALICE.account_id)
    assert not await presence.is_online(BOB.account_id)

    await connections.close([("b", ALICE.account_id, 1)], "transport close")
    assert not await presence.is_online(ALICE.account_id)


@pytest.mark.gen_test
async def test_accounts_are_counted_not_connections_and_the_bot_is_one(
    connections: Connections, other_node: Connections, presence: Presence
) -> None:
    assert await presence.online_accounts() == 1
    assert await presence.is_online(BOT_ID)
    for number, account in enumerate([ALICE, ALICE, BOB]):
        await connections.open(account, 1, f"c{number}", "c")
    await other_node.open(BOB, 1, "elsewhere", "c")

    assert await presence.online_accounts() == 3


@pytest.mark.gen_test
async def test_the_position_of_an_opening_is_told(connections: Connections, log: EventLog) -> None:
    opened = await connections.open(ALICE, 7, "a", "request")
    event = await log.event_at(opened)

    assert event is not None
    assert (event.type, event.stream, event.version) == ("ConnectionOpened", "connection-a", 1)
    assert event.body() == {"account_id": ALICE.account_id, "node_id": NODE, "token_generation": 7}


# --- closing -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_more_than_a_batch_is_closed_each_once_and_those_that_are_closed_already_are_left_out(
    connections: Connections, presence: Presence, log: EventLog
) -> None:
    await asyncio.gather(*(connections.open(ALICE, 1, f"c{n}", "c") for n in range(600)))
    closings = [(f"c{n}", ALICE.account_id, 1) for n in range(600)]

    await connections.close(closings[100:101], "first")
    await connections.close([*closings, ("never", ALICE.account_id, 1)], "all")

    assert await presence.open_of_node(NODE) == []
    closed = [event for event in await of_connections(log) if event.type == "ConnectionClosed"]
    assert sorted(event.stream for event in closed) == sorted(f"connection-c{n}" for n in range(600))
    assert [event.body()["reason"] for event in closed if event.stream == "connection-c100"] == ["first"]


@pytest.mark.gen_test
async def test_closing_while_the_log_is_away_says_so(connections: Connections, log: EventLog, outage: Outage) -> None:
    await connections.open(ALICE, 1, "a", "c")
    outage.begin()
    try:
        with pytest.raises(LogUnavailable):
            await connections.close([("a", ALICE.account_id, 1)], "gone")
    finally:
        outage.end()


# --- the same connection again -----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_connection_s_history_is_that_of_its_newest_opening(
    connections: Connections, other_node: Connections, log: EventLog
) -> None:
    assert await connections.history("a") is None
    first = await connections.open(ALICE, 1, "a", "c")
    assert await connections.history("a") == ConnectionHistory(ALICE.account_id, 1, NODE, first, first, 1, None)

    await connections.close([("a", ALICE.account_id, 1)], "gone")
    [*_, closed] = await log.read()
    assert await connections.history("a") == ConnectionHistory(
        ALICE.account_id, 1, NODE, first, first, 2, closed.recorded_at
    )

    again = await other_node.open(ALICE, 2, "a", "c", version=2)
    assert await connections.history("a") == ConnectionHistory(ALICE.account_id, 2, "other-node", first, again, 3, None)


@pytest.mark.gen_test
@pytest.mark.parametrize("nonsense", ["", " ", "a b", "a\0", "é", "\ud800", "x" * 1000, "a\n", "*"])
async def test_what_can_be_no_connection_s_id_has_no_history(connections: Connections, nonsense: str) -> None:
    assert await connections.history(nonsense) is None


@pytest.mark.gen_test
async def test_a_long_history_is_read_to_its_end(connections: Connections) -> None:
    for version in range(0, 1002, 2):
        await connections.open(ALICE, version, "a", "c", version=version)
        await connections.close([("a", ALICE.account_id, version + 1)], "gone")

    history = await connections.history("a")

    assert history is not None
    assert (history.token_generation, history.version) == (1000, 1002)


@pytest.mark.gen_test
async def test_of_several_who_open_one_connection_at_once_one_goes_ahead(
    connections: Connections, other_node: Connections, log: EventLog
) -> None:
    for version in (0, 2):
        outcomes = await asyncio.gather(
            *(node.open(ALICE, 1, "a", "c", version=version) for node in (connections, other_node) * 3),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes].count(WrongVersion) == 5
        assert [type(outcome) for outcome in outcomes].count(int) == 1
        await connections.close([("a", ALICE.account_id, version + 1)], "gone")

    assert len(await of_connections(log)) == 4


@pytest.mark.gen_test
async def test_a_connection_that_moved_to_another_node_is_not_closed_by_the_node_that_it_left(
    connections: Connections, other_node: Connections, presence: Presence
) -> None:
    await connections.open(ALICE, 1, "a", "c")
    await other_node.open(ALICE, 1, "a", "c", version=1)

    await connections.close([("a", ALICE.account_id, 1)], "ping timeout")

    assert await presence.is_online(ALICE.account_id)
    assert await presence.nodes() == ["other-node"]
    assert await presence.open_of_node("other-node") == [OpenConnection("a", ALICE.account_id, 2)]
    assert await presence.open_of_node(NODE) == []


# --- what a dead node left ---------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_sweeping_closes_what_dead_nodes_left_and_nothing_else(
    connections: Connections, other_node: Connections, presence: Presence, log: EventLog
) -> None:
    await connections.open(ALICE, 1, "a", "c")
    for number in range(3):
        await other_node.open(BOB, 1, f"b{number}", "c")
    await other_node.close([("b0", BOB.account_id, 1)], "gone")
    assert await presence.nodes() == ["other-node", NODE]

    assert await connections.sweep(["other-node", "never-heard-of"]) == 2
    assert await connections.sweep(["other-node"]) == 0

    assert await presence.nodes() == [NODE]
    assert not await presence.is_online(BOB.account_id)
    assert [event.body()["reason"] for event in (await log.read())[-2:]] == [NODE_LOST] * 2


@pytest.mark.gen_test
async def test_several_nodes_that_sweep_at_once_close_each_connection_once(
    connections: Connections, database: str, log: EventLog
) -> None:
    for number in range(20):
        await connections.open(ALICE, 1, f"a{number}", "c")

    async with EventLog(database, projections.ALL) as second:
        sweepers = [Connections(each, ReadModels(each), SECRET, "sweeper") for each in (log, second)]
        closed = await asyncio.gather(*(sweeper.sweep([NODE]) for sweeper in sweepers))

    assert sum(closed) == 20
    assert len(await of_connections(log)) == 40


@pytest.mark.gen_test
async def test_a_restart_is_asked_for_by_an_event_of_its_own(connections: Connections, log: EventLog) -> None:
    await connections.request_restart(5)
    await connections.request_restart(6)

    events = await log.read()

    assert [(event.type, event.version, event.body()) for event in events] == [
        ("RestartRequested", 1, {"reconnect_in": 5}),
        ("RestartRequested", 1, {"reconnect_in": 6}),
    ]


@pytest.mark.gen_test
async def test_a_connection_tells_the_log_nothing_of_its_token(
    connections: Connections, commands: Commands, log: EventLog
) -> None:
    alice = await commands.register("alice", "Passw0rd!", "c")
    token, _ = await commands.generate_token(alice, "c")
    await connections.open(alice, (await commands.bearer(token)).generation, "a", "c", device="phone")

    for event in await log.read():
        assert token.encode() not in (event.data or b"") + event.metadata
        assert b"phone" not in (event.data or b"") + event.metadata
