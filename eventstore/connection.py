"""A connection that runs prepared statements, one or a batch at a time, with binary parameters and results.

psycopg connects, and its wrapper of libpq speaks the protocol; what lies between - adapting each parameter, a cursor,
an event registered with the loop for each wait - costs more than our statements do, and is left out here. The socket
stays registered with the loop all the time, so a connection that breaks while it is idle is noticed at once.

A statement is sent in as many pieces as the socket takes, and what the server says meanwhile is read: however large
the parameters, neither side waits for the other for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, Self

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format, PipelineStatus
from psycopg.pq.abc import PGconn, PGresult

from eventstore.errors import LogError, LogUnavailable, TimedOut

TIMEOUT = 30.0

# Statements are prepared once and their plans kept, so the plans must suit tables that grow a thousandfold: all of
# them are index ranges, and without sequential scans the planner says so from the first row on.
_SETTINGS = (
    "SET TIME ZONE 'UTC'; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off; "
    "SET synchronous_commit = on; SET lock_timeout = '10s'; SET statement_timeout = '25s'"
)

Row = tuple[Any, ...]


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# Half the time of `int.from_bytes`.
_bigint = Struct("!q").unpack


class _UtcLoader(Loader):
    """Moments in UTC, from the server's microseconds since 2000: lists of messages are full of them."""

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        """The moment."""
        return _EPOCH + timedelta(0, 0, *_bigint(data))


class UniqueViolated(LogError):
    """A unique constraint refused the statement; `constraint` is its name."""

    def __init__(self, message: str, constraint: str) -> None:
        super().__init__(message)
        self.constraint = constraint


