"""What can go wrong with the log, each as one exception with one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


class LogError(Exception):
    """An operation on the log failed; the message says which and why."""


class LogUnavailable(LogError):
    """The database cannot be reached now.

    An append that fails with this was not acknowledged, but it may have been committed all the same: the
    connection can break between the commit and its answer. A caller that repeats it should use a command id.
    """


class TimedOut(LogUnavailable):
    """The database gave a statement up, which took too long or waited too long for a lock: it has changed nothing.

    `place` is the statement's place in its batch, from 0. The connection is well.
    """

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class WrongVersion(LogError):
    """The stream is not at the version that the append expected: somebody else was faster."""

    def __init__(self, stream: str, expected: int) -> None:
        super().__init__(f"stream {stream} is not at version {expected}")
        self.stream = stream
        self.expected = expected


class InvalidEvent(LogError, ValueError):
    """The event cannot be written down: its data, its stream's name or its type is not of the log's form."""


@contextmanager
def database_errors(work: str) -> Iterator[None]:
    """Raises what psycopg raises as an error of the log; `work` is what it came in the way of, such as "the export"."""
    try:
        yield
    except psycopg.OperationalError as error:
        raise LogUnavailable(f"{work} lost the database: {error}") from error
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise LogError("the database has no log yet, or an older one: run `minutebook migrate`") from error
    except psycopg.Error as error:
        raise LogError(f"the database refused {work}: {error.diag.message_primary or error}") from error
