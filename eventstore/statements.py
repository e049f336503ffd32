"""SQLAlchemy statements compiled once, to be run without it.

Executing through SQLAlchemy costs the log two thirds of its throughput (docs/decisions/0002), so it describes
tables and builds statements here, and `eventstore.connection` runs their text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import psycopg

from eventstore.wire import scalar

_dialect = psycopg.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


class Statement:
    """A statement's text with `$1`-style placeholders; `names` are those of its parameters, in their order.

    It is compiled when it is first used: there are many, and a command of the line needs a few of them.
    """

    __slots__ = ("_constants", "_element", "names", "text")

    _constants: dict[str, bytes]
    names: list[str]
    text: str

    def __init__(self, element: sa.ClauseElement) -> None:
        self._element = element

    def __getattr__(self, name: str) -> Any:
        """Fills the slots; once they are filled, nobody comes by here."""
        if name not in ("_constants", "names", "text"):
            raise AttributeError(name)
        compiled = self._element.compile(dialect=_dialect)
        self.names = list(getattr(compiled, "positiontup", None) or ())
        self._constants = {name: scalar(value) for name, value in compiled.params.items() if value is not None}
        self.text = str(compiled)
        return getattr(self, name)

    def bind(self, values: Mapping[str, object]) -> list[bytes]:
        """The parameters in their binary form, in the order of the placeholders; raises KeyError if one is missing."""
        constants = self._constants
        return [constants[name] if name in constants else scalar(values[name]) for name in self.names]


def inline(value: str) -> sa.ColumnElement[str]:
    """A constant text written into the statement, where the planner can see it; never for what came from outside."""
    return sa.literal_column("'" + value.replace("'", "''") + "'", sa.Text)


def ddl(element: sa.schema.ExecutableDDLElement) -> str:
    """The text of a CREATE or DROP."""
    return str(element.compile(dialect=_dialect)).strip()
