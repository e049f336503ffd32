"""`minutebook replay`: makes the read models anew from the log."""

from __future__ import annotations

import projections
from audit.command import Command
from audit.database import database
from audit.output import Output
from eventstore.rebuild import rebuild
from settings import Settings


def _replay(settings: Settings, out: Output) -> None:
    """Rebuild all read models from the log.

    They are made anew beside the live ones, and change places with them at the end: a server may run meanwhile.
    """
    with database(settings) as conninfo, out.progress("replaying") as progress:
        position = rebuild(conninfo, projections.ALL, progress=progress)
    out.note(f"rebuilt {len(projections.ALL)} read models from {position} events")


COMMAND = Command("replay", _replay, examples=("replay",))