class Connection:
    """One connection to the database. Raises `LogUnavailable` once it is broken, and then stays broken."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._descriptor = connection.fileno()
        self._loop = asyncio.get_running_loop()
        self._prepared: dict[str, bytes] = {}
        self._loader = Transformer(connection)
        self._answer: asyncio.Future[list[PGresult]] | None = None
        self._asked = 0
        self._results: list[PGresult] = []
        self.broken: asyncio.Future[str] = self._loop.create_future()
        self._timer = self._loop.call_later(TIMEOUT, self._watch, 0)
        self._loop.add_reader(self._descriptor, self._readable)

    @classmethod
    async def open(cls, conninfo: str) -> Self:
        """Connects; raises `LogUnavailable` when the database cannot be reached."""
        try:
            connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, connect_timeout=5)
            try:
                await connection.execute(_SETTINGS)
            except BaseException:
                await connection.close()
                raise
        except psycopg.OperationalError as error:
            raise LogUnavailable(f"the database cannot be reached: {error}") from error
        connection.adapters.register_loader("timestamptz", _UtcLoader)
        return cls(connection)

    @property
    def backend(self) -> int:
        """The process id of the backend that serves it, by which notifications name their sender."""
        return self._pgconn.backend_pid

    async def close(self) -> None:
        """Closes the connection; a statement that runs fails."""
        self._break("the connection was closed")
        await self._connection.close()

    async def fetch(self, text: str, parameters: Sequence[bytes]) -> list[Row]:
        """Runs a statement with parameters in their binary form, and returns its rows.

        Raises `LogError` if the database refuses it, `UniqueViolated` if for a key that exists, and `TimedOut` if the
        database gives it up; and `LogUnavailable` if the connection breaks or does not answer, so that nobody knows
        whether the statement was carried out.
        """
        name = self._prepared.get(text) or await self._prepare(text)
        formats = [Format.BINARY] * len(parameters)
        *_, result = await self._ask(self._pgconn.send_query_prepared, name, parameters, formats, Format.BINARY)
        self._check(result)
        return self._rows(result)

    async def fetch_batch(self, statements: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[Row]]:
        """Runs several statements in one go, and returns the rows of each; raises as `fetch` for the first that fails.

        They are sent in one piece, without waiting for answers in between, and are one transaction: if one fails, none
        of them has done anything.
        """
        if len(statements) == 1:
            return [await self.fetch(*statements[0])]
        named = [
            (self._prepared.get(text) or await self._prepare(text, place), given)
            for place, (text, given) in enumerate(statements)
        ]
        results = await self._ask(self._send_batch, named)
        for place, result in enumerate(results):
            self._check(result, place)
        return [self._rows(result) for result in results]

    async def _prepare(self, text: str, place: int = 0) -> bytes:
        name = b"s%d" % len(self._prepared)
        *_, result = await self._ask(self._pgconn.send_prepare, name, text.encode())
        self._check(result, place)
        self._prepared[text] = name
        return name

    def _send_batch(self, named: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        self._pgconn.enter_pipeline_mode()
        for name, parameters in named:
            formats = [Format.BINARY] * len(parameters)
            self._pgconn.send_query_prepared(name, parameters, formats, Format.BINARY)
        self._pgconn.pipeline_sync()

    def _rows(self, result: PGresult) -> list[Row]:
        self._loader.set_pgresult(result)
        rows = self._loader.load_rows(0, result.ntuples, tuple)
        self._loader.set_pgresult(None)  # it may be large
        return rows

    async def _ask(self, send: Any, *arguments: object) -> list[PGresult]:
        if self._answer is not None:
            raise RuntimeError("a connection runs one batch at a time")
        if self.broken.done():
            raise LogUnavailable(self.broken.result())
        self._answer = self._loop.create_future()
        self._asked += 1
        try:
            send(*arguments)
            self._flush()
            return await self._answer
        except psycopg.OperationalError as error:
            raise self._break(str(error)) from error
        except asyncio.CancelledError:
            # The answer to a statement that nobody waits for must not be taken for the next one's.
            self._break("a statement was given up")
            raise
        finally:
            self._answer = None

    def _check(self, result: PGresult, place: int = 0) -> None:
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise self._error(result, place)

    def _watch(self, asked: int) -> None:
        """Breaks the connection if the statement that ran at the last look runs still.

        The database ends a statement by itself before that; this is for one that does not answer at all. One timer for
        the connection costs nothing, while one for each statement is a tenth of what a short statement costs.
        """
        if self._answer is not None and asked == self._asked:
            self._break("the database does not answer")
        elif not self.broken.done():
            self._timer = self._loop.call_later(TIMEOUT, self._watch, self._asked)

    def _flush(self) -> None:
        """Sends what the socket takes, and goes on when it takes more."""
        if self._pgconn.flush():
            self._loop.add_writer(self._descriptor, self._writable)

    def _writable(self) -> None:
        try:
            if not self._pgconn.flush():
                self._loop.remove_writer(self._descriptor)
        except psycopg.OperationalError as error:
            self._break(str(error))

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
            is_whole = self._take_results()
        except psycopg.OperationalError as error:
            self._break(str(error))
            return
        if not is_whole:
            return
        if self._pgconn.status != ConnStatus.OK:
            self._break(self._pgconn.get_error_message() or "the connection is gone")
        elif self._results and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._results)
            self._results = []

    def _take_results(self) -> bool:
        """Takes the results that are there; whether those were the last ones."""
        is_batch = self._pgconn.pipeline_status != PipelineStatus.OFF
        while not self._pgconn.is_busy():
            result = self._pgconn.get_result()
            if result is None:
                # In a batch, one statement's results end so, and the next one's follow.
                if not is_batch or self._pgconn.status != ConnStatus.OK:
                    return True
            elif result.status == ExecStatus.PIPELINE_SYNC:
                self._pgconn.exit_pipeline_mode()
                return True
            else:
                self._results.append(result)
        return False

    def _error(self, result: PGresult, place: int) -> LogError:
        error = error_from_result(result, self._connection.info.encoding)
        if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
            # To psycopg these are of the same kind as a lost connection, and nothing else was lost.
            return TimedOut(f"the database gave a statement up: {error.diag.message_primary}", place)
        if isinstance(error, psycopg.OperationalError | psycopg.errors.ReadOnlySqlTransaction):
            # Also of a server that was demoted to a standby: a new connection may find the one that took over.
            return self._break(str(error))
        if isinstance(error, psycopg.errors.UndefinedTable):
            return LogError("the database has no log yet, or an older one: run `minutebook migrate`")
        message = f"the database refused a statement: {error.diag.message_primary}"
        if isinstance(error, psycopg.errors.UniqueViolation):
            constraint = result.error_field(DiagnosticField.CONSTRAINT_NAME) or b""
            return UniqueViolated(message, constraint.decode())
        return LogError(message)

    def _break(self, reason: str) -> LogUnavailable:
        error = LogUnavailable(f"the database cannot be reached: {' '.join(reason.split())}")
        if not self.broken.done():
            self.broken.set_result(str(error))
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._timer.cancel()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        return error
