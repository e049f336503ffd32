"""Child processes that measure, so that contestants share neither an interpreter nor its heap.

A worker opens what it needs when it is told of a load, says that it is ready, waits for the word, and closes
everything again after the measurement: between its turns a contestant holds no connection and costs nothing.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

import structlog

from bench.load import Load, Measured

_T = TypeVar("_T")
Measure = Callable[[_T, Load, Callable[[], None]], Measured]
"""Measures a target under a load. It calls its third argument when it is ready, which returns when it may begin."""

_PATIENCE = 60.0  # seconds that opening, and a measurement beyond its own time, may take


class WorkerFailed(Exception):
    """A worker ended with an error, which is the message."""


class Worker(Generic[_T]):
    """A child process that measures; `measure` and the targets are sent to it, so they must be picklable."""

    def __init__(self, measure: Measure[_T]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, measure), daemon=True)
        self._process.start()
        child.close()

    def prepare(self, target: _T, load: Load) -> None:
        """Tells the worker what to measure next."""
        self._send((target, load))

    def await_ready(self) -> None:
        """Returns when the worker has opened everything."""
        self._receive(_PATIENCE)

    def go(self) -> None:
        """Lets the worker begin."""
        self._send(None)

    def result(self, load: Load) -> Measured:
        """What the worker has measured."""
        measured = self._receive(load.warm_up + load.seconds + _PATIENCE)
        if not isinstance(measured, Measured):
            raise WorkerFailed(f"a worker answered {measured!r}")
        return measured

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _send(self, message: object) -> None:
        with self._told_of_death():
            self._connection.send(message)

    def _receive(self, seconds: float) -> object:
        with self._told_of_death():
            if not self._connection.poll(seconds):
                raise WorkerFailed(f"a worker said nothing for {seconds:.0f} s")
            message = self._connection.recv()
        if isinstance(message, Exception):
            raise message
        return message

    @contextlib.contextmanager
    def _told_of_death(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            self._process.join(1)
            raise WorkerFailed(f"a worker died with exit code {self._process.exitcode}") from None


@contextlib.contextmanager
def workers(measure: Measure[_T], count: int = 1) -> Iterator[list[Worker[_T]]]:
    """So many workers, which end with the context."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Worker(measure))) for _ in range(count)]


def measure_together(group: Sequence[Worker[_T]], target: _T, load: Load) -> list[Measured]:
    """Lets all workers of the group measure the target at the same time; the load is that of each."""
    return measure_each([(worker, target, load) for worker in group])


def measure_each(parts: Sequence[tuple[Worker[_T], _T, Load]]) -> list[Measured]:
    """Lets each worker measure its own target under its own load, all at the same time."""
    for worker, target, load in parts:
        worker.prepare(target, load)
    for worker, _, _ in parts:
        worker.await_ready()
    for worker, _, _ in parts:
        worker.go()
    return [worker.result(load) for worker, _, load in parts]


def _serve(connection: Connection, measure: Measure[_T]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    quieten()

    def ready() -> None:
        gc.collect()
        connection.send("ready")
        connection.recv()

    with contextlib.suppress(EOFError):
        while True:
            target, load = connection.recv()
            try:
                connection.send(measure(target, load, ready))
            except Exception:  # noqa: BLE001 - told to the parent, which ends us
                connection.send(WorkerFailed(traceback.format_exc()))


def quieten() -> None:
    """Keeps the library's notices of its daily life out of the figures; warnings go to standard error."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
