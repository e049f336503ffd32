"""`minutebook export` and `minutebook import`: a log as a file, and a log made of such a file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import click

import projections
from audit.command import LOG_SETTINGS, Command, CommandFailed
from audit.database import database
from audit.export_files import STANDARD, Write, lines_of, new_file
from audit.keys import verifier_key
from audit.output import Output
from audit.places import Place, place, position_of, standing
from chat.names import channel_name, safe_name
from eventstore.log import EventLog
from eventstore.migrate import migrate
from eventstore.transfer.checking import read_header
from eventstore.transfer.exporting import EVERYTHING, Concerning, Exported, Selection, export_cloudevents, export_log
from eventstore.transfer.importing import import_log
from eventstore.transparency.notes import VerifierKey
from projections.accounts import Accounts
from projections.channels import Channels
from settings import Settings

# By which keys of their data events name an account, and by which a channel; a test holds them to the events.
ACCOUNT_KEYS = (
    "account_id",
    "added_by",
    "banned_by",
    "bridged_by",
    "creator_id",
    "deleted_by",
    "edited_by",
    "kicked_by",
    "recipient_id",
    "removed_by",
    "reporter_id",
    "sender_id",
    "silenced_by",
    "unbridged_by",
)
CHANNEL_KEYS = ("channel_id",)

FORMATS: dict[str, Callable[..., Exported]] = {"jsonl": export_log, "cloudevents": export_cloudevents}


def _export(
    settings: Settings,
    out: Output,
    file: str,
    since: Place | None,
    until: Place | None,
    channel: str | None,
    account: str | None,
    chosen: str,
    force: bool,
) -> None:
    """Write the log, or a part of it, to a file.

    FILE is compressed as its name says (.gz, .zst); `-`, the default, is standard output. It appears only once it is
    whole. One snapshot of the log is written, whatever a server records meanwhile.

    A whole export, or one --until some place, can be imported. It holds the salts of all events: it is as confidential
    as the database. With --since, --channel or --account it is an extract for people to look at, which cannot.
    """
    if file == STANDARD and sys.stdout.isatty():
        raise click.UsageError("an export is not for a terminal: name a file, or pipe it into something")
    with database(settings) as conninfo:
        selection = asyncio.run(_selection(conninfo, since, until, channel, account))
        with _destination(file, out, force=force) as write, out.progress("exporting", "positions") as progress:
            done = FORMATS[chosen](conninfo, write, selection, origin=settings.origin, progress=progress)
    into = "" if file == STANDARD else f" to {file}"
    out.note(f"exported {done.events} events of the positions {done.after + 1} to {done.through}{into}")
    if chosen == "jsonl" and not done.is_whole:
        out.note("it is not the whole of a log, so it cannot be imported")


def _destination(file: str, out: Output, *, force: bool) -> AbstractContextManager[Write]:
    return nullcontext(out.write) if file == STANDARD else new_file(file, replace=force)


async def _selection(
    conninfo: str, since: Place | None, until: Place | None, channel: str | None, account: str | None
) -> Selection:
    if (since, until, channel, account) == (None, None, None, None):
        return EVERYTHING
    async with EventLog(conninfo, writable=False, readers=1) as log:
        after = 0 if since is None else await position_of(log, since)
        through = None if until is None else await standing(log, until)
        concerning = []
        if channel is not None:
            concerning.append(await _of_channel(log, channel))
        if account is not None:
            concerning.append(await _of_account(log, account))
    asked = {"channel": channel, "account": account}
    shown = {name: value for name, value in asked.items() if value is not None}
    return Selection(after, through, tuple(concerning), shown)


async def _of_channel(log: EventLog, name: str) -> Concerning:
    found = await Channels(log.reader).by_name(safe_name(channel_name(name)))
    if found is None:
        raise CommandFailed(f"there is no channel {name}")
    # Its id is the position of the event that made it, which does not name it.
    return Concerning(found.channel_id, CHANNEL_KEYS, position=found.channel_id)


async def _of_account(log: EventLog, name: str) -> Concerning:
    found = await Accounts(log.reader).by_name(safe_name(name))
    if found is None:
        raise CommandFailed(f"there is no account {name}")
    return Concerning(found.account_id, ACCOUNT_KEYS, acted=True)


def _import(settings: Settings, out: Output, file: str, key: VerifierKey | None) -> None:
    """Make a log of a whole export.

    FILE is what `export` wrote, `-` is standard input. The log comes into a new data folder or an empty database,
    before its first `serve`: the same positions, the same bytes, the same tree. Everything is checked on the way, and
    what is not as it was written is refused, with the line and the position; then the log stays empty.

    With --key the checkpoints in the file are checked by the log's verifier key, which you have from elsewhere. Without
    it by the key in the file, which shows that the file agrees with itself, and not whose it is.
    """
    with lines_of(file) as lines:
        header = read_header(next(lines, b""))
        with database(settings, make=True) as conninfo, out.progress("importing") as progress:
            migrate(conninfo, [projections.MIGRATIONS])
            done = import_log(conninfo, header, lines, projections.ALL, key=key, progress=progress)
    out.record(
        {
            "head": done.head,
            "root": done.root.hex(),
            "checkpoints": done.checkpoints,
            "covered": done.covered,
            "verifier_key": header.verifier_key,
        }
    )
    if done.covered < done.head:
        out.note(f"no checkpoint covers the last {done.head - done.covered} events: the file alone vouches for them")
    if key is None and done.checkpoints:
        out.note("the file agrees with its own key; give --key to see whether that is the log's")
    out.note("before you serve it, give the server the `secret` of the log's old server, and its log.key")


EXPORT = Command(
    "export",
    _export,
    (
        click.Argument(["file"], default=STANDARD),
        click.Option(["--since"], type=place, help="Only what is behind a position or a time (or 10m ago)."),
        click.Option(["--until"], type=place, help="Only what is up to a position or a time."),
        click.Option(["--channel"], help="Only what concerns this channel."),
        click.Option(["--account"], help="Only what this account did, and what concerns it."),
        click.Option(
            ["--format", "chosen"],
            type=click.Choice(list(FORMATS)),
            default="jsonl",
            show_default=True,
            help="Our own, which can be imported, or CloudEvents 1.0; both one JSON object a line.",
        ),
        click.Option(["--force"], is_flag=True, help="Replace FILE if it exists."),
    ),
    examples=(
        "export minutes.jsonl.zst",
        "export --until '2026-11-01 00:00' october.jsonl.gz",
        "export --channel den --format cloudevents | head",
    ),
    settings=LOG_SETTINGS | {"origin"},
)
IMPORT = Command(
    "import",
    _import,
    (
        click.Argument(["file"]),
        click.Option(
            ["--key"], type=verifier_key, metavar="VKEY", help="The log's verifier key (`/log/key` of its server)."
        ),
    ),
    examples=(
        "import minutes.jsonl.zst --data-dir restored",
        "import minutes.jsonl.zst --key 'example.com/minutes+5e4f2c1a+AQ…' --data-dir restored",
    ),
)
