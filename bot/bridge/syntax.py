"""What can be asked of the bot on Discord, and the prefix commands by which it is, where slash commands are not. Pure.

A prefix command is `!`, its name in any case, and behind white space what it is about. `!help` is none of them in a
channel, where it is FokaBot's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PREFIX = "!"


@dataclass(frozen=True, slots=True)
class Bridge:
    """Bridge the channel where this is said to the channel of Minutebook that has this name."""

    channel: str


@dataclass(frozen=True, slots=True)
class Unbridge:
    """End the bridge of the channel where this is said."""


@dataclass(frozen=True, slots=True)
class Link:
    """Be the account that the code was made for."""

    code: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """Be no account any more."""


@dataclass(frozen=True, slots=True)
class Help:
    """Tell what can be said: that was asked for, or a command was written in a wrong way."""


Command = Bridge | Unbridge | Link | Unlink | Help

# How the prefix commands are made of the text behind their names.
_FORMS: Mapping[str, Callable[[str], Command]] = {
    "bridge": lambda rest: Bridge(rest) if rest else Help(),
    "unbridge": lambda _: Unbridge(),
    "link": lambda rest: Link(rest) if rest else Help(),
    "unlink": lambda _: Unlink(),
}


def parse(text: str) -> Command | None:
    """The prefix command that a text is, in any case; None if it is none."""
    found = re.match(rf"\s*{re.escape(PREFIX)}(\w+)(?=\s|$)", text)
    form = None if found is None else _FORMS.get(found[1].lower())
    return None if found is None or form is None else form(text[found.end() :].strip())
