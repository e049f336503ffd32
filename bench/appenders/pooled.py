"""Measures one statement a commit through psycopg's pool: for peers that are a statement or a server function.

The statement is prepared. In autocommit mode an append is one round trip, the least that it can be without batching;
without it psycopg does what it does by default, BEGIN, the statement and COMMIT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import psycopg
import psycopg_pool

from bench.appenders import POOL
from bench.closed_loop import run_tasks
from bench.load import Load, Measured


def measure_statement(
    conninfo: str,
    load: Load,
    ready: Callable[[], None],
    text: str,
    parameters: Callable[[], Sequence[object]],
    *,
    autocommit: bool = True,
) -> Measured:
    """Measures a statement with `$1`-style placeholders, whose parameters are made for each call."""

    async def run() -> Measured:
        async with psycopg_pool.AsyncConnectionPool(
            conninfo, min_size=POOL, max_size=POOL, open=False, kwargs={"autocommit": autocommit}
        ) as pool:
            await pool.wait()

            async def append() -> None:
                async with pool.connection() as connection:
                    await psycopg.AsyncRawCursor(connection).execute(text, parameters(), prepare=True)

            ready()
            return await run_tasks(append, load)

    return asyncio.run(run())
