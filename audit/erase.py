"""`minutebook erase`: takes what somebody said, or a whole account, out of the log for ever, and leaves the proofs."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable

import click
import msgspec

import projections
from audit.command import Command, CommandFailed
from audit.database import database
from audit.output import Output
from chat.erasure import Erasure, Outcome
from chat.refusals import Malformed, Reason, Refused
from eventstore.erasure import scrub
from eventstore.grants import require_owner
from eventstore.log import EventLog
from eventstore.rebuild import discard_leftovers
from projections.models import ReadModels
from projections.traces import Traces
from settings import Settings

REFUSALS = {
    Reason.USER_NOT_FOUND: "there is no such account: who was erased before, in part, is found by --account-id only",
    Reason.MESSAGE_NOT_FOUND: "there is no message of this id",
    Reason.NOT_FOR_THE_BOT: "FokaBot cannot be erased",
    Reason.ALREADY_ERASED: "that was erased before, and nothing of it is left",
}

_Erase = Callable[[Erasure], Awaitable[Outcome]]


def _erase(
    settings: Settings,
    out: Output,
    message_id: int | None,
    account: str | None,
    account_id: int | None,
    reason: str,
    by: str | None,
    yes: bool,
    rewrite: bool,
) -> None:
    """Erase a message, or an account with all that it said, for ever.

    What was said is taken out of the log and of all that is made of it. That there was something, when, and the proofs
    of everything else stay, and so does an event that says what was erased, why and by whom: so give no names in the
    reason. An account's id stays too, and its name is never given again.

    Works beside a running server, and without one. Backups are not touched.
    """
    if sum(each is not None for each in (message_id, account, account_id)) != 1:
        raise click.UsageError("give one of --message, --account and --account-id")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: say --yes, if that is what you want")
    erased_by = by or getpass.getuser()

    async def erase(erasure: Erasure) -> Outcome:
        target = account_id if account is None else (await erasure.find(account)).account_id
        if not yes:
            _confirm(out, f"message {message_id}" if target is None else f"account {target} and all that it said")
        if target is None:
            assert message_id is not None  # noqa: S101 - one of the three was given
            return await erasure.erase_message(message_id, reason, erased_by)
        with out.progress("looking for what it said") as progress:
            return await erasure.erase_account(target, reason, erased_by, progress)

    with database(settings) as conninfo:
        require_owner(conninfo, "erase")
        outcome = _carry_out(conninfo, erase, lambda: _clean_up(conninfo, out, rewrite))
    _show(out, outcome)


def _carry_out(conninfo: str, erase: _Erase, clean_up: Callable[[], None]) -> Outcome:
    try:
        outcome = asyncio.run(_with_log(conninfo, erase))
    except Refused as refused:
        if refused.reason is Reason.ALREADY_ERASED:
            # It may have been interrupted before it was cleaned up, or done without --rewrite.
            clean_up()
        raise CommandFailed(REFUSALS.get(refused.reason, str(refused))) from None
    except Malformed as malformed:
        raise CommandFailed(str(malformed)) from None
    clean_up()
    return outcome


async def _with_log(conninfo: str, erase: _Erase) -> Outcome:
    async with EventLog(conninfo, projections.ALL, readers=2) as log:
        return await erase(Erasure(log, ReadModels(log, cached=100), Traces(log.reader)))


def _clean_up(conninfo: str, out: Output, rewrite: bool) -> None:
    discard_leftovers(conninfo)
    with out.progress("cleaning up", unit="tables") as progress:
        scrub(conninfo, [table.name for each in projections.ALL for table in each.tables], progress, rewrite=rewrite)


def _confirm(out: Output, what: str) -> None:
    out.note(f"This erases {what}. It cannot be undone.", "bold")
    if not click.confirm("Go on?", err=True):
        raise CommandFailed("nothing was erased")


def _show(out: Output, outcome: Outcome) -> None:
    out.record(msgspec.structs.asdict(outcome))
    if outcome.mentions:
        out.note(
            f"{len(outcome.mentions)} events of others hold the name in their words, and are theirs: "
            "`mentions` tells their positions. Messages among them go by: minutebook erase --message POSITION"
        )


_ID = click.IntRange(min=1, max=2**63 - 1)

COMMAND = Command(
    "erase",
    _erase,
    (
        click.Option(
            ["--message", "message_id"],
            type=_ID,
            help="The message's id, or a delivery's to Discord; or where somebody there was seen.",
        ),
        click.Option(["--account"], help="The account's name."),
        click.Option(["--account-id"], type=_ID, help="The account's id; also to end what was interrupted."),
        click.Option(["--reason"], required=True, help="Why; it stays in the log for ever."),
        click.Option(["--by"], help="Who erases, which stays too; by default the name of your login."),
        click.Option(
            ["--rewrite"], is_flag=True, help="Write the tables anew, so that no byte stays in them; the server waits."
        ),
        click.Option(["--yes"], is_flag=True, help="Do not ask."),
    ),
    examples=(
        "erase --message 1234 --reason 'a court order'",
        "erase --account Alice --reason 'asked for by its owner' --yes",
    ),
)
