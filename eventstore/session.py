"""What every connection of the log sets up before its first statement."""

from __future__ import annotations

from typing import Any

import psycopg

# Statements are prepared once and their plans kept, so the plans must suit tables that grow a thousandfold: all of
# them are index ranges, and without sequential scans the planner says so from the first row on.
_SETTINGS = (
    "SET TIME ZONE 'UTC'; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off; "
    "SET lock_timeout = '10s'; SET statement_timeout = '30s'"
)


async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
    """Sets up a connection that runs prepared statements, each as a transaction of its own."""
    await connection.set_autocommit(True)
    connection.prepare_threshold = 0
    await connection.execute(_SETTINGS, prepare=False)
