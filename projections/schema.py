"""What the tables of all read models share."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TIMESTAMP

from eventstore.projection import Source, of_type
from eventstore.tables import NAMING

metadata = sa.MetaData(naming_convention=NAMING)

MOMENT = TIMESTAMP(timezone=True)


def told(source: Source, *types: str) -> sa.ColumnElement[bool]:
    """The condition that an event of the source has one of these types and still says something.

    The data of one that was erased is null: it changes no read model.
    """
    return sa.and_(of_type(source, *types), source.c.data.is_not(None))


def named_by(source: Source, prefix: str) -> sa.ColumnElement[str]:
    """The name behind the prefix of the events' streams, of those things that no event's data names."""
    name: sa.ColumnElement[str] = sa.func.substr(
        source.c.stream, sa.literal_column(str(len(prefix) + 1)), type_=source.c.stream.type
    )
    return name
