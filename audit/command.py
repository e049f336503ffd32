"""What a command of the line is: its name, what it does, what it takes, and examples for its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click

# Which of the settings a command's help shows: those that say where the log is. It takes all of them.
LOG_SETTINGS = frozenset({"data_dir", "database_url", "log_level"})


class CommandFailed(Exception):
    """A command could not do its work; the message is one line that says why."""


@dataclass(frozen=True)
class Command:
    """A command: `run(settings, out, **given)` does its work, and its docstring is its help.

    What `run` returns is the exit code: nothing or 0 if all is well, 1 if the finding is bad. `settings` are those that
    its help shows; None means that it takes none at all. Examples are lines without the leading `minutebook`.
    """

    name: str
    run: Callable[..., int | None]
    parameters: tuple[click.Parameter, ...] = ()
    examples: tuple[str, ...] = ()
    settings: frozenset[str] | None = LOG_SETTINGS

    @property
    def summary(self) -> str:
        """The first line of its help."""
        return self.help.split("\n")[0]

    @property
    def help(self) -> str:
        """What it does, in a few lines."""
        return (self.run.__doc__ or "").strip()
