"""What is said in the bridged channels of Discord, on its way into the log.

Invariants:
* Each channel has one worker, which takes in what happens there one after another, in the order in which Discord told.
* The first thing of each new session of the gateway is a look back: what was said behind the newest message that was
  taken in is read from the channel's history, oldest first, and what waits behind the look back waits until that is
  done. So nothing said is passed over, and a crash at any moment leaves no gap behind the newest one.
* What comes by the history and by the gateway is one message: the command knows it by its id on Discord.
* While the log or Discord is away the worker waits, and keeps its place.
* No more than `MOST_WAITING` things wait in a channel: beyond that they are dropped for one look back, which finds
  them again.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

import discord
import structlog

from bot.bridge.away import AWAY, is_final, patiently
from bot.bridge.syntax import parse
from bot.bridge.text import incoming
from chat import events
from chat.bridging import Bridge, Bridging, Copy, DiscordUser, Said
from eventstore.backoff import Backoff
from eventstore.events import RecordedEvent
from eventstore.log import EventLog

MOST_WAITING = 1000
# How many messages that were taken in are compared with what they are now, and how far back that looks for them.
MOST_COMPARED = 50
FARTHEST_COMPARED = 500

_UNKNOWN_MESSAGE = 10008
_SAID = (discord.MessageType.default, discord.MessageType.reply)
_MENTION = re.compile(r"<(@!?|@&|#)([0-9]{1,20})>")
_EMOJI = re.compile(r"<a?(:\w+:)[0-9]{1,20}>")
_REFUSED = (discord.Forbidden, discord.NotFound)

# Seconds between two attempts to look back: the first pause, and the longest.
PAUSES = (0.5, 30.0)

_log = structlog.get_logger(__name__)


class Bridges(Protocol):
    """What the inbox asks the read model of bridges."""

    async def all(self) -> list[Bridge]:
        """All bridges, as the log stands now."""


class Copies(Protocol):
    """What the inbox asks the read model of what stands on Discord and here."""

    async def received_in(self, discord_channel_id: int, limit: int) -> Sequence[Copy]:
        """The messages that were taken in last from a channel of Discord."""


@dataclass(frozen=True, slots=True)
class _Edited:
    """A message says something else now."""

    message: discord.Message


@dataclass(frozen=True, slots=True)
class _Deleted:
    """A message is gone."""

    message_id: int


@dataclass(frozen=True, slots=True)
class _LookBack:
    """Something may have happened that the bot was not told of."""


_Happening = discord.Message | _Edited | _Deleted | _LookBack
_LOOK_BACK: Final = _LookBack()


class Inbox:
    """Takes in what happens in the bridged channels; `run` is its task.

    The client calls `connected`, `message`, `edited` and `deleted` as it hears of them. These only note it, and must
    be called in the order in which Discord told. `progress` is kept up, for another inbox that comes after this one in
    the same process: for each channel of Discord, the newest message up to which everything is taken in.
    """

    def __init__(
        self,
        log: EventLog,
        bridging: Bridging,
        bridges: Bridges,
        copies: Copies,
        client: discord.Client,
        progress: dict[int, int],
    ) -> None:
        self._log = log
        self._bridges = bridges
        self._reader = _Reader(bridging, bridges, copies, client, progress)
        self._channels: dict[int, tuple[_Channel, asyncio.Task[None]]] = {}
        self._is_connected = False

    def connected(self) -> None:
        """The gateway began a new session: what happened before it, nobody tells."""
        self._is_connected = True
        for channel, _ in self._channels.values():
            channel.look_back()

    def message(self, message: discord.Message) -> None:
        """Somebody said something."""
        self._note(message.channel.id, message)

    def edited(self, message: discord.Message) -> None:
        """Somebody changed a message, or Discord did: it is as it is now."""
        self._note(message.channel.id, _Edited(message))

    def deleted(self, channel_id: int, message_ids: Iterable[int]) -> None:
        """Messages of a channel are gone."""
        for message_id in sorted(message_ids):
            self._note(channel_id, _Deleted(message_id))

    async def run(self) -> None:
        """Takes in until cancelled, from each channel as long as it is bridged."""
        after = await patiently(self._log.head)
        bridges = await patiently(self._bridges.all)
        async with asyncio.TaskGroup() as tasks:
            for bridge in bridges:
                self._open(tasks, bridge.discord_channel_id)
            async for batch in self._log.follow(after):
                for event in batch:
                    self._heed(tasks, event)

    def _note(self, channel_id: int, happening: _Happening) -> None:
        if channel_id in self._channels:
            self._channels[channel_id][0].add(happening)

    def _heed(self, tasks: asyncio.TaskGroup, event: RecordedEvent) -> None:
        if event.type not in (events.ChannelBridged.__name__, events.ChannelUnbridged.__name__):
            return
        match events.decode(event):
            case events.ChannelBridged(discord_channel_id=channel_id):
                self._open(tasks, int(channel_id))
            case events.ChannelUnbridged(discord_channel_id=channel_id):
                self._close(int(channel_id))

    def _open(self, tasks: asyncio.TaskGroup, channel_id: int) -> None:
        if channel_id in self._channels:
            return
        channel = _Channel(channel_id, self._reader)
        # Before the first session a look back would find only what the one at its beginning finds, too.
        if self._is_connected:
            channel.look_back()
        self._channels[channel_id] = channel, tasks.create_task(channel.run(), name=f"from Discord {channel_id}")

    def _close(self, channel_id: int) -> None:
        if channel_id in self._channels:
            _, task = self._channels.pop(channel_id)
            task.cancel()


class _Channel:
    """A bridged channel of Discord: what happened there and is not taken in yet, and the worker that takes it in."""

    def __init__(self, channel_id: int, reader: _Reader) -> None:
        self._id = channel_id
        self._reader = reader
        self._waiting: deque[_Happening] = deque()
        self._stirred = asyncio.Event()
        self._has_warned = False

    def add(self, happening: _Happening) -> None:
        """Notes that something happened."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(happening)
        else:
            self._waiting = deque([_LOOK_BACK])
        self._stirred.set()

    def look_back(self) -> None:
        """Notes that a new session began: what is unreadable may be readable again, and something may be missing."""
        self._has_warned = False
        self.add(_LOOK_BACK)

    async def run(self) -> None:
        """Takes in what happens, until cancelled."""
        while True:
            while not self._waiting:
                await self._something_else()
            await self._take_in(self._waiting.popleft())

    async def _something_else(self) -> None:
        self._stirred.clear()
        await self._stirred.wait()

    async def _take_in(self, happening: _Happening) -> None:
        match happening:
            case discord.Message():
                await self._reader.receive(happening)
            case _Edited(message):
                await self._reader.edit(message)
            case _Deleted(message_id):
                await self._reader.delete(message_id)
            case _LookBack():
                await self._look_back()
            case _:
                assert_never(happening)

    async def _look_back(self) -> None:
        """Looks back until it succeeds.

        Where the channel is hidden or gone, it is tried again when something happens: a message from there or a new
        session of the gateway.
        """
        backoff = Backoff(*PAUSES)
        while True:
            await backoff.pause()
            try:
                return await self._reader.look_back(self._id)
            except AWAY as error:
                if is_final(error):
                    self._warn(error)
                    await self._something_else()
                    backoff.reset()
                else:
                    _log.info("a look back waits for Discord", discord_channel=self._id, error=_in_short(error))
            except Exception:  # noqa: BLE001 - told to the log, and tried again
                _log.exception("a look back failed", discord_channel=self._id)

    def _warn(self, error: Exception) -> None:
        """Says once in a session that the channel cannot be read."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning("a bridged channel cannot be read", discord_channel=self._id, error=_in_short(error))


class _Reader:
    """Hands on to the commands what was said, edited and deleted, and finds in histories what was not told."""

    def __init__(
        self, bridging: Bridging, bridges: Bridges, copies: Copies, client: discord.Client, progress: dict[int, int]
    ) -> None:
        self._bridging = bridging
        self._bridges = bridges
        self._copies = copies
        self._client = client
        self._progress = progress

    async def receive(self, message: discord.Message) -> None:
        """Takes in a message, once; nothing happens if it is none to take in."""
        if (said := heard(message)) is not None:
            await self._take_in(message.id, lambda: self._bridging.receive(said, _correlation_id(message.id)))
        self._progress[message.channel.id] = max(self._progress.get(message.channel.id, 0), message.id)

    async def edit(self, message: discord.Message) -> None:
        """Takes in what a message says now; nothing happens if that is known, or the message is not."""
        if (said := heard(message)) is not None:
            now = said.author_name, said.text, said.link
            await self._take_in(message.id, lambda: self._bridging.edit(message.id, *now, _correlation_id(message.id)))

    async def delete(self, message_id: int) -> None:
        """Takes in that a message is gone; nothing happens if it is not known."""
        await self._take_in(message_id, lambda: self._bridging.delete(message_id, _correlation_id(message_id)))

    async def _take_in(self, message_id: int, attempt: Callable[[], Awaitable[object]]) -> None:
        try:
            await patiently(attempt)
        except Exception:  # noqa: BLE001 - told to the log, with what it was about
            # What one message brings about must not keep all others from being taken in.
            _log.exception("a message on Discord could not be taken in", discord_message=message_id)

    async def look_back(self, channel_id: int) -> None:
        """Takes in what happened in a channel and was not told; raises what keeps its history from being read."""
        bridges = {bridge.discord_channel_id: bridge for bridge in await patiently(self._bridges.all)}
        if channel_id not in bridges:
            return
        channel = self._client.get_channel(channel_id) or await self._client.fetch_channel(channel_id)
        if not isinstance(channel, discord.TextChannel):
            return
        await self._compare(channel)
        after = max(bridges[channel_id].read_through, self._progress.get(channel_id, 0))
        async for message in channel.history(after=discord.Object(after), limit=None, oldest_first=True):
            await self.receive(message)

    async def _compare(self, channel: discord.TextChannel) -> None:
        """Takes in what was edited or deleted meanwhile, of the messages that were taken in last."""
        copies = await patiently(lambda: self._copies.received_in(channel.id, MOST_COMPARED))
        missing = {copy.discord_message_id for copy in copies}
        if not missing:
            return
        oldest, looked_at, reached = min(missing), 0, 0
        async for message in channel.history(limit=FARTHEST_COMPARED):
            looked_at, reached = looked_at + 1, message.id
            if message.id in missing and message.edited_at is not None:
                await self.edit(message)
            missing.discard(message.id)
            if message.id <= oldest:
                break
        # Where the history ended sooner, everything was looked at.
        farthest = reached if looked_at == FARTHEST_COMPARED else 0
        try:
            for message_id in sorted(missing):
                if message_id > farthest and await _is_gone(channel, message_id):
                    await self.delete(message_id)
        except discord.Forbidden:
            # What is said from now on is told all the same.
            _log.warning("the bot may not read the history of a bridged channel", discord_channel=channel.id)


async def _is_gone(channel: discord.TextChannel, message_id: int) -> bool:
    """Whether a message was deleted, and is not merely hidden: without the right to it, a history shows nothing."""
    try:
        await channel.fetch_message(message_id)
    except discord.NotFound as error:
        if error.code != _UNKNOWN_MESSAGE:
            raise
        return True
    return False


def heard(message: discord.Message) -> Said | None:
    """What a person said by a message; None if it is none to take in.

    That is what bots and webhooks say (this bot, too), what Discord itself says (such as that somebody joined), what
    is asked of the bot, and what holds neither text nor files.
    """
    if message.author.bot or message.webhook_id is not None or message.type not in _SAID:
        return None
    if parse(message.content) is not None:
        return None
    snapshots = message.message_snapshots
    content = "\n".join(filter(None, [_named(message), *(snapshot.content for snapshot in snapshots)]))
    files = [*message.attachments, *(file for snapshot in snapshots for file in snapshot.attachments)]
    urls = [*(file.url for file in files), *(sticker.url for sticker in message.stickers)]
    if not content.strip() and not urls:
        return None
    return Said(
        discord_channel_id=message.channel.id,
        discord_message_id=message.id,
        author=DiscordUser(message.author.id, message.author.name),
        author_name=_name(message.author),
        text=incoming(content, urls),
        link=message.jump_url,
    )


def _named(message: discord.Message) -> str:
    """The text of a message with names in place of ids, as Discord's own clients show it.

    A name is that of the account, not that in the guild: histories know only the former, and what is read there must
    be the same text as what was told by the gateway.
    """
    people = {user.id: _name(user) for user in message.mentions}

    def name(match: re.Match[str]) -> str:
        kind, number = match[1], int(match[2])
        named: str | None
        if kind == "#":
            channel = message.guild and message.guild.get_channel_or_thread(number)
            named = channel.name if channel else None
        elif kind == "@&":
            role = message.guild and message.guild.get_role(number)
            named = role.name if role else None
        else:
            named = people.get(number)
        return match[0] if named is None else f"{kind[0]}{named}"

    return _EMOJI.sub(r"\1", _MENTION.sub(name, message.content))


def _name(user: discord.User | discord.Member) -> str:
    return user.global_name or user.name


def _correlation_id(message_id: int) -> str:
    """What all that is done because of a message on Discord is done in the course of."""
    return f"discord-{message_id}"


def _in_short(error: Exception) -> str:
    """What went wrong, without the address that was asked."""
    status = f" {error.status}" if isinstance(error, discord.HTTPException) else ""
    return f"{type(error).__name__}{status}"
