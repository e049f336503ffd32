"""The `minutebook` command line.

Exit codes: 0 done, 1 it could not be done (one line says why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

import projections
from audit.database import database
from audit.logs import configure_logs
from audit.tail import Wanted, tail
from eventstore.embedded import PostgresStartError
from eventstore.errors import LogError
from eventstore.migrate import migrate
from eventstore.rebuild import rebuild
from settings import BadSetting, Setting, Settings, table

Serve = Callable[[Settings], None]


class CommandFailed(Exception):
    """A command could not do its work; the message is one line that says why."""


def run(arguments: Sequence[str], serve: Serve) -> int:
    """Runs a command line and returns its exit code; `serve` is what the command of that name calls."""
    try:
        _commands(serve).main(args=list(arguments), prog_name="minutebook", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.Abort:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message, err=True)
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except BadSetting as error:
        return _fail(str(error), 2)
    except (CommandFailed, LogError, PostgresStartError, OSError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(problem: str, code: int) -> int:
    click.echo(f"minutebook: {' '.join(problem.split())}", err=True)
    return code


def _commands(serve: Serve) -> click.Group:
    group = click.Group("minutebook", help="A chat server that keeps its minutes.", no_args_is_help=True)

    def command(name: str, action: Callable[..., None], *parameters: click.Parameter) -> None:
        def call(**given: Any) -> None:
            settings = _settings(given)
            # A tool says what it has to say itself; of the parts below it, only what is amiss is of interest.
            configure_logs("warning" if name != "serve" and settings.log_level == "info" else settings.log_level)
            try:
                action(settings, **given)
            except BrokenPipeError:
                # The reader of the pipe has seen enough. Click would make it exit code 1, and Python would complain
                # once more when it flushes at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        options = [*parameters, *map(_option, table())]
        text = (action.__doc__ or "").strip()
        group.add_command(click.Command(name, params=options, callback=call, help=text, short_help=text.split("\n")[0]))

    def _serve(settings: Settings) -> None:
        """Run the server until SIGTERM or Ctrl-C."""
        serve(settings)

    command("serve", _serve)
    command("migrate", _migrate)
    command(
        "tail",
        _tail,
        click.Option(["--since"], type=click.IntRange(min=0), default=0, help="Only events behind this position."),
        click.Option(["--follow", "-f"], is_flag=True, help="Go on with new events until interrupted."),
        click.Option(["--type", "types"], multiple=True, help="Only events of this type; may be given several times."),
        click.Option(["--stream"], help="Only events of this stream."),
    )
    command("replay", _replay)
    return group


def _migrate(settings: Settings) -> None:
    """Bring the database's tables up to date.

    The server does this itself when it starts; for those who want it done before.
    """
    with database(settings) as conninfo:
        applied = migrate(conninfo, [projections.MIGRATIONS])
    click.echo(f"applied {', '.join(applied)}" if applied else "nothing to do", err=True)


def _tail(settings: Settings, since: int, follow: bool, types: tuple[str, ...], stream: str | None) -> None:
    """Print the log, one JSON object a line.

    Works beside a running server, and without one.
    """

    def write(text: bytes) -> None:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    with database(settings) as conninfo:
        asyncio.run(tail(conninfo, Wanted(since, frozenset(types), stream), write, follow=follow))


def _replay(settings: Settings) -> None:
    """Rebuild all read models from the log.

    They are made anew beside the live ones, and change places with them at the end: a server may run meanwhile.
    """
    with database(settings) as conninfo, click.progressbar(length=1, label="replaying", file=sys.stderr) as bar:

        def progress(position: int, head: int) -> None:
            bar.length = max(head, 1)
            bar.update(position - bar.pos)

        position = rebuild(conninfo, projections.ALL, progress=progress)
    click.echo(f"rebuilt {len(projections.ALL)} read models from {position} events", err=True)


def _option(setting: Setting) -> click.Option:
    return click.Option(
        [setting.flag, f"setting_{setting.name}"],
        envvar=setting.variable,
        metavar="TEXT",
        help=f"{setting.help}  [{setting.variable}; default: {setting.default_text}]",
    )


def _settings(given: dict[str, Any]) -> Settings:
    """Takes the settings out of what the command line gave."""
    texts = {setting.name: given.pop(f"setting_{setting.name}") for setting in table()}
    return Settings.parse({name: text for name, text in texts.items() if text is not None})
