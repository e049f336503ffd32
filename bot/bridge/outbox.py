"""The outbox: delivers to Discord what the log says is to be delivered.

Invariants:
* What waits is a question to the read model, asked again before each attempt: there is no other list of it. So nothing
  is lost by a crash, and what was deleted meanwhile is not sent.
* Each destination has a worker of its own, which delivers the oldest and goes on to the next only when Discord has
  taken it, or it is given up, and the log has it. So what is for one destination arrives in order, and no destination
  waits for another.
* A delivery is sent with nonces made of it, so that Discord itself knows a repeat for some minutes. Beyond them the
  channel's history tells: what may have been sent before (by an earlier leader, or by an attempt that did not end well)
  is looked for there first, behind all that is known to have been delivered there.
* What stands on Discord of something that is deleted or erased here is deleted there. Each channel has a worker for
  that, too.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol, TypeVar

import structlog

from bot.bridge.away import patiently
from bot.bridge.text import outgoing
from chat import events
from chat.bridging import Copy, Delivery, Destination
from chat.commands import utc_now
from eventstore.backoff import Backoff
from eventstore.events import RecordedEvent
from eventstore.log import EventLog

# By this much Discord's clock may be behind the database's, by which it is known when a delivery was requested.
_CLOCKS_DIFFER = timedelta(minutes=10)
# Discord takes no longer nonce (API reference, "Create Message").
_NONCE = 25
# How many workers ask the read models at once, so that a thousand of them do not crowd out those who chat.
_QUERIES = 4
# So much of what is to be deleted on Discord is looked through; more, up to the bound, if there may be other channels.
_DOOMED, _MOST_DOOMED = 100, 12_800

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Declined(Exception):
    """Discord refuses for good; the message says why, in a few words."""


class TryLater(Exception):
    """Discord could not be asked, or could not do it now, or did it and could not say so; the message says why.

    `seconds` is how long it asks to wait, if it does.
    """

    def __init__(self, reason: str, *, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class NotAuthorised(Exception):
    """Discord does not know the bot's token."""


class Sent(NamedTuple):
    """A message of the bot's that stands on Discord."""

    message_id: int
    text: str


class DiscordSide(Protocol):
    """What the outbox asks of Discord. All of it raises `Declined`, `TryLater` and `NotAuthorised`."""

    async def direct_channel(self, user_id: int) -> int:
        """The channel of direct messages with a person."""

    async def send(self, channel_id: int, text: str, nonce: str) -> int:
        """Sends a message that mentions nobody; its id. A repeat of a nonce gives the message that was sent by it."""

    def own_messages(self, channel_id: int, since: datetime) -> AsyncGenerator[list[Sent], None]:
        """What the bot has sent to a channel since then, newest first, page by page."""

    async def delete(self, channel_id: int, message_id: int) -> None:
        """Deletes a message."""


class DeliveryModel(Protocol):
    """What the outbox asks the read model."""

    async def destinations(self) -> list[Destination]:
        """Where something waits to be delivered."""

    async def waiting(self, destination: Destination, limit: int) -> list[Delivery]:
        """What waits for a destination, oldest first."""

    async def known(self, discord_message_ids: Sequence[int]) -> set[int]:
        """Which of these messages on Discord are known to stand for something here."""

    async def doomed(self, limit: int) -> list[Copy]:
        """What is to be deleted on Discord."""


class Settling(Protocol):
    """The commands by which the outbox records what became of a delivery; each is recorded once, however often said."""

    async def delivered(self, delivery: Delivery, discord_channel_id: int, discord_message_ids: Sequence[int]) -> None:
        """Discord took it."""

    async def failed(self, delivery: Delivery, reason: str) -> None:
        """It is given up."""

    async def withdrawn(self, discord_channel_id: int, discord_message_ids: Sequence[int]) -> None:
        """These messages are gone from Discord, or cannot be removed."""


@dataclass(slots=True)
class _Attempt:
    """A delivery on its way: the messages that it is by now, and whether there may be more of them than known."""

    delivery: Delivery
    is_doubtful: bool
    is_put_off: bool = False
    channel_id: int | None = None
    message_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Lane:
    """A destination that has a worker.

    `is_stirred`: something new may wait since the worker looked. `is_new`: it has begun nothing yet.
    """

    destination: Destination
    backoff: Backoff
    is_stirred: bool = False
    is_new: bool = True
    attempt: _Attempt | None = None


