"""Replays while everybody writes and reads: nobody fails, and nobody sees a read model that is not whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import groupby
from typing import Any

import pytest

import projections
from chat.commands import Account, Channel, Commands
from chat.events import MessageDeleted, MessageSent
from eventstore import rebuild as rebuild_module
from eventstore.events import Context, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog
from eventstore.rebuild import Rebuilt, check, rebuild
from projections.messages import Message
from projections.models import ReadModels
from tests import tables
from tests.conftest import until
from tests.fold import Fold

PASSWORD = "Passw0rd!"
WRITERS = 64
READERS = 6
TOGETHER = 3  # messages of one append
CONTEXT = Context(actor=None, correlation_id="load")


class Crowd:
    """People who write, read and come until they are told to stop. Whatever any of them meets ends the test."""

    def __init__(self, log: EventLog, commands: Commands, models: ReadModels, alice: Account, den: Channel) -> None:
        self._log = log
        self._commands = commands
        self._models = models
        self._alice = alice
        self._den = den
        self._going_on = True
        self.done = 0

    async def __aenter__(self) -> Crowd:
        self._group = await asyncio.TaskGroup().__aenter__()
        for act in (*[self._send_together] * (WRITERS - 2), self._send_and_delete, self._come):
            self._begin(self._go_on(act))
        for _ in range(READERS):
            self._begin(self._read_on())
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._going_on = False
        await self._group.__aexit__(*error)

    def _begin(self, life: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(life)

    async def does(self, more: int) -> None:
        """Returns once the people have done so many more things."""
        enough = self.done + more
        await until(lambda: self.done >= enough, seconds=30)

    async def _go_on(self, act: Callable[[int], Awaitable[None]]) -> None:
        while self._going_on:
            self.done += 1
            await act(self.done)

    def _message(self, text: str, stream: str) -> StreamWrite:
        sent = MessageSent(self._den.channel_id, self._alice.account_id, text)
        return StreamWrite(stream, [sent.recorded_form()], expected_version=None)

    async def _send_together(self, n: int) -> None:
        writes = [self._message(f"together {n}", f"message-{new_id()}") for _ in range(TOGETHER)]
        sent = await self._log.append(*writes, context=CONTEXT)
        assert await self._models.messages.by_id(sent.first_position), "what was acknowledged is to be read"

    async def _send_and_delete(self, n: int) -> None:
        stream = f"message-{new_id()}"
        sent = await self._log.append(self._message(f"deleted {n}", stream), context=CONTEXT)
        deleted = MessageDeleted(sent.first_position, self._alice.account_id)
        await self._log.append(StreamWrite(stream, [deleted.recorded_form()], expected_version=None), context=CONTEXT)
        assert await self._models.messages.by_id(sent.first_position) is None, "what was deleted stays so"

    async def _come(self, n: int) -> None:
        somebody = await self._commands.register(f"person-{n}", PASSWORD, "c")
        await self._commands.add_member(self._alice, self._den.name, somebody.username, "c")
        assert await self._models.channels.of_account(somebody.account_id) == [self._den]
        await self._commands.generate_token(somebody, "c")

    async def _read_on(self) -> None:
        newest = 0
        while self._going_on:
            found = await self._models.messages.newest_in_channel(self._den, 100)
            newest = whole(found, newest)
            assert await self._models.accounts.credentials("alice")
            self.done += 1


def whole(found: list[Message], newest: int) -> int:
    """The id of the newest message that stands for ever, of messages of which nothing may be missing."""
    assert [message.message_id for message in found] == sorted(message.message_id for message in found)
    standing = [message for message in found if message.text.startswith("together")]
    # The oldest ones may be cut.
    groups = [len(list(group)) for _, group in groupby(message.text for message in standing)][1:]
    assert all(count == TOGETHER for count in groups), "of what was said together all is there"
    last = standing[-1].message_id if standing else 0
    assert last >= newest, "nothing that was there is gone"
    return last


@pytest.mark.slow
@pytest.mark.gen_test
async def test_nobody_fails_or_sees_half_a_model_while_it_is_made_anew(
    database: str, commands: Commands, log: EventLog, models: ReadModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that what comes meanwhile is caught up with in several goes.
    monkeypatch.setattr(rebuild_module, "_LAST_STRETCH", 50)
    alice = await commands.register("alice", PASSWORD, "c")
    await commands.make_channel(alice, "den", "c")
    den = await models.channels.by_name("den")
    assert den is not None
    replays: list[Rebuilt] = []

    async with Crowd(log, commands, models, alice, den) as crowd:
        for _ in range(4):
            await crowd.does(300)
            replays.append(await asyncio.to_thread(rebuild, database, projections.ALL, range_size=2_000))
        await crowd.does(300)
        # And a check sees a moment at which live tables and log agree.
        differences = await asyncio.to_thread(lambda: list(check(database, projections.ALL, range_size=2_000)))
        await crowd.does(300)

    assert differences == []
    positions = [replay.position for replay in replays]
    assert positions == sorted(set(positions)), "there was something to catch up with each time"
    with tables.connect(database) as connection:
        assert tables.read_models(connection) == Fold(await log.read(limit=1_000_000)).tables()
