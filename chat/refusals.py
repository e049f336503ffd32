"""Why a command is refused: names that the rules give, and that each adapter puts into its own words."""

from __future__ import annotations

from enum import Enum, auto


class Reason(Enum):
    """A named refusal."""

    WEAK_PASSWORD = auto()
    BAD_USERNAME = auto()
    USERNAME_TAKEN = auto()
    WRONG_CREDENTIALS = auto()
    NO_TOKEN = auto()
    INVALID_TOKEN = auto()
    CHANNEL_EXISTS = auto()
    CHANNEL_NOT_FOUND = auto()
    NOT_A_MEMBER = auto()
    USER_NOT_FOUND = auto()
    MESSAGE_NOT_FOUND = auto()
    NOT_YOUR_MESSAGE = auto()
    NOT_A_READER = auto()
    SILENCED = auto()
    BANNED = auto()
    NOT_AN_OPERATOR = auto()
    NOT_FOR_THE_BOT = auto()
    NOT_FOR_AN_OPERATOR = auto()
    NOTHING_TO_UNDO = auto()
    ALREADY_ERASED = auto()
    DISCORD_NOT_CONFIGURED = auto()
    NOT_REACHABLE = auto()
    WRONG_LINK_CODE = auto()
    NOT_LINKED = auto()
    ALREADY_BRIDGED = auto()
    NOT_BRIDGED = auto()


class Refused(Exception):
    """A command was refused for a reason that the caller is to hear.

    `seconds` says for how long it holds, where that is known (`Reason.SILENCED`).
    """

    def __init__(self, reason: Reason, seconds: int | None = None) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.seconds = seconds


class Malformed(Exception):
    """A value cannot be what it is meant to be: `field` is at fault, `problem` says why."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class TooBusy(Exception):
    """More work of this kind waits than can be done in good time: try again later."""
