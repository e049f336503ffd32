"""The `minutebook` command line: which commands there are, and what is common to them.

Exit codes: 0 all is well, 1 the finding is bad or the work could not be done (one line says why), 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from audit import asof, diff, erase, grant, history, migrate, prove, replay, status, tail, transfer, verify
from audit.command import LOG_SETTINGS, Command, CommandFailed
from audit.logs import configure_logs
from audit.output import Output, visible
from eventstore.embedded import PostgresStartError
from eventstore.errors import LogError
from settings import BadSetting, Setting, Settings, table

Serve = Callable[[Settings], None]

_SERVE, _BOT = "serve", "bot"
# They run until they are told to stop, and show no findings.
_RUNNING = frozenset({_SERVE, _BOT})
BOT_SETTINGS = LOG_SETTINGS | {"secret", "operators", "discord_token", "discord_api", "discord_give_up"}

COMMANDS: tuple[Command, ...] = (
    migrate.COMMAND,
    tail.COMMAND,
    history.HISTORY,
    history.TRACE,
    asof.COMMAND,
    diff.COMMAND,
    status.COMMAND,
    prove.CHECKPOINT,
    prove.PROVE,
    prove.CHECK,
    verify.COMMAND,
    replay.COMMAND,
    transfer.EXPORT,
    transfer.IMPORT,
    erase.COMMAND,
    grant.COMMAND,
)


def _nothing_to_run(_settings: Settings) -> None:
    raise CommandFailed("this program does not have what the command runs")


def run(arguments: Sequence[str], serve: Serve, bot: Serve = _nothing_to_run) -> int:
    """Runs a command line and returns its exit code; `serve` and `bot` are what the commands of these names call."""
    if not all(map(_is_text, arguments)):
        return _fail("an argument is not UTF-8", 2)
    try:
        outcome = _group(serve, bot).main(args=list(arguments), prog_name="minutebook", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message, err=True)
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except BadSetting as error:
        return _fail(str(error), 2)
    except (CommandFailed, LogError, PostgresStartError, OSError) as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return 130
    return outcome if isinstance(outcome, int) else 0


def _is_text(argument: str) -> bool:
    """Whether the database and the log can hold it: bytes that are not UTF-8 come as surrogates, which they cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def _fail(problem: str, code: int) -> int:
    # It may repeat what stands in a file, or in the log.
    click.echo(f"minutebook: {visible(' '.join(problem.split()))}", err=True)
    return code


def _group(serve: Serve, bot: Serve) -> click.Group:
    group = click.Group("minutebook", help="A chat server that keeps its minutes.", no_args_is_help=True)
    for command in (_serve(serve), _bot(bot), *COMMANDS):
        group.add_command(_ClickCommand(command))
    return group


def _serve(serve: Serve) -> Command:
    def run_server(settings: Settings, _out: Output) -> None:
        """Run the server until SIGTERM or Ctrl-C."""
        serve(settings)

    return Command(_SERVE, run_server, settings=frozenset(setting.name for setting in table()))


def _bot(bot: Serve) -> Command:
    def run_bot(settings: Settings, _out: Output) -> None:
        """Run the bridge to Discord alone, until SIGTERM or Ctrl-C.

        It works beside servers that have no discord_token, on the same database and with the same secret. Of several
        that run, one is the bridge, and the others stand by.
        """
        bot(settings)

    return Command(_BOT, run_bot, settings=BOT_SETTINGS)


class _ClickCommand(click.Command):
    """A command as click runs it: with the settings among its options, and with examples in its help."""

    def __init__(self, command: Command) -> None:
        super().__init__(
            command.name,
            params=[*command.parameters, *_common_options(command)],
            callback=self._call,
            help=command.help,
            short_help=command.summary,
        )
        self._command = command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples."""
        del ctx
        if self._command.examples:
            with formatter.section("Examples"):
                for example in self._command.examples:
                    formatter.write(f"  minutebook {example}\n")

    def _call(self, as_json: bool | None = None, **given: Any) -> int | None:
        settings = _settings(given) if self._command.settings is not None else Settings()
        # A tool says what it has to say itself; of the parts below it, only what is amiss is of interest.
        quiet = self.name not in _RUNNING and settings.log_level == "info"
        configure_logs("warning" if quiet else settings.log_level)
        try:
            return self._command.run(settings, Output(as_json=as_json), **given)
        except BrokenPipeError:
            # The reader of the pipe has seen enough. Click would make it exit code 1, and Python would complain
            # once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _common_options(command: Command) -> list[click.Option]:
    options = (
        [_option(setting, shown=setting.name in command.settings) for setting in table()] if command.settings else []
    )
    if command.name in _RUNNING:
        return options
    as_json = click.Option(
        ["--json/--no-json", "as_json"],
        default=None,
        help="JSON lines, or what people read. By default the latter on a terminal only.",
    )
    return [as_json, *options]


def _option(setting: Setting, *, shown: bool) -> click.Option:
    return click.Option(
        [setting.flag, f"setting_{setting.name}"],
        envvar=setting.variable,
        metavar="TEXT",
        hidden=not shown,
        help=f"{setting.help}  [{setting.variable}; default: {setting.default_text}]",
    )


def _settings(given: dict[str, Any]) -> Settings:
    """Takes the settings out of what the command line gave."""
    texts = {setting.name: given.pop(f"setting_{setting.name}") for setting in table()}
    return Settings.parse({name: text for name, text in texts.items() if text is not None})
