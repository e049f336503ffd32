"""The loop: descriptors that are watched on it, as asyncio's own loop watches them."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

import loops

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def loop(io_loop: IOLoop) -> asyncio.AbstractEventLoop:
    found: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    return found


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_it_can_be_closed_twice() -> None:
    loop = loops.new_loop()
    loop.close()
    loop.close()
    assert loop.is_closed()


@pytest.mark.gen_test
async def test_who_reads_is_called_again_for_the_error_behind_what_was_sent_before_it(
    loop: asyncio.AbstractEventLoop, pair: Pair
) -> None:
    ours, theirs = pair
    seen: list[bytes | OSError] = []

    def read() -> None:
        try:
            seen.append(ours.recv(100))
        except OSError as error:
            seen.append(error)
            loop.remove_reader(ours)
            ended.set()

    ended = asyncio.Event()
    loop.add_reader(ours, read)
    ours.send(b"what nobody reads makes the end an error")
    theirs.send(b"the last words")
    theirs.close()

    async with asyncio.timeout(5):
        await ended.wait()
    assert seen[0] == b"the last words"
    assert isinstance(seen[1], ConnectionResetError)


@pytest.mark.gen_test
async def test_a_descriptor_has_one_reader_and_one_writer_until_they_are_removed(
    loop: asyncio.AbstractEventLoop, pair: Pair
) -> None:
    ours, theirs = pair
    called: list[str] = []
    loop.add_reader(ours, called.append, "first")
    loop.add_reader(ours, called.append, "second")
    loop.add_writer(ours, called.append, "writer")
    theirs.send(b"x")
    await turns()
    assert {"second", "writer"} == set(called)

    assert loop.remove_writer(ours) is True
    assert loop.remove_writer(ours) is False
    called.clear()
    await turns()
    assert set(called) == {"second"}

    assert loop.remove_reader(ours) is True
    assert loop.remove_reader(ours) is False
    called.clear()
    await turns()
    assert not called


@pytest.mark.gen_test
async def test_what_a_callback_removes_is_not_called_nor_what_takes_its_number(loop: asyncio.AbstractEventLoop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []
    replaced: list[Any] = []

    def take_the_others_place(own: int) -> None:
        called.append(own)
        if len(called) > 1:
            return
        other = next(pair[0] for pair in pairs if pair[0].fileno() != own)
        loop.remove_reader(other)
        spare, silent = socket.socketpair()
        os.dup2(spare.fileno(), other.fileno())
        replaced.extend((spare, silent))
        loop.add_reader(other, called.append, -1)

    for ours, theirs in pairs:
        loop.add_reader(ours, take_the_others_place, ours.fileno())
        theirs.send(b"x")
    await turns(1)
    first = called[0]
    await turns()
    assert set(called) == {first}
    for each in (*replaced, *(end for pair in pairs for end in pair)):
        loop.remove_reader(each)
        each.close()


@pytest.mark.gen_test
async def test_a_callback_that_fails_is_told_and_fails_alone(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    ours, theirs = pair
    told: list[Any] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

    def fail() -> None:
        ours.recv(1)
        raise ValueError("as it should")

    loop.add_reader(ours, fail)
    theirs.send(b"xy")
    await turns()
    assert [str(error) for error in told] == ["as it should"] * 2
    loop.remove_reader(ours)
    loop.set_exception_handler(None)


@pytest.mark.gen_test
async def test_a_callback_has_the_context_in_which_it_was_added(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []
    variable.set("that of the task")
    loop.add_writer(pair[0], lambda: seen.append(variable.get()))
    variable.set("a later one")
    await turns()
    loop.remove_writer(pair[0])
    assert set(seen) == {"that of the task"}


def test_run_gives_the_result() -> None:
    async def answer() -> int:
        return 42

    assert loops.run(answer()) == 42
