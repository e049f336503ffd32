"""Whether a server answers as the contract has it: one that leaves work out must not be measured beside the others."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import msgspec

from bench.probe import Api
from bench.servers import ARCHIVE, CHANNELS, CHATTED, READ, TEXT, Running
from bench.servers.process import ServerFailed


class _Channel(msgspec.Struct, forbid_unknown_fields=True):
    channel_name: str
    channel_id: int


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    message_id: int
    sender: str
    message: str
    channel: str
    timestamp: datetime


def check_answers(server: Running) -> None:
    """Asks each endpoint once; raises `ServerFailed` if an answer is not what it is to be."""
    token: dict[str, object] = {"token": server.tokens[0]}
    with contextlib.closing(Api(server.port)) as api:
        sent = api.post("sendmessage", {**token, "message": TEXT, "channel": CHATTED})
        listed = api.post("getchannels", token)
        read = api.post("readmessagesfromchannel", {**token, "name": ARCHIVE, "count": READ})
    channels = msgspec.convert(listed["channels"], list[_Channel])
    messages = msgspec.convert(read["messages"], list[_Message])
    ids = [message.message_id for message in messages]
    checks = {
        "sendmessage": sent == {"message": "Message sent!"},
        "getchannels": {channel.channel_name for channel in channels} == {*CHANNELS, ARCHIVE},
        "readmessagesfromchannel": len(ids) == READ
        and ids == sorted(ids)
        and all(_is_archived(message) for message in messages),
    }
    wrong = [endpoint for endpoint, is_right in checks.items() if not is_right]
    if wrong:
        raise ServerFailed(f"these endpoints do not answer what the others do: {', '.join(wrong)}")


def _is_archived(message: _Message) -> bool:
    age = (datetime.now(UTC) - message.timestamp).total_seconds()
    return (message.message, message.channel) == (TEXT, ARCHIVE) and bool(message.sender) and 0 <= age < 600
