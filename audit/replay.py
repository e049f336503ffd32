"""`minutebook replay`: makes the read models anew from the log, or looks whether they are what it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import click

import projections
from audit.command import Command
from audit.database import database
from audit.output import Output, Record
from eventstore.comparison import Difference
from eventstore.projection import Projection
from eventstore.rebuild import Rebuilt, check, rebuild
from settings import Settings

_NAMES = tuple(projection.name for projection in projections.ALL)


def _replay(settings: Settings, out: Output, names: Sequence[str], compare: bool) -> int:
    """Rebuild read models from the log, all of them or those named.

    They are made anew beside the live ones, and change places with them at the end: a server may run meanwhile.
    Ctrl-C leaves the live ones as they are. With --check nothing is changed: what differs is shown, and the exit code
    is 1 if anything does.

    The read models are accounts, tokens, channels, messages, dms, presence, verification, moderation, deliveries,
    bridges and discord_users.
    """
    wanted = _wanted(names)
    with database(settings) as conninfo:
        try:
            return _check(conninfo, out, wanted) if compare else _rebuild(conninfo, out, wanted)
        except KeyboardInterrupt:
            out.note("interrupted: the read models are as they were")
            raise


def _wanted(names: Iterable[str]) -> list[Projection]:
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise click.UsageError(f"there is no read model {unknown[0]!r}: there are {', '.join(_NAMES)}")
    return [projection for projection in projections.ALL if not names or projection.name in names]


def _rebuild(conninfo: str, out: Output, wanted: Sequence[Projection]) -> int:
    with out.progress("replaying") as progress:
        rebuilt = rebuild(conninfo, wanted, progress=progress)
    out.note(_swapped(rebuilt))
    out.note(f"rebuilt {_counted(len(wanted), 'read model')} from {_counted(rebuilt.position, 'event')}")
    return 0


def _swapped(rebuilt: Rebuilt) -> str:
    tried = "" if rebuilt.attempts == 1 else f", at the {rebuilt.attempts}. attempt"
    return f"swapped while appends waited for {rebuilt.blocked * 1000:.0f} ms{tried}"


def _check(conninfo: str, out: Output, wanted: Sequence[Projection]) -> int:
    with out.progress("replaying") as progress:
        found = iter(check(conninfo, wanted, progress=progress))
        first = next(found, None)
    if first is None:
        out.note(f"no differences between {_counted(len(wanted), 'read model')} and the log")
        return 0
    count = out.rows(_shown(first, found, whole=out.is_json))
    out.note(f"{_counted(count, 'difference')} between {_counted(len(wanted), 'read model')} and the log")
    return 1


def _shown(first: Difference, others: Iterable[Difference], *, whole: bool) -> Iterator[Record]:
    """Differences as records: with the rows as a whole, or only the columns that differ where there are two rows."""
    yield _record(first, whole=whole)
    for difference in others:
        yield _record(difference, whole=whole)


def _record(difference: Difference, *, whole: bool) -> Record:
    live, rebuilt = difference.before, difference.after
    if not whole and live is not None and rebuilt is not None:
        live, rebuilt = ({name: row[name] for name in difference.changed} for row in (live, rebuilt))
    return {"table": difference.table, "key": difference.key, "live": live, "rebuilt": rebuilt}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


COMMAND = Command(
    "replay",
    _replay,
    (
        click.Argument(["names"], nargs=-1, metavar="[READ MODEL]..."),
        click.Option(
            ["--check", "compare"], is_flag=True, help="Compare what is rebuilt with the live, and swap nothing."
        ),
    ),
    examples=("replay", "replay messages dms", "replay --check"),
)
