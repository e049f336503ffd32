"""What can go wrong with the log, each as one exception with one clear line."""

from __future__ import annotations


class LogError(Exception):
    """An operation on the log failed; the message says which and why."""


class LogUnavailable(LogError):
    """The database cannot be reached now.

    An append that fails with this was not acknowledged, but it may have been committed all the same: the
    connection can break between the commit and its answer. A caller that repeats it should use a command id.
    """


class WrongVersion(LogError):
    """The stream is not at the version that the append expected: somebody else was faster."""

    def __init__(self, stream: str, expected: int) -> None:
        super().__init__(f"stream {stream} is not at version {expected}")
        self.stream = stream
        self.expected = expected


class InvalidEvent(LogError, ValueError):
    """The event cannot be written down: its data, its stream's name or its type is not of the log's form."""
