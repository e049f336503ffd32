"""The message as the peers store it, encoded anew for each call, as ours is."""

from __future__ import annotations

import msgspec

from bench.appenders import ACCOUNT_ID, CHANNEL_ID, TEXT
from eventstore.ids import new_id

_encode = msgspec.json.Encoder().encode


def data() -> bytes:
    """The event's data: the same fields as `chat.events.MessageSent`."""
    return _encode({"channel_id": CHANNEL_ID, "sender_id": ACCOUNT_ID, "text": TEXT})


def metadata() -> bytes:
    """The event's metadata: the same fields as our log's."""
    return _encode({"actor": ACCOUNT_ID, "correlation_id": new_id(), "event_id": new_id(), "schema": 1})
