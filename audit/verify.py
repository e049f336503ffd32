"""`minutebook verify`: whether the log is still what was recorded."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

import projections
from audit.command import Command, CommandFailed
from audit.database import database
from audit.keys import verifier_key
from audit.output import Output, Record
from eventstore.comparison import Difference
from eventstore.integrity.findings import Finding
from eventstore.integrity.inspection import Inspection
from eventstore.rebuild import check
from eventstore.transparency.notes import VerifierKey, encode_base64
from settings import Settings

# Who has seen these knows enough; there may be millions.
_ENOUGH = 20
_COLUMNS = ("position", "through", "check", "what")


def _verify(
    settings: Settings,
    out: Output,
    models: bool,
    checkpoints: tuple[Path, ...],
    key: VerifierKey | None,
    show_all: bool,
) -> int:
    """Verify that the log is what was recorded.

    Hashes every event anew, checks positions, versions, times, erasures and command ids, grows the tree above them,
    and holds it against every checkpoint that is kept, and those that you kept yourself. Says by position what is
    wrong, and then exits with 1. Works beside a running server, and changes nothing.
    """
    notes = _notes(checkpoints)
    limit = None if show_all else _ENOUGH
    with database(settings) as conninfo:
        began = time.monotonic()
        with out.progress("verifying") as progress:
            inspection = Inspection(conninfo, outside=notes, key=key, progress=progress)
            with contextlib.closing(inspection.findings()) as findings:
                count = in_log = out.rows(map(_record, itertools.islice(findings, limit)), _COLUMNS)
        seconds = time.monotonic() - began
        if models:
            count += out.rows(map(_record, _of_models(conninfo, out, limit)), _COLUMNS)
    out.record(_summary(inspection, seconds, count, given=key is not None))
    if in_log == limit:
        out.note(f"stopped at {limit} findings: --all goes on")
    return 1 if count else 0


def _of_models(conninfo: str, out: Output, limit: int | None) -> list[Finding]:
    """Where the read models are not what the log says."""
    with out.progress("comparing the read models") as progress:
        found = check(conninfo, projections.ALL, progress=progress)
        return [_difference(each) for each in itertools.islice(found, limit)]


def _difference(found: Difference) -> Finding:
    # The rows themselves may hold what is nobody's business, such as hashes of passwords.
    key = ", ".join(f"{name} {value}" for name, value in found.key.items())
    if found.before is None:
        how = "is missing"
    elif found.after is None:
        how = "should not be there"
    else:
        how = f"has another {', '.join(found.changed)} than the log"
    return Finding(None, None, "models", f"the row of {found.table} with {key} {how}")


def _record(finding: Finding) -> Record:
    return {name: getattr(finding, name) for name in _COLUMNS}


def _summary(inspection: Inspection, seconds: float, findings: int, *, given: bool) -> dict[str, Any]:
    held, outside = inspection.checkpoints
    return {
        "events": inspection.events,
        "findings": findings,
        "root": None if inspection.root is None else encode_base64(inspection.root),
        "checkpoints": held,
        "outside_checkpoints": outside,
        "key": None if inspection.key is None else str(inspection.key),
        "key_is_from": None if inspection.key is None else ("the command line" if given else "the database"),
        "seconds": round(seconds, 3),
        "events_per_second": round(inspection.events / seconds),
    }


def _notes(paths: Iterable[Path]) -> dict[str, str]:
    """The checkpoints in files, by what findings call them.

    A file holds one note, or what `minutebook checkpoint` writes into a pipe: lines of JSON that hold one each.
    """
    notes: dict[str, str] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        if not text.startswith("{"):
            notes[path.name] = text
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                notes[f"{path.name}, line {number}"] = msgspec.json.decode(line, type=_Kept).note
            except msgspec.DecodeError as error:
                raise CommandFailed(f"{path}, line {number}: this is no checkpoint: {error}") from error
    return notes


class _Kept(msgspec.Struct):
    note: str


COMMAND = Command(
    "verify",
    _verify,
    (
        click.Option(["--models"], is_flag=True, help="Compare the read models with the log, too."),
        click.Option(
            ["--checkpoint", "checkpoints"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            multiple=True,
            help="Checkpoints that you kept: a note, or JSON lines of `checkpoint`; may be given several times.",
        ),
        click.Option(
            ["--key"],
            type=verifier_key,
            metavar="VKEY",
            help="The log's verifier key as you know it (/log/key); without it, the one that the database names.",
        ),
        click.Option(["--all", "show_all"], is_flag=True, help=f"Go on after {_ENOUGH} findings."),
    ),
    examples=(
        "verify",
        "verify --checkpoint kept-in-may.txt --key 'minutebook.local/log+1f2e3d4c+AS…'",
        "verify --models",
    ),
)
