"""`minutebook status`: how the log, its read models and its nodes stand."""

from __future__ import annotations

import asyncio
from typing import Any

import projections
from audit.command import Command
from audit.database import database
from audit.output import Output
from eventstore.log import EventLog
from eventstore.merkle import rfc3339
from eventstore.status import LogStatus, log_status, rows_of
from projections.presence import Presence
from settings import Settings

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


async def look(conninfo: str) -> dict[str, Any]:
    """One look at everything, as JSON has it."""
    async with EventLog(conninfo, writable=False, readers=1) as log:
        status = await log_status(log)
        rows = await rows_of(log, [table for projection in projections.ALL for table in projection.tables])
        connections = await Presence(log.reader).open_by_node()
    return {
        "head": status.head,
        "recorded_at": None if status.recorded_at is None else rfc3339(status.recorded_at),
        "events_per_second": status.events_per_second,
        "events_bytes": status.events_bytes,
        "database_bytes": status.database_bytes,
        "checkpoint_size": status.checkpoint_size,
        "checkpoint_age_seconds": status.checkpoint_age_seconds,
        "uncovered_events": max(0, status.head - (status.checkpoint_size or 0)),
        "postgres": status.postgres,
        "revisions": status.revisions,
        # The append keeps them up in its own transaction: none is ever behind.
        "projections": [
            {
                "name": projection.name,
                "position": status.head,
                "rows": {table.name: rows.get(table.name) for table in projection.tables},
            }
            for projection in projections.ALL
        ],
        "nodes": _nodes(status, connections),
    }


def _nodes(status: LogStatus, connections: dict[str, int]) -> list[dict[str, Any]]:
    """The nodes that hold or held a lease, and those that left connections open."""
    return [
        {"node_id": node, "alive": status.nodes.get(node, False), "connections": connections.get(node, 0)}
        for node in sorted(status.nodes.keys() | connections.keys())
    ]


def show(out: Output, found: dict[str, Any]) -> None:
    """Shows a look: one line of JSON, or for people a list and two tables."""
    if out.is_json:
        out.record(found)
        return
    age = found["checkpoint_age_seconds"]
    told = {
        "head": found["head"],
        "recorded at": found["recorded_at"],
        "events a second": found["events_per_second"],
        "events with indexes": size(found["events_bytes"]),
        "whole database": size(found["database_bytes"]),
        "newest checkpoint": None if age is None else f"{found['checkpoint_size']} events, {age:.0f} s old",
        "not covered by it": found["uncovered_events"],
        "PostgreSQL": found["postgres"],
        "schema": ", ".join(found["revisions"]),
    }
    out.record({name: value if value is None else str(value) for name, value in told.items()})
    out.text("")
    out.rows(
        {**each, "rows": ", ".join(f"{table} {count}" for table, count in each["rows"].items())}
        for each in found["projections"]
    )
    out.text("")
    if not out.rows(found["nodes"]):
        out.text("no nodes")


def size(count: int) -> str:
    """A number of bytes in a unit in which it is short."""
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:,.1f} {_UNITS[unit]}" if unit else f"{count} bytes"


def _status(settings: Settings, out: Output) -> None:
    """Show how the log, its read models and its nodes stand.

    Events a second are those of the last minute; rows of tables are the database's estimates.
    """
    with database(settings) as conninfo:
        show(out, asyncio.run(look(conninfo)))


COMMAND = Command("status", _status, examples=("status", "status --json"))
