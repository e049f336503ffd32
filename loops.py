"""The event loop: uvloop where it is installed, which is everywhere but on Windows, with an own watch over descriptors.

libuv stops to watch a descriptor when it has told of an error on it once. Whoever reads what was sent before the error
and waits for the rest, as libpq and Tornado do, is never called again: a Postgres that is killed in the middle of a
statement leaves such sockets. asyncio calls until the descriptor is removed, and everybody relies on it. So descriptors
that are watched by `add_reader` and `add_writer` are in a selector here, as in asyncio, and libuv watches the selector,
which has no errors; transports are libuv's own.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

if sys.platform == "win32":

    def new_loop() -> asyncio.AbstractEventLoop:
        """A loop of asyncio's, since there is no uvloop here."""
        return asyncio.new_event_loop()

else:
    import uvloop

    _READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

    class _Watch:
        """A callback for when a descriptor is ready; it may be ended between that and its turn."""

        __slots__ = ("_arguments", "_callback", "_context", "is_ended")

        def __init__(self, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
            self._callback = callback
            self._arguments = arguments
            self._context = contextvars.copy_context()
            self.is_ended = False

        def run(self) -> None:
            self._context.run(self._callback, *self._arguments)

    class Loop(uvloop.Loop):
        """uvloop's loop, whose watched descriptors are those of a selector.

        Invariant: a descriptor's entry holds a watch for each event that the selector looks for on it, and no other.
        """

        def __init__(self) -> None:
            super().__init__()
            self._selector = selectors.DefaultSelector()
            super().add_reader(self._descriptor_of(self._selector), self._dispatch)

        def add_reader(self, fd: Any, callback: Callable[[*Ts], object], *args: *Ts) -> None:
            """Calls back whenever the descriptor can be read, or has an error."""
            self._watch(fd, _READ, _Watch(callback, args))

        def add_writer(self, fd: Any, callback: Callable[[*Ts], object], *args: *Ts) -> None:
            """Calls back whenever the descriptor can be written to, or has an error."""
            self._watch(fd, _WRITE, _Watch(callback, args))

        def remove_reader(self, fd: Any) -> bool:  # type: ignore[override] # uvloop answers as asyncio, its stubs do not
            """Ends the watch for reading; whether there was one."""
            return self._unwatch(fd, _READ)

        def remove_writer(self, fd: Any) -> bool:  # type: ignore[override]
            """Ends the watch for writing; whether there was one."""
            return self._unwatch(fd, _WRITE)

        def close(self) -> None:
            """Closes the loop, which must not run."""
            if not self.is_closed():
                super().remove_reader(self._descriptor_of(self._selector))
            super().close()
            self._selector.close()

        @staticmethod
        def _descriptor_of(selector: Any) -> int:
            # Those of Linux, macOS and the BSDs have one, which typeshed does not know of the default.
            descriptor: int = selector.fileno()
            return descriptor

        def _watch(self, fd: Any, event: int, watch: _Watch) -> None:
            key = self._selector.get_map().get(fd)
            if key is None:
                self._selector.register(fd, event, {event: watch})
                return
            if (former := key.data.get(event)) is not None:
                former.is_ended = True
            self._selector.modify(fd, key.events | event, key.data | {event: watch})

        def _unwatch(self, fd: Any, event: int) -> bool:
            key = self._selector.get_map().get(fd)
            if key is None or event not in key.data:
                return False
            key.data[event].is_ended = True
            if left := key.events & ~event:
                self._selector.modify(fd, left, {left: key.data[left]})
            else:
                self._selector.unregister(fd)
            return True

        def _dispatch(self) -> None:
            # All of them first: what one of the callbacks ends must not be called, nor what takes its number.
            ready = self._selector.select(0)
            due = [key.data[event] for key, events in ready for event in (_READ, _WRITE) if events & event]
            for watch in due:
                if not watch.is_ended:
                    self._run(watch)

        def _run(self, watch: _Watch) -> None:
            try:
                watch.run()
            except Exception as error:  # noqa: BLE001 - as in asyncio, whose callbacks fail alone
                self.call_exception_handler({"message": "a callback of a descriptor failed", "exception": error})

    def new_loop() -> asyncio.AbstractEventLoop:
        """A loop of ours."""
        return Loop()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on a loop of its own, as `asyncio.run` does, and returns its result."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)
