"""The three endpoints from body to answer, for frameworks that leave JSON to their users.

In those peers' favour: msgspec decodes, checks and encodes, in place of a framework's own JSON.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec

from bench.servers.store import CHANNELS_OF, INSERT, NEWEST, Known, Refused, Store

_T = TypeVar("_T")
Endpoint = Callable[[bytes], Awaitable[bytes]]
"""Answers a body; raises `Refused`."""


class _SendMessage(msgspec.Struct):
    token: str
    message: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
    channel: str


class _GetChannels(msgspec.Struct):
    token: str


class _ReadMessages(msgspec.Struct):
    token: str
    name: str
    count: Annotated[int, msgspec.Meta(ge=1, le=1000)]


class _Done(msgspec.Struct):
    message: str


class _Channel(msgspec.Struct):
    channel_name: str
    channel_id: int


class _Channels(msgspec.Struct):
    channels: list[_Channel]


class _Message(msgspec.Struct):
    message_id: int
    sender: str
    message: str
    channel: str
    timestamp: datetime


class _Messages(msgspec.Struct):
    messages: list[_Message]


_encode = msgspec.json.Encoder().encode
_send_message = msgspec.json.Decoder(_SendMessage).decode
_get_channels = msgspec.json.Decoder(_GetChannels).decode
_read_messages = msgspec.json.Decoder(_ReadMessages).decode
_SENT = _Done("Message sent!")


class Endpoints:
    """The endpoints over a store; `by_path` has them once it is open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: Known
        self.by_path: dict[str, Endpoint] = {
            "/api/v3/sendmessage/": self._send,
            "/api/v3/getchannels/": self._channels,
            "/api/v3/readmessagesfromchannel/": self._newest,
        }

    async def open(self) -> None:
        """Opens the store, and reads what is kept in memory."""
        await self._store.open()
        self._known = await Known.read(self._store)

    async def close(self) -> None:
        """Closes the store."""
        await self._store.close()

    async def _send(self, text: bytes) -> bytes:
        body = _decoded(_send_message, text)
        account_id = self._known.account(body.token)
        channel_id = self._known.channel(body.channel, account_id)
        await self._store.execute(INSERT, channel_id, account_id, body.message)
        return _encode(_SENT)

    async def _channels(self, text: bytes) -> bytes:
        account_id = self._known.account(_decoded(_get_channels, text).token)
        return _encode(_Channels([_Channel(*row) for row in await self._store.fetch(CHANNELS_OF, account_id)]))

    async def _newest(self, text: bytes) -> bytes:
        body = _decoded(_read_messages, text)
        channel_id = self._known.channel(body.name, self._known.account(body.token))
        rows = await self._store.fetch(NEWEST, channel_id, body.count)
        usernames, channel = self._known.usernames, body.name
        return _encode(
            _Messages(
                [
                    _Message(message_id, usernames[sender_id], message, channel, sent_at)
                    for message_id, sender_id, message, sent_at in reversed(rows)
                ]
            )
        )


def refusal(refused: Refused) -> bytes:
    """The answer to a request that was refused."""
    return _encode(_Done(refused.message))


def _decoded(decode: Callable[[bytes], _T], text: bytes) -> _T:
    try:
        return decode(text)
    except msgspec.DecodeError as error:
        raise Refused(400, str(error)) from error
