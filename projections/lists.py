"""The lists that people read, as the bytes that are sent of them, kept as long as no event has changed them.

Which event changes which list is told here for those that happen all the time. Every other event that changes a table
behind the lists changes them all: who adds a change to one of those projections need not think of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from chat.commands import Channel
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from projections import accounts, channels, dms, messages
from projections.channels import Channels
from projections.dms import DirectMessage, DirectMessages
from projections.messages import Message, Messages
from projections.results import ResultCache, Topic

T = TypeVar("T")
# What makes the bytes of a list, the same ones of the same list; it is told from others by what it is.
Render = Callable[[Sequence[T]], bytes]

# Those whose tables the queries below read.
PROJECTIONS = (accounts.projection, channels.projection, messages.projection, dms.projection)
_CHANGING = frozenset[str]().union(*(change.types for projection in PROJECTIONS for change in projection.changes))

# The topics' kinds; behind each an account's id, or the channel's.
_CHANNEL, _SENT, _DIRECT, _CHANNELS = "channel", "sent", "direct", "channels"


class _Ids(msgspec.Struct, gc=False):
    """The ids that an event may tell; what it has no use for is not looked at."""

    channel_id: int | None = None
    sender_id: int | None = None
    recipient_id: int | None = None
    account_id: int | None = None
    creator_id: int | None = None


_decoder = msgspec.json.Decoder(_Ids)
# Of which topics an event changes the lists: kinds, each with the field that has the id.
_CHANGED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "MessageSent": ((_CHANNEL, "channel_id"), (_SENT, "sender_id")),
    "DirectMessageSent": ((_DIRECT, "sender_id"), (_DIRECT, "recipient_id")),
    "MemberAdded": ((_CHANNELS, "account_id"),),
    "ChannelCreated": ((_CHANNELS, "creator_id"),),
    # No list can name whom nobody knew.
    "AccountRegistered": (),
}


def changed(event: RecordedEvent) -> Iterable[Topic] | None:
    """The topics whose lists the event changes; None: it may be any."""
    fields = _CHANGED.get(event.type)
    if fields is None:
        return None if event.type in _CHANGING else ()
    if event.data is None:
        # It was erased, and does not tell any more.
        return None
    if not fields:
        return ()
    ids = _decoder.decode(event.data)
    topics = [(kind, getattr(ids, name)) for kind, name in fields]
    # An id that is not told, as by another shape of the event, may be anybody's.
    return None if any(subject is None for _, subject in topics) else topics


class Lists:
    """The newest messages, and the channels, as `render` makes them; `Messages` and the others tell what is in them.

    No answer is older than what any process had committed when it was asked for. An empty list is rendered, too.
    """

    def __init__(self, log: EventLog, channels: Channels, messages: Messages, dms: DirectMessages) -> None:
        self._channels = channels
        self._messages = messages
        self._dms = dms
        self._results = ResultCache(log.caught_up)
        log.subscribe(self._forget)

    async def in_channel(self, channel: Channel, count: int, render: Render[Message]) -> bytes:
        """The newest `count` messages of a channel."""

        async def query() -> bytes:
            return render(await self._messages.newest_in_channel(channel, count))

        return await self._results.get((_CHANNEL, channel.channel_id), (render, count), query)

    async def sent_by(self, account_id: int, count: int, render: Render[Message]) -> bytes:
        """The newest `count` messages that somebody sent to channels."""

        async def query() -> bytes:
            return render(await self._messages.newest_of_sender(account_id, count))

        return await self._results.get((_SENT, account_id), (render, count), query)

    async def direct_messages(self, account_id: int, count: int, render: Render[DirectMessage]) -> bytes:
        """The newest `count` direct messages that somebody sent or received."""

        async def query() -> bytes:
            return render(await self._dms.newest_of_account(account_id, count))

        return await self._results.get((_DIRECT, account_id), (render, count), query)

    async def channels_of(self, account_id: int, render: Render[Channel]) -> bytes:
        """The channels that an account is a member of."""

        async def query() -> bytes:
            return render(await self._channels.of_account(account_id))

        return await self._results.get((_CHANNELS, account_id), render, query)

    def _forget(self, events: Sequence[RecordedEvent]) -> None:
        if self._results.is_empty:
            return
        for event in events:
            topics = changed(event)
            if topics is None:
                self._results.clear()
            else:
                for topic in topics:
                    self._results.drop(topic)
