"""The bridge to Discord as one part that runs: of all processes of a log one at a time is the bridge, by `Leadership`.

Invariants:
* Whatever Discord does, or does not, ends neither the server nor the bridge: it is tried again, with longer and longer
  pauses; rarely, where somebody has to change a setting first, which is said as an error.
* The outbox needs REST alone, and goes on while the gateway is away.
* Each life of the gateway's connection has a client, an inbox and a conversation of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import discord
import structlog

from bot.bridge.away import AWAY
from bot.bridge.client import GatewayClient, prepare
from bot.bridge.inbox import Inbox
from bot.bridge.outbox import Declined, NotAuthorised, Outbox, TryLater
from bot.bridge.rest import Rest, asked, close, logged_in
from bot.bridge.slash import Conversation
from chat.bridging import Bridging
from eventstore.backoff import Backoff
from eventstore.leadership import Leadership
from eventstore.log import EventLog
from projections.models import ReadModels

# Any number that no other user of the database's advisory locks takes.
LEADERSHIP = 0x6D696E75_7468
NAME = "the bridge to Discord"

# Seconds between two attempts: the first pause, and the longest; and where only a change of settings will help.
_PAUSES = (1.0, 30.0)
_RARELY = 300.0
# A connection that lasted so long was a good one: the next is tried at once.
_GOOD_SECONDS = 60.0
_CANCEL_AGAIN_SECONDS = 0.2
_AUTHENTICATION_FAILED = 4004

_GONE: tuple[type[Exception], ...] = (TryLater, Declined, *AWAY)

_log = structlog.get_logger(__name__)


class Bridge:
    """The bridge, as the bot that has this token; `run` is its task. `give_up` is told by `Outbox`."""

    def __init__(
        self,
        log: EventLog,
        models: ReadModels,
        bridging: Bridging,
        leadership: Leadership,
        *,
        token: str,
        api: str,
        give_up: timedelta,
        pauses: tuple[float, float] = _PAUSES,
    ) -> None:
        self._log = log
        self._models = models
        self._bridging = bridging
        self._leadership = leadership
        self._token = token
        self._give_up = give_up
        self._pauses = pauses
        prepare(api)

    async def run(self) -> None:
        """Bridges whenever this process leads, until cancelled."""
        await self._leadership.run(self.lead)

    async def lead(self) -> None:
        """Bridges until cancelled, whoever leads."""
        progress: dict[int, int] = {}
        patience = _Patience(self._pauses)
        while True:
            await patience.pause()
            match await _end_of(self._bridge(progress)):
                case NotAuthorised():
                    _log.error("Discord does not know the bot's token: give the right discord_token, and start again")
                    await asyncio.sleep(_RARELY)
                case problem if isinstance(problem, _GONE):
                    patience.tell("the bridge waits for Discord", problem)
                case problem:
                    # What waits goes on waiting in the log.
                    _log.error("the bridge to Discord failed, and begins anew", exc_info=problem)

    async def _bridge(self, progress: dict[int, int]) -> None:
        """Bridges as long as it goes well; raises why it does not."""
        async with logged_in(self._token) as rest, asyncio.TaskGroup() as parts:
            parts.create_task(self._outbox(rest).run(), name="to Discord")
            parts.create_task(self._listen(progress), name="from Discord")

    def _outbox(self, rest: Rest) -> Outbox:
        return Outbox(
            self._log, self._models.deliveries, self._bridging, rest, give_up=self._give_up, pauses=self._pauses
        )

    async def _listen(self, progress: dict[int, int]) -> None:
        """Listens at the gateway, again and again; raises `NotAuthorised`."""
        patience = _Patience(self._pauses)
        while True:
            await patience.pause()
            match await _end_of(self._one_life(progress)):
                case NotAuthorised() as problem:
                    raise problem
                case discord.PrivilegedIntentsRequired():
                    _log.error("Discord refuses to tell what is said: switch on the bot's Message Content Intent there")
                    await asyncio.sleep(_RARELY)
                case problem if isinstance(problem, _GONE):
                    patience.tell("the gateway of Discord is gone, and tried again", problem)
                case problem:
                    # The outbox goes on.
                    _log.error("what comes from Discord could not be listened to, and is begun anew", exc_info=problem)

    async def _one_life(self, progress: dict[int, int]) -> None:
        """Listens until the connection is lost for good, which it raises."""
        client = GatewayClient()
        conversation = Conversation(client, self._bridging)
        inbox = Inbox(self._log, self._bridging, self._models.bridges, self._models.deliveries, client, progress)
        client.tell(inbox, conversation)
        try:
            async with asked(client):
                await client.login(self._token)
            async with asyncio.TaskGroup() as parts:
                parts.create_task(inbox.run(), name="from Discord: inbox")
                parts.create_task(conversation.register(), name="from Discord: commands")
                await _connect(client)
        finally:
            await close(client)


class _Patience:
    """Longer and longer pauses from one attempt to the next, but none after one that went well for a while."""

    def __init__(self, pauses: tuple[float, float]) -> None:
        self._backoff = Backoff(*pauses)
        self._began = time.monotonic()
        self._has_told = False

    async def pause(self) -> None:
        """Waits before the next attempt."""
        if self._went_well():
            self._backoff.reset()
        await self._backoff.pause()
        self._began = time.monotonic()

    def tell(self, what: str, problem: Exception) -> None:
        """Tells the log why an attempt ended: once, until one went well again."""
        (_log.debug if self._has_told and not self._went_well() else _log.warning)(what, reason=_in_words(problem))
        self._has_told = True

    def _went_well(self) -> bool:
        return time.monotonic() - self._began > _GOOD_SECONDS


async def _end_of(work: Coroutine[Any, Any, None]) -> Exception:
    """What ended a work that ends by errors alone, the gravest if there are several.

    It is a task of its own, since a group of tasks that is ending by an error takes no notice of being cancelled.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
        await asyncio.wait([task])
    error = None if task.cancelled() else task.exception()
    problems = _leaves(error) if isinstance(error, Exception) else [RuntimeError("it ended by itself")]
    return min(problems, key=_gravity)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancels a task until it has ended: discord.py takes some for the end of something else."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN_SECONDS)


def _leaves(error: Exception) -> list[Exception]:
    """The error, or all errors of a group."""
    if not isinstance(error, ExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in _leaves(each)]


def _gravity(error: Exception) -> int:
    """What matters first of several errors: what only a change of settings helps, then our own faults."""
    if isinstance(error, NotAuthorised | discord.PrivilegedIntentsRequired):
        return 0
    return 2 if isinstance(error, _GONE) else 1


async def _connect(client: discord.Client) -> None:
    """Stays at the gateway, and raises what ended that."""
    connecting = asyncio.create_task(client.connect(reconnect=False), name="from Discord: gateway")
    try:
        await asyncio.wait([connecting])
    finally:
        # First of all: a client that is closed ends by itself, where it would not by being cancelled.
        await close(client)
        await _end(connecting)
    try:
        connecting.result()
    except discord.ConnectionClosed as error:
        if error.code == _AUTHENTICATION_FAILED:
            raise NotAuthorised from error
        raise TryLater(f"closed by Discord ({error.code})") from error
    raise TryLater("the connection was lost")


def _in_words(problem: Exception) -> str:
    """What went wrong, in one line."""
    return str(problem) or type(problem).__name__
