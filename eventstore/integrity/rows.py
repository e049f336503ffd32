"""The statements by which an inspection reads the log: ranges of rows, each checked by the database as it reads them.

One statement reads a range once, and answers its entries, the leaf hashes and times as they are kept, and for each
check the positions that fail it. The database digests the data, which is most of what there is to read; the leaves are
hashed by who asked, by the processor's own instructions, which the embedded Postgres does not use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, aggregate_order_by

from eventstore import merkle
from eventstore.erasure import ERASED
from eventstore.integrity.findings import Finding, runs
from eventstore.integrity.tree import LEVELS
from eventstore.statements import Statement, inline
from eventstore.tables import checkpoints, commands, events, log_head, log_key, tree_hashes

# What is said of events that fail a check, by the check's name.
FAULTS: Mapping[str, str] = {
    "leaf": "the event is not the one that its leaf hash was made of: it was changed, moved or put in afterwards",
    "time": "recorded before the event that precedes it",
    "version": "of the event's stream, no event of the version before it precedes it",
    "erasure": "its data is gone, but no event says that it was erased",
    "remains": "holds data beside the digest that stands in for erased data, or a salt of another length",
    "command": "its command id is not known to be this event's",
}

# Those that the statement which reads a range makes itself.
ROW_CHECKS = ("version", "erasure", "remains")
# What stands in the entry of an event with a command id, and in no other: elsewhere JSON has a quote as an escape.
COMMAND_ID = b'"command_id":'

_one = sa.literal_column("1", sa.BigInteger)
_zero = sa.literal_column("0", sa.BigInteger)
_after = sa.bindparam("after", type_=sa.BigInteger)
_through = sa.bindparam("through", type_=sa.BigInteger)
_c = events.c


def findings(faults: Mapping[str, list[int] | None]) -> Iterator[Finding]:
    """The findings that the positions which failed the checks amount to."""
    for check, what in FAULTS.items():
        name = "erasure" if check == "remains" else check
        yield from (Finding(first, last, name, what) for first, last in runs(faults.get(check) or ()))


def read_range(*, versions: bool) -> Statement:
    """Reads the events with `:after < position <= :through`.

    It answers one row: how many there are; their leaf hashes in one piece; their times, eight bytes each; their
    entries, made anew, with a NUL between them; and then for each of `ROW_CHECKS` the positions that fail the check,
    null if none does. "erasure" has all positions without data, whether or not they were erased. Versions are looked
    up in their index, and left out where there is none.
    """
    failing = {
        "version": _no_predecessor() if versions else sa.false(),
        "erasure": _c.data.is_(None),
        "remains": _remains(),
    }
    position = aggregate_order_by(_c.position, _c.position)
    # What lacks a part has no entry, which is the leaf of nothing.
    entry = sa.func.coalesce(merkle.recorded_entry_sql(events), sa.literal_column("''::bytea"))
    return Statement(
        sa.select(
            sa.func.count(),
            _in_one_piece(_c.leaf_hash, "''::bytea"),
            _in_one_piece(sa.func.timestamptz_send(_recorded_at(), type_=BYTEA), "''::bytea"),
            _in_one_piece(entry, r"'\x00'::bytea"),
            *(sa.func.array_agg(position).filter(failing[check]) for check in ROW_CHECKS),
        ).where(_c.position > _after, _c.position <= _through)
    )


def _recorded_at() -> sa.ColumnElement[datetime]:
    """The time; one that is missing, where its column was opened for that, is before all others."""
    return sa.func.coalesce(_c.recorded_at, sa.literal_column("'-infinity'::timestamptz"))


def _in_one_piece(value: sa.ColumnElement[bytes], between: str) -> sa.ColumnElement[bytes]:
    separator: sa.ColumnElement[bytes] = sa.literal_column(between)
    return sa.func.string_agg(value, aggregate_order_by(separator, _c.position), type_=BYTEA)


def _no_predecessor() -> sa.ColumnElement[bool]:
    before = events.alias("before")
    # A scalar subquery stays a look-up for each row; an EXISTS might become a join of the whole table.
    found = (
        sa.select(sa.func.min(before.c.position))
        .where(before.c.stream == _c.stream, before.c.version == _c.version - _one)
        .scalar_subquery()
    )
    return sa.and_(_c.version > _one, sa.func.coalesce(found, _c.position) >= _c.position)


def _remains() -> sa.ColumnElement[bool]:
    other_length = sa.func.octet_length(_c.salt) != sa.literal_column(str(merkle.SALT_BYTES), sa.Integer)
    return sa.and_(_c.data.is_not(None), sa.or_(_c.data_hash.is_not(None), other_length))


def _unknown_commands() -> sa.Select[Any]:
    """The events of a range whose command id is not known to be theirs."""
    command_id = _c.metadata[inline("command_id")].astext
    known = (
        sa.select(sa.func.count())
        .where(
            commands.c.command_id == command_id,
            _c.position.between(commands.c.first_position, commands.c.last_position),
        )
        .scalar_subquery()
    )
    return (
        sa.select(_c.position)
        .where(_c.position > _after, _c.position <= _through, command_id.is_not(None), known == _zero)
        .order_by(_c.position)
    )


def _erased() -> sa.Subquery:
    """What `Erased` events name (`position`), and where they stand themselves (`by`). Nonsense in one names nothing."""
    teller = events.alias("teller")
    positions = teller.c.data[inline("positions")]
    array = sa.case((sa.func.json_typeof(positions) == inline("array"), positions))
    named = sa.func.json_array_elements_text(array).table_valued(sa.column("value", sa.Text)).lateral("named")
    number = sa.case(
        (named.c.value.regexp_match(inline("^[0-9]{1,18}$")), sa.cast(named.c.value, sa.BigInteger)),
    )
    return (
        sa.select(number.label("position"), teller.c.position.label("by"))
        .select_from(teller.join(named, sa.true()))
        .where(teller.c.type == inline(ERASED))
        .subquery("erased")
    )


def _named() -> sa.Select[Any]:
    """What was rightly erased in a range: what a later event names that does not itself say what was erased."""
    erased = _erased()
    in_range = erased.c.position.between(_after + _one, _through)
    named = sa.select(erased.c.position).join(events, _c.position == erased.c.position)
    return named.where(in_range, erased.c.by > erased.c.position, _c.type != inline(ERASED))


def _not_emptied() -> sa.Select[Any]:
    erased = _erased()
    return (
        sa.select(erased.c.position)
        .join(events, events.c.position == erased.c.position)
        .where(events.c.data.is_not(None))
        .order_by(erased.c.position)
    )


def _stray_commands() -> sa.Select[Any]:
    """The commands whose first or last event does not bear their id, or is not there."""
    first, last = events.alias("first"), events.alias("last")
    ids = (side.c.metadata[inline("command_id")].astext for side in (first, last))
    strays = [each.is_distinct_from(commands.c.command_id) for each in ids]
    return (
        sa.select(commands.c.first_position, commands.c.last_position)
        .outerjoin(first, first.c.position == commands.c.first_position)
        .outerjoin(last, last.c.position == commands.c.last_position)
        .where(sa.or_(*strays))
        .order_by(commands.c.first_position)
    )


def _kept_hashes() -> sa.Select[Any]:
    """The kept hashes of subtrees that end in the range; of all levels, since those above the first are few."""
    c = tree_hashes.c
    levels = sa.func.generate_series(_one, sa.literal_column(str(LEVELS))).table_valued("level").render_derived()
    width = sa.cast(sa.func.power(sa.literal_column("256"), levels.c.level), sa.BigInteger)
    return sa.select(c.level, c.index, c.hash).where(
        c.level == sa.cast(levels.c.level, sa.SmallInteger),
        c.index >= _after // width,
        c.index < _through // width,
    )


# Times as texts: Postgres has some that Python has not.
HEAD = Statement(sa.select(log_head.c.position, sa.cast(log_head.c.recorded_at, sa.Text)))
LAST = Statement(
    sa.select(_c.position, sa.cast(_c.recorded_at, sa.Text))
    .where(_c.position > _zero)
    .order_by(_c.position.desc())
    .limit(_one)
)
# What no reader of ranges comes upon.
OUT_OF_ORDER = Statement(
    sa.select(sa.func.count(), sa.func.min(_c.position), sa.func.max(_c.position)).where(
        sa.or_(_c.position <= _zero, _c.position.is_(None))
    )
)
NEXT = Statement(sa.select(sa.func.min(_c.position)).where(_c.position > _after))
LEAVES = Statement(
    sa.select(_c.position, _c.leaf_hash).where(_c.position > _after, _c.position <= _through).order_by(_c.position)
)
UNKNOWN_COMMANDS = Statement(_unknown_commands())
NAMED = Statement(_named())
NOT_EMPTIED = Statement(_not_emptied())
STRAY_COMMANDS = Statement(_stray_commands())
KEY = Statement(sa.select(log_key.c.verifier_key))
KEPT_HASHES = Statement(_kept_hashes())
KEPT_LEVELS = Statement(sa.select(tree_hashes.c.level, sa.func.max(tree_hashes.c.index)).group_by(tree_hashes.c.level))
CHECKPOINTS = Statement(
    sa.select(checkpoints.c.size, checkpoints.c.note)
    .where(checkpoints.c.size > _after, checkpoints.c.size <= _through)
    .order_by(checkpoints.c.size)
)
LARGEST_CHECKPOINT = Statement(
    sa.select(checkpoints.c.size, checkpoints.c.note).order_by(checkpoints.c.size.desc()).limit(_one)
)