class Outbox:
    """Delivers; `run` is its task.

    What Discord has not taken `give_up` after it was requested has failed. `pauses` are the first and the longest pause
    between two attempts, in seconds.
    """

    def __init__(
        self,
        log: EventLog,
        deliveries: DeliveryModel,
        settling: Settling,
        discord: DiscordSide,
        *,
        give_up: timedelta,
        pauses: tuple[float, float] = (1.0, 30.0),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._log = log
        self._deliveries = deliveries
        self._settling = settling
        self._discord = discord
        self._give_up = give_up
        self._pauses = pauses
        self._now = now
        self._began = 0
        # For each channel of Discord the newest message that was recorded as delivered there, be it forgotten since.
        self._newest: dict[int, int] = {}
        self._lanes: dict[Destination, _Lane] = {}
        self._queries = asyncio.Semaphore(_QUERIES)
        self._withdrawals = asyncio.Event()
        self._withdrawing: set[int] = set()

    async def run(self) -> None:
        """Delivers until cancelled; raises `NotAuthorised`, in a group."""
        self._lanes.clear()
        self._withdrawing.clear()
        self._began = await patiently(self._log.head)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._withdraw_all(tasks), name="to Discord: withdrawals")
            for destination in await self._ask(self._deliveries.destinations):
                self._stir(tasks, destination)
            async for batch in self._log.follow(self._began):
                for event in batch:
                    self._heed(tasks, event)

    def _heed(self, tasks: asyncio.TaskGroup, event: RecordedEvent) -> None:
        if event.type in _DOOMING:
            self._withdrawals.set()
        elif event.type == events.DiscordMessageRequested.__name__ and event.data is not None:
            requested = events.decode(event)
            if isinstance(requested, events.DiscordMessageRequested):
                self._stir(tasks, _destination(requested))

    async def _ask(self, query: Callable[[], Awaitable[_T]]) -> _T:
        async with self._queries:
            return await patiently(query)

    # Delivering

    def _stir(self, tasks: asyncio.TaskGroup, destination: Destination) -> None:
        """Something may wait for a destination."""
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = _Lane(destination, Backoff(*self._pauses))
            tasks.create_task(self._work(lane), name="to Discord")
        lane.is_stirred = True

    async def _work(self, lane: _Lane) -> None:
        """Delivers what waits for a destination, until nothing does."""
        while True:
            # The pause comes before the question, whose answer is old behind it.
            await lane.backoff.pause()
            lane.is_stirred = False
            waiting = await self._ask(lambda: self._deliveries.waiting(lane.destination, 1))
            attempt = await self._attempt(lane, waiting)
            if attempt is not None:
                await self._try(lane, attempt)
            elif not lane.is_stirred:
                del self._lanes[lane.destination]
                return

    async def _attempt(self, lane: _Lane, waiting: Sequence[Delivery]) -> _Attempt | None:
        """What to try next: the oldest that waits, which may be the one that was tried before."""
        last, oldest = lane.attempt, waiting[0] if waiting else None
        if last is not None and (oldest is None or oldest.delivery_id != last.delivery.delivery_id):
            # It was deleted here while it was on its way, and may have arrived all the same.
            await self._account_for(lane, last)
            last = None
        if oldest is not None and last is None:
            # An earlier leader may have been about to deliver this one, and no other.
            last = _Attempt(oldest, is_doubtful=lane.is_new and oldest.delivery_id <= self._began)
            lane.is_new = False
        lane.attempt = last
        return last

    async def _try(self, lane: _Lane, attempt: _Attempt) -> None:
        """Tries to deliver, once; afterwards it is settled, or is to be tried again now."""
        try:
            channel_id = await self._send(attempt)
        except Declined as declined:
            await self._fail(attempt, str(declined))
        except TryLater as problem:
            await self._put_off(lane, attempt, problem)
            return
        except NotAuthorised:
            raise
        except Exception as error:  # noqa: BLE001 - told to the log, and tried again like everything else
            _log.exception("a message could not be delivered to Discord", delivery=attempt.delivery.delivery_id)
            await self._put_off(lane, attempt, TryLater(type(error).__name__))
            return
        else:
            await self._record(attempt, channel_id)
        lane.attempt = None
        lane.backoff.reset()

    async def _send(self, attempt: _Attempt) -> int:
        """Sends what is not on Discord yet; the channel in which it is then."""
        delivery = attempt.delivery
        channel_id = await self._channel(attempt)
        parts = outgoing(delivery.sender, delivery.text)
        if not parts:
            raise Declined("it holds nothing but white space")
        if attempt.is_doubtful:
            await self._look_for(attempt, channel_id, parts)
        for number in range(len(attempt.message_ids), len(parts)):
            sent = await self._discord.send(channel_id, parts[number], nonce(delivery, number))
            attempt.message_ids.append(sent)
        return channel_id

    async def _channel(self, attempt: _Attempt) -> int:
        """The channel of the delivery's destination."""
        if attempt.channel_id is None:
            to = attempt.delivery.destination
            if to.discord_user_id is not None:
                attempt.channel_id = await self._discord.direct_channel(to.discord_user_id)
            elif to.discord_channel_id is not None:
                attempt.channel_id = to.discord_channel_id
            else:
                raise Declined("it has no destination")
        return attempt.channel_id

    async def _look_for(self, attempt: _Attempt, channel_id: int, parts: Sequence[str]) -> None:
        """Finds out by the channel's history which of the parts are on Discord already, as far as it may be read."""
        try:
            unknown = await self._unknown(channel_id, attempt.delivery.requested_at - _CLOCKS_DIFFER)
        except Declined as declined:
            _log.info("the history of a channel cannot be read", channel=channel_id, reason=str(declined))
            unknown = []
        found = list(_matching(parts, unknown))
        if len(found) > len(attempt.message_ids):
            attempt.message_ids = found
        attempt.is_doubtful = False

    async def _unknown(self, channel_id: int, since: datetime) -> list[Sent]:
        """What the bot has sent to a channel since then and no delivery is known by, oldest first.

        It is all behind what is known, since a destination's deliveries are settled one after the other: so a long
        history is not read to its end, and an equal text that was withdrawn is not taken for one that is not sent yet.
        """
        unknown: list[Sent] = []
        newest = self._newest.get(channel_id, 0)
        async with aclosing(self._discord.own_messages(channel_id, since)) as pages:
            async for page in pages:
                known = await self._known(page)
                for sent in page:
                    if sent.message_id in known or sent.message_id <= newest:
                        return unknown[::-1]
                    unknown.append(sent)
        return unknown[::-1]

    async def _known(self, page: Sequence[Sent]) -> set[int]:
        ids = [sent.message_id for sent in page]
        return await self._ask(lambda: self._deliveries.known(ids)) if ids else set()

    async def _put_off(self, lane: _Lane, attempt: _Attempt, problem: TryLater) -> None:
        """Gives a delivery up if it is time, else notes what the next attempt must know."""
        # Also what was refused at last may have been done before: discord.py repeats some requests by itself.
        attempt.is_doubtful = True
        left = self._time_left(attempt.delivery)
        if left <= 0:
            await self._give_up_on(attempt, problem)
            lane.attempt = None
            return
        if not attempt.is_put_off:
            _log.info("a message waits for Discord", delivery=attempt.delivery.delivery_id, reason=str(problem))
        attempt.is_put_off = True
        if problem.seconds is not None:
            await asyncio.sleep(min(problem.seconds, left))

    async def _give_up_on(self, attempt: _Attempt, problem: TryLater) -> None:
        """Records that it has failed, unless all of it is found on Discord now."""
        if await self._stands(attempt):
            await self._record(attempt, await self._channel(attempt))
        else:
            await self._fail(attempt, f"not taken within {_in_words(self._give_up)}: {problem}")

    async def _stands(self, attempt: _Attempt) -> bool:
        """Whether all parts of a delivery are seen on Discord; where nobody can look, nothing is."""
        parts = outgoing(attempt.delivery.sender, attempt.delivery.text)
        try:
            await self._look_for(attempt, await self._channel(attempt), parts)
        except (Declined, TryLater):
            return False
        except NotAuthorised:
            raise
        except Exception:  # noqa: BLE001 - told to the log, and not seen is not seen
            _log.exception("a message could not be looked for on Discord", delivery=attempt.delivery.delivery_id)
            return False
        return len(attempt.message_ids) == len(parts)

    async def _record(self, attempt: _Attempt, channel_id: int) -> None:
        await patiently(lambda: self._settling.delivered(attempt.delivery, channel_id, attempt.message_ids))
        self._newest[channel_id] = max(self._newest.get(channel_id, 0), *attempt.message_ids)

    async def _fail(self, attempt: _Attempt, reason: str) -> None:
        await patiently(lambda: self._settling.failed(attempt.delivery, reason))

    def _time_left(self, delivery: Delivery) -> float:
        """For how many seconds it is tried still."""
        return (delivery.requested_at + self._give_up - self._now()).total_seconds()

    async def _account_for(self, lane: _Lane, attempt: _Attempt) -> None:
        """Records what is on Discord of a delivery that is not to be delivered any more, so that it is withdrawn."""
        delivery = attempt.delivery
        while attempt.is_doubtful:
            await lane.backoff.pause()
            try:
                await self._look_for(attempt, await self._channel(attempt), outgoing(delivery.sender, delivery.text))
            except Declined:
                break
            except TryLater as problem:
                if self._time_left(delivery) <= 0:
                    _log.warning("a copy of a deleted message may be left on Discord", reason=str(problem))
                    break
        if attempt.message_ids:
            await self._record(attempt, await self._channel(attempt))

    # Withdrawing

    async def _withdraw_all(self, tasks: asyncio.TaskGroup) -> None:
        """Has deleted on Discord what is to be deleted there, until cancelled."""
        limit = _DOOMED
        while True:
            self._withdrawals.clear()
            doomed = await self._ask(functools.partial(self._deliveries.doomed, limit))
            self._begin_withdrawals(tasks, doomed)
            if len(doomed) == limit < _MOST_DOOMED:
                # Behind them there may be some of a channel that has no worker yet.
                limit *= 2
                continue
            await self._withdrawals.wait()
            if limit > _DOOMED:
                # To look through so much again for each deletion would be work without end.
                await asyncio.sleep(self._pauses[0])
                limit = _DOOMED

    def _begin_withdrawals(self, tasks: asyncio.TaskGroup, doomed: Iterable[Copy]) -> None:
        """Gives the messages of each channel that has no worker to a new one."""
        by_channel: dict[int, list[Copy]] = {}
        for copy in doomed:
            if copy.discord_channel_id not in self._withdrawing:
                by_channel.setdefault(copy.discord_channel_id, []).append(copy)
        for channel_id, copies in by_channel.items():
            self._withdrawing.add(channel_id)
            tasks.create_task(self._withdraw(channel_id, copies), name="to Discord: withdrawals from a channel")

    async def _withdraw(self, channel_id: int, doomed: Iterable[Copy]) -> None:
        """Deletes messages of a channel, each when Discord lets it."""
        backoff = Backoff(*self._pauses)
        for copy in doomed:
            await backoff.pause()
            while not await self._delete(copy):
                await backoff.pause()
            backoff.reset()
        self._withdrawing.discard(channel_id)
        self._withdrawals.set()

    async def _delete(self, copy: Copy) -> bool:
        try:
            await self._discord.delete(copy.discord_channel_id, copy.discord_message_id)
        except Declined as declined:
            # It is gone, or is somebody else's and cannot be removed: neither changes by itself.
            _log.info("a message on Discord was not deleted", message=copy.discord_message_id, reason=str(declined))
        except TryLater as problem:
            _log.info("a withdrawal waits for Discord", message=copy.discord_message_id, reason=str(problem))
            if problem.seconds is not None:
                await asyncio.sleep(problem.seconds)
            return False
        await patiently(lambda: self._settling.withdrawn(copy.discord_channel_id, [copy.discord_message_id]))
        return True


