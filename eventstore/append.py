"""The one statement that appends a batch: positions, versions, hashes, read models and wake-up in one round trip.

    head      takes the log's head row and moves it on by the size of the batch
    appended  writes the events at the positions that this gave, with their leaf hashes
    known     keeps the command ids, if the batch has any
    emptied   empties the data of earlier events, if the batch erases any (`eventstore.erasure`)
    change_N  runs the projections' changes over `appended`
    at last   NOTIFY, and the position before the batch

One statement outside a transaction block is one transaction, so it takes no BEGIN and no COMMIT. The head row's lock
lasts until the commit: positions are gapless, in commit order, and a reader needs to remember one number only.
Two processes never conflict over positions, since the database assigns them; the unique pair (stream, version)
is the arbiter between writers of one stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSON

from eventstore import merkle
from eventstore.erasure import ERASED, emptied
from eventstore.projection import Change, Projection
from eventstore.statements import Statement, inline
from eventstore.tables import commands, events, log_head

CHANNEL = "minutebook_events"


class AppendStatements:
    """The append statement in the variants that batches need, compiled at first use.

    A batch runs only the changes that its types of event can touch: a batch of messages pays for no account.
    """

    def __init__(self, projections: Iterable[Projection]) -> None:
        self._changes = tuple(change for projection in projections for change in projection.changes)
        self._compiled: dict[tuple[bool, bool, tuple[Change, ...]], Statement] = {}
        self._by_types: dict[tuple[bool, frozenset[str]], Statement] = {}

    def for_batch(self, types: frozenset[str], *, with_commands: bool) -> Statement:
        """The statement for a batch that holds events of these types."""
        found = self._by_types.get((with_commands, types))
        if found is None:
            wanted = tuple(change for change in self._changes if change.types & types)
            erases = ERASED in types
            key = (with_commands, erases, wanted)
            found = self._compiled.get(key) or append_statement(wanted, with_commands=with_commands, erases=erases)
            self._compiled[key] = self._by_types[with_commands, types] = found
        return found


def append_statement(changes: Sequence[Change], *, with_commands: bool, erases: bool = False) -> Statement:
    """Appends the arrays `streams, versions, types, data, metadata, salts` (of length `size`) and runs `changes`.

    With commands it takes `command_ids` too, and `command_firsts` and `command_lasts`, counted from 1 in the batch.
    It answers one row: `base`, the position before the batch, and `recorded_at`.
    """
    head = _head()
    appended = _appended(head)
    steps: list[sa.CTE] = [change.build(appended).cte(f"change_{i}") for i, change in enumerate(changes)]
    if with_commands:
        steps.append(_known(head))
    if erases:
        steps.append(emptied(appended))
    last = head.c.base + sa.bindparam("size", type_=sa.BigInteger)
    notify = sa.func.pg_notify(inline(CHANNEL), sa.cast(last, sa.Text))
    return Statement(sa.select(head.c.base, head.c.recorded_at, notify).add_cte(appended, *steps))


def _head() -> sa.CTE:
    size = sa.bindparam("size", type_=sa.BigInteger)
    moved = (
        sa.update(log_head)
        .values(
            position=log_head.c.position + size,
            # A clock that was set back must not put a later position before an earlier one in time.
            recorded_at=sa.func.greatest(sa.func.clock_timestamp(), log_head.c.recorded_at),
        )
        .returning(
            (log_head.c.position - size).label("base"),
            log_head.c.recorded_at,
            merkle.rfc3339_sql(log_head.c.recorded_at).label("recorded_text"),
        )
    )
    return moved.cte("head")


def _appended(head: sa.CTE) -> sa.CTE:
    batch = (
        sa.func.unnest(
            sa.bindparam("streams", type_=ARRAY(sa.Text)),
            sa.bindparam("versions", type_=ARRAY(sa.BigInteger)),
            sa.bindparam("types", type_=ARRAY(sa.Text)),
            sa.bindparam("data", type_=ARRAY(sa.Text)),
            sa.bindparam("metadata", type_=ARRAY(sa.Text)),
            sa.bindparam("salts", type_=ARRAY(BYTEA)),
        )
        .table_valued(
            sa.column("stream", sa.Text),
            sa.column("version", sa.BigInteger),
            sa.column("type", sa.Text),
            sa.column("data", sa.Text),
            sa.column("metadata", sa.Text),
            sa.column("salt", BYTEA),
            with_ordinality="ordinal",
        )
        .render_derived(name="batch")
    )
    position = head.c.base + batch.c.ordinal
    entry = merkle.entry_sql(
        position=position,
        stream=batch.c.stream,
        version=batch.c.version,
        event_type=batch.c.type,
        metadata=batch.c.metadata,
        recorded_at=head.c.recorded_text,
        data_hash=merkle.data_hash_sql(batch.c.salt, batch.c.data),
    )
    rows = sa.select(
        position,
        batch.c.stream,
        batch.c.version,
        batch.c.type,
        sa.cast(batch.c.data, JSON),
        sa.cast(batch.c.metadata, JSON),
        head.c.recorded_at,
        batch.c.salt,
        merkle.leaf_hash_sql(entry),
    ).select_from(batch.join(head, sa.true()))
    c = events.c
    insert = sa.insert(events).from_select([column.name for column in c if column is not c.data_hash], rows)
    return insert.returning(c.position, c.stream, c.version, c.type, c.data, c.recorded_at).cte("appended")


def _known(head: sa.CTE) -> sa.CTE:
    given = (
        sa.func.unnest(
            sa.bindparam("command_ids", type_=ARRAY(sa.Text)),
            sa.bindparam("command_firsts", type_=ARRAY(sa.BigInteger)),
            sa.bindparam("command_lasts", type_=ARRAY(sa.BigInteger)),
        )
        .table_valued(
            sa.column("command_id", sa.Text),
            sa.column("first", sa.BigInteger),
            sa.column("last", sa.BigInteger),
        )
        .render_derived(name="given")
    )
    rows = sa.select(given.c.command_id, head.c.base + given.c.first, head.c.base + given.c.last)
    insert = sa.insert(commands).from_select(
        ["command_id", "first_position", "last_position"], rows.select_from(given.join(head, sa.true()))
    )
    return insert.returning(commands.c.command_id).cte("known")
