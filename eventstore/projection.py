"""What a read model is to the log: tables, and the statements by which a range of events changes them.

A change is set-based: one statement over a *source*, which has the columns `position, stream, version, type, data,
recorded_at` of the events in question. The append hands it the new batch, inside its own transaction; a rebuild
hands it ranges of the log. It is one definition at two speeds, so a change must give the same result however the
log is cut into ranges:

* within one append all changes see the tables as they were before it, so a fact and its undoing in one range are
  settled by the statement itself (by position), never by the order in which statements run;
* a change reads nothing but the source and the projection's own tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.statements import inline
from eventstore.tables import events

Source = sa.FromClause
Dml = sa.Insert | sa.Update | sa.Delete


@dataclass(frozen=True)
class Change:
    """One statement of a projection, and the types of event without which it changes nothing."""

    types: frozenset[str]
    build: Callable[[Source], Dml]


@dataclass(frozen=True)
class Projection:
    """A read model: its name, its tables, and its changes in the order in which a rebuild runs them.

    `unordered` says that its inserts may run over all ranges of the log in any order, and then the other changes over
    all ranges in any order, and come to the same: no row is inserted twice, none that was deleted comes back, and no
    insert looks for one that is there. A rebuild then has several ranges under way, and makes the keys in between.
    """

    name: str
    tables: tuple[sa.Table, ...]
    changes: tuple[Change, ...]
    unordered: bool = False


def of_type(source: Source, *types: str) -> sa.ColumnElement[bool]:
    """The condition that an event of the source has one of these types."""
    if len(types) == 1:
        return source.c.type == inline(types[0])
    return source.c.type.in_([inline(name) for name in types])


def text(source: Source, key: str) -> sa.ColumnElement[str]:
    """The text at `key` of the events' data."""
    value: sa.ColumnElement[str] = source.c.data[inline(key)].astext
    return value


def number(source: Source, key: str) -> sa.ColumnElement[int]:
    """The whole number at `key` of the events' data."""
    return sa.cast(text(source, key), sa.BigInteger)


def log_range() -> Source:
    """The events with `:after < position <= :through`, as the source of a rebuild."""
    c = events.c
    columns = sa.select(c.position, c.stream, c.version, c.type, c.data, c.recorded_at)
    return columns.where(*_in_range()).subquery("range")


def types_in_range() -> sa.Select[str]:
    """The types of the events in that range, each once."""
    return sa.select(events.c.type).where(*_in_range()).distinct()


def _in_range() -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    after, through = (sa.bindparam(name, type_=sa.BigInteger) for name in ("after", "through"))
    return events.c.position > after, events.c.position <= through