_DOOMING = frozenset(kind.__name__ for kind in (events.MessageDeleted, events.DiscordMessageDelivered, events.Erased))


def nonce(delivery: Delivery, part: int) -> str:
    """What Discord knows a part of a delivery by, at most 25 characters.

    The digest tells apart logs that one bot serves one after the other, and that count from 1.
    """
    digest = hashlib.sha256(delivery.stream.encode()).hexdigest()
    return f"{delivery.delivery_id}-{part}-{digest}"[:_NONCE]


def _destination(requested: events.DiscordMessageRequested) -> Destination:
    channel, user = requested.discord_channel_id, requested.discord_user_id
    return Destination(None if channel is None else int(channel), None if user is None else int(user))


def _matching(parts: Iterable[str], sent: Iterable[Sent]) -> Iterable[int]:
    """The messages that are the first of the parts, in order, as far as they are there."""
    later = iter(sent)
    for part in parts:
        found = next((message for message in later if _seen(message.text) == _seen(part)), None)
        if found is None:
            return
        yield found.message_id


def _seen(text: str) -> str:
    """What readers see of a text: Discord keeps that, but takes away and changes some of what they do not see."""
    return "".join(character for character in text if character.isprintable() and character != " ")


def _in_words(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    return f"{seconds // 3600} h" if seconds % 3600 == 0 else f"{seconds} s"
