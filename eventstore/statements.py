"""SQLAlchemy statements compiled once, for psycopg to run directly.

Executing through SQLAlchemy costs the log two thirds of its throughput (docs/decisions/0002), so it describes
tables and builds statements here, and psycopg's raw cursors run their text.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import psycopg

_dialect = psycopg.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


class Statement:
    """A statement's text with `$1`-style placeholders, and the order in which it takes its parameters."""

    __slots__ = ("_constants", "_names", "text")

    def __init__(self, element: sa.ClauseElement) -> None:
        compiled = element.compile(dialect=_dialect)
        self.text = str(compiled)
        self._names: list[str] = list(getattr(compiled, "positiontup", None) or ())
        self._constants: dict[str, Any] = {k: v for k, v in compiled.params.items() if v is not None}

    def bind(self, **values: object) -> list[object]:
        """The parameters in the order of the placeholders; raises KeyError if one is missing."""
        return [values[name] if name in values else self._constants[name] for name in self._names]


def inline(value: str) -> sa.ColumnElement[str]:
    """A constant text written into the statement, where the planner can see it; never for what came from outside."""
    return sa.literal_column("'" + value.replace("'", "''") + "'", sa.Text)


def ddl(element: sa.schema.ExecutableDDLElement) -> str:
    """The text of a CREATE or DROP."""
    return str(element.compile(dialect=_dialect)).strip()
