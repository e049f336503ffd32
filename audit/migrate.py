"""`minutebook migrate`: brings the database's tables up to date."""

from __future__ import annotations

import projections
from audit.command import Command
from audit.database import database
from audit.output import Output
from eventstore.migrate import migrate
from settings import Settings


def _migrate(settings: Settings, out: Output) -> None:
    """Bring the database's tables up to date.

    The server does this itself when it starts; for those who want it done before.
    """
    with database(settings) as conninfo:
        applied = migrate(conninfo, [projections.MIGRATIONS])
    out.note(f"applied {', '.join(applied)}" if applied else "nothing to do")


COMMAND = Command(
    "migrate", _migrate, examples=("migrate --database-url 'postgresql://minutebook@db.example/minutebook'",)
)
