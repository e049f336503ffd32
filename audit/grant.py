"""`minutebook grant`: gives a role of one's own Postgres what the server needs, and nothing that changes the log."""

from __future__ import annotations

import click

import projections
from audit.command import Command, CommandFailed
from audit.output import Output
from eventstore.grants import grant
from settings import Settings


def _grant(settings: Settings, out: Output, role: str, reader: str | None) -> None:
    """Give a role of an external Postgres what the server needs, and no more.

    A server that connects as this role can append to the log, and cannot change or empty it, or take away the triggers
    that refuse that. Run it as the owner of the tables, after `migrate`, and again after each update that migrates.
    Migrating, `replay` and `erase` go on needing the owner.
    """
    if settings.database_url is None:
        raise CommandFailed(
            "the embedded Postgres has no other role than the server's, and nobody else can reach it: --database-url "
            "says which one you mean"
        )
    if reader == role:
        raise click.UsageError("the server's role has to write, the auditors' may not: give two roles")
    granted = grant(
        settings.database_url, [table.name for each in projections.ALL for table in each.tables], role, reader
    )
    out.rows({"table": str(table), "role": role, "may": ", ".join(rights)} for table, rights in granted.items())
    if reader is not None:
        out.note(f"{reader} may read all of them")


COMMAND = Command(
    "grant",
    _grant,
    (
        click.Argument(["role"]),
        click.Option(["--reader"], metavar="ROLE", help="A role for auditors, which may read everything."),
    ),
    examples=("grant minutebook_server --reader auditor --database-url 'postgresql://owner@db.example/minutebook'",),
)
