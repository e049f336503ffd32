"""How the log stands: its end and its rate, its size, its newest checkpoint, its nodes, and its database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa

from eventstore.leases import LEASE_SECONDS
from eventstore.log import EventLog
from eventstore.statements import Statement, inline
from eventstore.tables import checkpoints, events, log_head, node_leases

# Over how many seconds the rate is taken.
RATE_SECONDS = 60


class LogStatus(msgspec.Struct, frozen=True):
    """One look at the log. Sizes are in bytes; `recorded_at` is None while it is empty, as is what no checkpoint says.

    `nodes` has each node that holds or held a lease, and whether it holds it now. `revisions` are those of the schema.
    """

    head: int
    recorded_at: datetime | None
    events_per_second: float
    events_bytes: int
    database_bytes: int
    checkpoint_size: int | None
    checkpoint_age_seconds: float | None
    nodes: dict[str, bool]
    postgres: str
    revisions: list[str]


def _looking() -> Statement:
    newest = sa.select(checkpoints.c.size, checkpoints.c.signed_at).order_by(checkpoints.c.size.desc())
    checkpoint = newest.limit(sa.literal_column("1")).subquery("checkpoint")
    now = sa.func.clock_timestamp()
    age = sa.cast(sa.func.extract("epoch", now - checkpoint.c.signed_at), sa.Double)
    return Statement(
        sa.select(
            now,
            log_head.c.position,
            log_head.c.recorded_at,
            sa.func.pg_total_relation_size(inline(events.name)),
            sa.func.pg_database_size(sa.func.current_database()),
            checkpoint.c.size,
            age,
            sa.func.current_setting(inline("server_version")),
        ).select_from(log_head.join(checkpoint, sa.true(), isouter=True))
    )


_LOOK = _looking()
_alive = node_leases.c.renewed_at >= sa.func.clock_timestamp() - sa.literal_column(
    f"interval '{LEASE_SECONDS} seconds'"
)
_NODES = Statement(sa.select(node_leases.c.node_id, _alive).order_by(node_leases.c.node_id))
_REVISIONS = Statement(sa.text("SELECT version_num FROM alembic_version ORDER BY version_num"))


async def log_status(log: EventLog) -> LogStatus:
    """Looks at the log; raises `LogUnavailable`."""
    [(now, head, recorded_at, events_bytes, database_bytes, size, age, postgres)] = await log.reader.fetch(_LOOK)
    lately = head - await log.position_at(now - timedelta(seconds=RATE_SECONDS))
    return LogStatus(
        head=head,
        recorded_at=recorded_at if head else None,
        # What was appended since the look counts for the next one.
        events_per_second=round(max(lately, 0) / RATE_SECONDS, 3),
        events_bytes=events_bytes,
        database_bytes=database_bytes,
        checkpoint_size=size,
        checkpoint_age_seconds=None if age is None else round(age, 3),
        nodes=dict(await log.reader.fetch(_NODES)),
        postgres=postgres,
        revisions=[name for (name,) in await log.reader.fetch(_REVISIONS)],
    )


async def rows_of(log: EventLog, tables: Sequence[sa.Table]) -> dict[str, int]:
    """About how many rows each table has, as the database estimates it."""
    c = sa.table("pg_class", sa.column("oid"), sa.column("relname"), sa.column("reltuples")).c
    # Of a table that was never analysed there is only what was counted as it was written.
    analysed = sa.cast(c.reltuples, sa.BigInteger)
    estimate = sa.case((c.reltuples >= sa.literal_column("0"), analysed), else_=sa.func.pg_stat_get_live_tuples(c.oid))
    names = [inline(table.name) for table in tables]
    found = sa.select(sa.cast(c.relname, sa.Text), estimate).where(c.relname.in_(names))
    visible = found.where(sa.func.pg_table_is_visible(c.oid))
    return {name: int(count) for name, count in await log.reader.fetch(Statement(visible))}
