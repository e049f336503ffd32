"""`minutebook status`: what it says of the log is the case."""

from __future__ import annotations

import asyncio
import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import projections
from audit.output import Output
from audit.status import look, show, size
from chat.commands import Commands
from chat.connections import Connections
from eventstore.canonical import encode
from eventstore.events import Context, NewEvent, StreamWrite
from eventstore.leases import Leases
from eventstore.log import EventLog
from eventstore.merkle import rfc3339
from eventstore.status import RATE_SECONDS
from tests import tables
from tests.conftest import NODE

CONTEXT = Context(None, "c")
FACT = NewEvent("Fact", encode({}))
KEYS = [
    *("head", "recorded_at", "events_per_second", "events_bytes", "database_bytes", "checkpoint_size"),
    *("checkpoint_age_seconds", "uncovered_events", "postgres", "revisions", "projections", "nodes"),
]


def lines(found: dict[str, Any]) -> list[str]:
    """What people are shown, without the blanks in a row."""
    shown = io.StringIO()
    show(Output(as_json=False, stdout=shown), found)
    return [" ".join(line.split()) for line in shown.getvalue().splitlines()]


@pytest.mark.gen_test
async def test_an_empty_log_has_a_status(database: str) -> None:
    found = await look(database)

    assert list(found) == KEYS
    nothing = {"head": 0, "recorded_at": None, "events_per_second": 0, "checkpoint_size": None, "uncovered_events": 0}
    assert {key: found[key] for key in nothing} == nothing
    assert found["checkpoint_age_seconds"] is None
    assert found["nodes"] == []
    assert "no nodes" in lines(found)


@pytest.mark.gen_test
async def test_a_status_tells_the_end_of_the_log_and_the_rate_of_the_last_minute(
    bare_log: EventLog, database: str
) -> None:
    for count in (5, 30):
        await bare_log.append(StreamWrite("s", [FACT] * count, expected_version=None), context=CONTEXT)
    long_ago = datetime.now(UTC) - timedelta(seconds=RATE_SECONDS + 60)
    with tables.connect(database) as connection:
        tables.run(connection, "ALTER TABLE events DISABLE TRIGGER ALL")
        tables.rows(connection, "UPDATE events SET recorded_at = %(at)s WHERE position <= 5 RETURNING 1", at=long_ago)
    last = await bare_log.event_at(35)
    assert last is not None

    found = await look(database)

    assert (found["head"], found["recorded_at"]) == (35, rfc3339(last.recorded_at))
    assert found["events_per_second"] == 30 / RATE_SECONDS
    assert 0 < found["events_bytes"] < found["database_bytes"]
    assert re.match(r"\d\d", found["postgres"])
    assert found["revisions"] == sorted(tables_at(database))
    assert [(each["name"], each["position"]) for each in found["projections"]] == [
        (projection.name, 35) for projection in projections.ALL
    ]


def tables_at(database: str) -> list[str]:
    """The revisions that the database says it is at."""
    with tables.connect(database) as connection:
        return [name for [name] in tables.rows(connection, "SELECT version_num FROM alembic_version")]


@pytest.mark.gen_test
async def test_a_status_tells_what_the_newest_checkpoint_covers(bare_log: EventLog, database: str) -> None:
    await bare_log.append(StreamWrite("s", [FACT] * 9), context=CONTEXT)
    with tables.connect(database) as connection:
        for covered, age in ((3, 500), (7, 90)):
            tables.run(
                connection,
                f"INSERT INTO checkpoints VALUES ({covered}, 'a note', clock_timestamp() - interval '{age} s')",
            )

    found = await look(database)

    assert (found["checkpoint_size"], found["uncovered_events"]) == (7, 2)
    assert 90 <= found["checkpoint_age_seconds"] < 120
    assert any(re.fullmatch(r"newest checkpoint 7 events, (9\d|1[01]\d) s old", line) for line in lines(found))


@pytest.mark.gen_test
async def test_a_status_tells_the_nodes_with_their_leases_and_connections(
    commands: Commands, connections: Connections, database: str
) -> None:
    alice = await commands.register("Alice", "Passw0rd!", "c")
    await asyncio.gather(*(connections.open(alice, 1, f"c{number}", "c") for number in range(3)))
    for node in ("idle", "late"):
        leases = Leases(database, node)
        await leases.renew()
        await leases.close()
    with tables.connect(database) as connection:
        tables.run(connection, "UPDATE node_leases SET renewed_at = to_timestamp(0) WHERE node_id = 'late'")
        tables.run(connection, "ANALYZE connections")

    found = await look(database)

    assert found["nodes"] == [
        {"node_id": "idle", "alive": True, "connections": 0},
        {"node_id": "late", "alive": False, "connections": 0},
        # Its lease was dropped, or it never had one.
        {"node_id": NODE, "alive": False, "connections": 3},
    ]
    assert f"{NODE} no 3" in lines(found)
    [presence] = [each for each in found["projections"] if each["name"] == "presence"]
    assert presence["rows"] == {"connections": 3}
    assert any(re.fullmatch(r"presence \d+ connections 3", line) for line in lines(found))


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (8_192_000, "8.2 MB"), (10**16, "10,000.0 TB")],
)
def test_sizes_are_short(count: int, shown: str) -> None:
    assert size(count) == shown
