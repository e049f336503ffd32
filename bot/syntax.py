"""What can be said to FokaBot, and how: from a message's text to a command. Pure.

A command is `!`, its name in any case, and its arguments, parted by white space. A username is one word: spaces in it
are written as `_`, which is its safe name. A last argument of free text goes to the end of the message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PREFIX = "!"
DEFAULT_SIDES = 100
MOST_SIDES = 1_000_000_000
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

# More digits than these are in no number that means something here, and Python converts no very long ones.
_WHOLE = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Help:
    """Tell what can be said."""


@dataclass(frozen=True, slots=True)
class Roll:
    """Draw a number from 1 to `sides`."""

    sides: int


@dataclass(frozen=True, slots=True)
class Faq:
    """Tell about a topic, in lower case; None: which topics there are."""

    topic: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """Report somebody to the operators."""

    username: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alert:
    """Write to the announcements."""

    text: str


@dataclass(frozen=True, slots=True)
class Kick:
    """End somebody's connections; the reason may be empty."""

    username: str
    reason: str


@dataclass(frozen=True, slots=True)
class Silence:
    """Keep somebody from writing for so many seconds."""

    username: str
    seconds: int
    reason: str


@dataclass(frozen=True, slots=True)
class RemoveSilence:
    """Let somebody write again."""

    username: str


@dataclass(frozen=True, slots=True)
class Ban:
    """Keep somebody out; the reason may be empty."""

    username: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unban:
    """Let somebody in again."""

    username: str


Moderating = Report | Kick | Silence | RemoveSilence | Ban | Unban
Command = Help | Roll | Faq | Alert | Moderating


@dataclass(frozen=True, slots=True)
class Form:
    """How a command is written: `usage` is its line in the help, `read` makes it of its arguments' text.

    `read` gives None for arguments that are not as the usage wants them.
    """

    usage: str
    read: Callable[[str], Command | None]
    for_operators: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """What a text says: the form of a command, and the command itself unless its arguments are wrong."""

    form: Form
    command: Command | None


def parse(text: str) -> Said | None:
    """What is said to the bot by this text; None if it names no command."""
    if not text.startswith(PREFIX):
        return None
    name = re.match(r"\S*", text[len(PREFIX) :])
    assert name is not None, "it matches everything"  # noqa: S101
    form = FORMS.get(name[0].lower())
    return None if form is None else Said(form, form.read(text[len(PREFIX) + name.end() :].strip()))


def _help(arguments: str) -> Help | None:  # noqa: ARG001 - asking for help is never wrong
    return Help()


def _roll(arguments: str) -> Roll | None:
    if not arguments:
        return Roll(DEFAULT_SIDES)
    sides = _whole(arguments)
    return Roll(sides) if sides is not None and 1 <= sides <= MOST_SIDES else None


def _faq(arguments: str) -> Faq:
    return Faq(arguments.lower() or None)


def _report(arguments: str) -> Report | None:
    words = arguments.split(maxsplit=1)
    return Report(*words) if len(words) == 2 else None


def _alert(arguments: str) -> Alert | None:
    return Alert(arguments) if arguments else None


def _silence(arguments: str) -> Silence | None:
    words = arguments.split(maxsplit=3)
    if len(words) < 4 or words[2].lower() not in SECONDS:
        return None
    amount = _whole(words[1])
    return None if amount is None else Silence(words[0], amount * SECONDS[words[2].lower()], words[3])


def _kick(arguments: str) -> Kick | None:
    words = arguments.split(maxsplit=1)
    return Kick(words[0], "".join(words[1:])) if words else None


def _ban(arguments: str) -> Ban | None:
    words = arguments.split(maxsplit=1)
    return Ban(words[0], "".join(words[1:])) if words else None


def _remove_silence(arguments: str) -> RemoveSilence | None:
    words = arguments.split()
    return RemoveSilence(words[0]) if len(words) == 1 else None


def _unban(arguments: str) -> Unban | None:
    words = arguments.split()
    return Unban(words[0]) if len(words) == 1 else None


def _whole(text: str) -> int | None:
    return int(text) if _WHOLE.fullmatch(text) else None


# In the order in which the help tells them.
FORMS: Mapping[str, Form] = {
    "help": Form("!help", _help),
    "roll": Form("!roll [n]", _roll),
    "faq": Form("!faq [topic]", _faq),
    "report": Form("!report <user> <reason>", _report),
    "alert": Form("!alert <text>", _alert, for_operators=True),
    "kick": Form("!kick <user> [reason]", _kick, for_operators=True),
    "silence": Form("!silence <user> <amount> <s|m|h|d> <reason>", _silence, for_operators=True),
    "removesilence": Form("!removesilence <user>", _remove_silence, for_operators=True),
    "ban": Form("!ban <user> [reason]", _ban, for_operators=True),
    "unban": Form("!unban <user>", _unban, for_operators=True),
}
