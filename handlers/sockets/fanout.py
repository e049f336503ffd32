"""From the followed log to the listeners: one event of the log, one event for everybody whom it concerns.

Invariants:
* Events are handled in the order of the log, and `position` is the last one that was handled: everybody who was in a
  room then has been sent everything up to it.
* Who is in which room changes with the log, too: a member gets what is sent behind its coming, and nothing before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import structlog

from chat import events
from chat.commands import Account, Channel
from chat.names import ANNOUNCE
from eventstore.backoff import Backoff
from eventstore.errors import LogUnavailable
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from handlers.sockets.registry import Registry
from handlers.v3.answers import timestamp
from projections.models import ReadModels
from realtime.server import Namespace, Socket

NEW_DM = "new_dm"
DISCORD_DELIVERY = "discord_delivery"
# Everybody who is registered.
EVERYONE = "everyone"

# Events that are passed on in one turn of the loop at most.
_SLICE = 200

_log = structlog.get_logger(__name__)

# What clients are told, and may have missed.
_TOLD = frozenset(
    kind.__name__
    for kind in (
        events.MessageSent,
        events.DirectMessageSent,
        events.DiscordMessageDelivered,
        events.DiscordMessageFailed,
    )
)
# What the fan-out does not pass on: decoding it would be work for nothing.
_PASSED_ON = _TOLD.union(
    kind.__name__
    for kind in (
        events.ChannelCreated,
        events.MemberAdded,
        events.TokenIssued,
        events.TokenRevoked,
        events.AccountKicked,
        events.ConnectionOpened,
        events.ConnectionClosed,
        events.RestartRequested,
    )
)


def account_room(account_id: int) -> str:
    """The room of an account's connections."""
    return f"account-{account_id}"


def channel_room(channel_id: int) -> str:
    """The room of a channel's members' connections."""
    return f"channel-{channel_id}"


def told_message(sender: str, text: str, channel: str, sent_at: datetime) -> dict[str, Any]:
    """A channel's message as its members are told of it."""
    return {"sender": sender, "message": text, "channel": channel, "timestamp": timestamp(sent_at)}


def told_direct(sender: str, text: str, recipient: str) -> dict[str, Any]:
    """A direct message as its recipient is told of it."""
    return {"sender": sender, "message": text, "recipient": recipient}


def told_delivery(
    delivery_id: int, message_id: int | None, discord_message_ids: Iterable[object], failed: str | None, when: datetime
) -> dict[str, Any]:
    """How a delivery to Discord ended as its sender is told of it; the keys are those that `deliveries` has for it."""
    return {
        "delivery_id": delivery_id,
        "message_id": message_id,
        "status": "delivered" if failed is None else "failed",
        "discord_message_ids": [str(discord_id) for discord_id in discord_message_ids],
        "reason": failed,
        "settled_at": timestamp(when),
    }


class Fanout:
    """Follows the log and tells the listeners of this process; `run` is its task.

    `channel_event` is what a channel's message is called; `on_restart` hears when the system is to restart.
    """

    def __init__(
        self,
        namespace: Namespace,
        registry: Registry,
        log: EventLog,
        models: ReadModels,
        channel_event: str,
        on_restart: Callable[[int], None],
    ) -> None:
        self.position = 0
        # The last that was told, or where this process began: what lies before, it has not seen.
        self._last_told = 0
        # Set when `position` has moved, and then replaced.
        self._moved = asyncio.Event()
        self.channel_event = channel_event
        self._namespace = namespace
        self._registry = registry
        self._log = log
        self._models = models
        self._on_restart = on_restart

    async def start(self) -> None:
        """Begins at the end of the log: what stands there by now nobody here has been waiting for."""
        self.position = self._last_told = await self._log.head()

    def may_have_told(self, after: int) -> bool:
        """Whether there may be something to tell behind `after`, as far as everything up to `position` goes."""
        return self._last_told > after

    async def head(self) -> int:
        """The last position of the log, which is ahead of `position` for a moment."""
        return await self._log.head()

    async def run(self) -> None:
        """Passes on what is appended, for ever."""
        async for batch in self._log.follow(self.position):
            # What has gathered while the database was away comes as one batch; no client is to get it all in one turn.
            for start in range(0, len(batch), _SLICE):
                await self._pass_on_all(batch[start : start + _SLICE])

    async def _pass_on_all(self, batch: Sequence[RecordedEvent]) -> None:
        if len(self._registry):
            await self._pass_on_each(batch)
        else:
            self._pass_over(batch)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        if len(batch) == _SLICE:
            await asyncio.sleep(0)

    def _pass_over(self, batch: Sequence[RecordedEvent]) -> None:
        """Handles a batch while nobody is registered, without a pause in which somebody could be."""
        for recorded in batch:
            if recorded.type in _TOLD:
                self._last_told = recorded.position
            elif isinstance(event := _decoded(recorded), events.RestartRequested):
                self._on_restart(event.reconnect_in)
        self.position = batch[-1].position

    async def _pass_on_each(self, batch: Sequence[RecordedEvent]) -> None:
        wanted = {event.position: decoded for event in batch if (decoded := _decoded(event)) is not None}
        names = await self._patient_names(list(wanted.values()))
        # From here on without a pause, so that a batch of the log leaves in one turn of the loop.
        for recorded in batch:
            if recorded.position in wanted:
                self._pass_on(recorded, wanted[recorded.position], names)
            self.position = recorded.position

    async def reached(self, position: int) -> None:
        """Returns once everything up to `position` was handled."""
        while self.position < position:
            await self._moved.wait()

    async def _patient_names(self, wanted: list[events.Event]) -> _Names:
        """The names that the batch's messages need, whenever the database can tell them."""
        backoff = Backoff()
        while True:
            await backoff.pause()
            try:
                return await self._names(wanted)
            except LogUnavailable as error:
                _log.warning("listeners wait for the database", error=str(error))

    async def _names(self, wanted: list[events.Event]) -> _Names:
        """The names that the batch's messages need."""
        names = _Names()
        for event in wanted:
            match event:
                case events.MessageSent(channel_id=channel_id, sender_id=sender_id):
                    await self._learn(names, sender_id)
                    if channel_id not in names.channels:
                        names.channels[channel_id] = await self._models.channel_by_id(channel_id)
                case events.DirectMessageSent(sender_id=sender_id, recipient_id=recipient_id):
                    await self._learn(names, sender_id)
                    await self._learn(names, recipient_id)
        return names

    async def _learn(self, names: _Names, account_id: int) -> None:
        if account_id not in names.accounts:
            names.accounts[account_id] = await self._models.account_by_id(account_id)

    def _pass_on(self, recorded: RecordedEvent, event: events.Event, names: _Names) -> None:
        match event:
            case events.MessageSent():
                self._last_told = recorded.position
                self._tell_channel(recorded, event, names)
            case events.DirectMessageSent():
                self._last_told = recorded.position
                self._tell_recipient(recorded, event, names)
            case events.DiscordMessageDelivered() | events.DiscordMessageFailed():
                self._last_told = recorded.position
                self._tell_sender(recorded, event)
            case events.ChannelCreated(creator_id=int(creator_id)):
                self._join(creator_id, recorded.position)
            case events.MemberAdded(channel_id=channel_id, account_id=account_id):
                self._join(account_id, channel_id)
            case events.RestartRequested(reconnect_in=reconnect_in):
                self._on_restart(reconnect_in)
            case _:
                self._end_some(recorded, event)

    def _end_some(self, recorded: RecordedEvent, event: events.Event) -> None:
        """Ends the connections that the event ends."""
        match event:
            case (
                events.TokenIssued(account_id=account_id, generation=generation)
                | events.TokenRevoked(account_id=account_id, generation=generation)
            ):
                self._end_token(account_id, generation)
            case events.AccountKicked(account_id=account_id):
                self._kick(account_id)
            case events.ConnectionOpened() | events.ConnectionClosed():
                self._check_connection(recorded)

    def _tell_channel(self, recorded: RecordedEvent, event: events.MessageSent, names: _Names) -> None:
        sender, channel = names.accounts.get(event.sender_id), names.channels.get(event.channel_id)
        if sender is None or channel is None:
            return
        room = EVERYONE if channel.name == ANNOUNCE else channel_room(event.channel_id)
        if self._namespace.has_listeners(room):
            told = told_message(sender.username, event.text, channel.name, recorded.recorded_at)
            self._namespace.emit(self.channel_event, told, room=room, offset=recorded.position)

    def _tell_recipient(self, recorded: RecordedEvent, event: events.DirectMessageSent, names: _Names) -> None:
        room = account_room(event.recipient_id)
        sender, recipient = names.accounts.get(event.sender_id), names.accounts.get(event.recipient_id)
        if sender is not None and recipient is not None and self._namespace.has_listeners(room):
            told = told_direct(sender.username, event.text, recipient.username)
            self._namespace.emit(NEW_DM, told, room=room, offset=recorded.position)

    def _tell_sender(
        self, recorded: RecordedEvent, event: events.DiscordMessageDelivered | events.DiscordMessageFailed
    ) -> None:
        room = account_room(event.sender_id)
        if self._namespace.has_listeners(room):
            parts, failed = (
                (event.discord_message_ids, None)
                if isinstance(event, events.DiscordMessageDelivered)
                else ((), event.reason)
            )
            told = told_delivery(event.delivery_id, event.message_id, parts, failed, recorded.recorded_at)
            self._namespace.emit(DISCORD_DELIVERY, told, room=room, offset=recorded.position)

    def _join(self, account_id: int, channel_id: int) -> None:
        for socket, _ in self._registry.sockets_of(account_id):
            socket.join(channel_room(channel_id))

    def _end_token(self, account_id: int, generation: int) -> None:
        for socket, registration in self._registry.sockets_of(account_id):
            if registration.token_generation < generation:
                self.end(socket, "The token has ended!")

    def _kick(self, account_id: int) -> None:
        for socket, _ in self._registry.sockets_of(account_id):
            self.end(socket, "You were kicked!")

    def end(self, socket: Socket, why: str) -> None:
        """Tells a client why, and ends its connection for good: it does not come back by itself."""
        # One that is still being sent what it missed must not be told that it has got everything up to here.
        socket.emit("error", {"message": why}, offset=None if socket.is_held else self.position)
        socket.disconnect(close=True)

    def _check_connection(self, recorded: RecordedEvent) -> None:
        """Ends a connection here that was opened anew elsewhere, or that was taken for lost."""
        socket = self._registry.holder(recorded.stream.removeprefix("connection-"))
        registration = None if socket is None else self._registry.of(socket)
        if socket is not None and registration is not None and recorded.version > registration.version:
            _log.info("a connection was closed: it is not ours any more", sid=socket.sid)
            self._registry.forget(socket)
            socket.close()


class _Names:
    """The accounts and channels that a batch speaks of; None for one whose name was erased."""

    def __init__(self) -> None:
        self.accounts: dict[int, Account | None] = {}
        self.channels: dict[int, Channel | None] = {}


def _decoded(recorded: RecordedEvent) -> events.Event | None:
    return events.decode(recorded) if recorded.type in _PASSED_ON else None
