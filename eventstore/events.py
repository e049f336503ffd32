"""What goes into the log and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from eventstore.merkle import rfc3339


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """An event to be appended: its fixed wire name, and its data as canonical JSON (`eventstore.canonical`)."""

    type: str
    data: bytes
    schema: int = 1


class StreamWrite(msgspec.Struct, frozen=True):
    """Events for one stream, and the version at which the writer believes it to be.

    `expected_version` is the number of events in the stream (0: it must not exist yet); None appends at whatever
    version the stream is, which costs the log a look.
    """

    stream: str
    events: Sequence[NewEvent]
    expected_version: int | None = 0


class Context(msgspec.Struct, frozen=True, gc=False):
    """Who caused an append and in the course of what: the part of the metadata that callers give.

    `actor` is the acting account's id, None for the system itself; `correlation_id` is the request's id.
    """

    actor: int | None
    correlation_id: str


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The outcome of an append: its events stand at `first_position` to `last_position`, both included.

    `repeated` tells that the command id was known, and that these are the positions of the first time.
    """

    first_position: int
    last_position: int
    repeated: bool = False


class RecordedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as it stands in the log. `data` is its canonical JSON, None once erased; `metadata` likewise JSON."""

    position: int
    stream: str
    version: int
    type: str
    data: bytes | None
    metadata: bytes
    recorded_at: datetime

    def body(self) -> dict[str, Any]:
        """The data as a mapping; empty once erased."""
        decoded: dict[str, Any] = msgspec.json.decode(self.data) if self.data is not None else {}
        return decoded

    def shown(self) -> dict[str, Any]:
        """The event as tools show it, to be encoded as JSON: data and metadata as they stand in the log."""
        return {
            "position": self.position,
            "stream": self.stream,
            "version": self.version,
            "type": self.type,
            "data": None if self.data is None else msgspec.Raw(self.data),
            "metadata": msgspec.Raw(self.metadata),
            "recorded_at": rfc3339(self.recorded_at),
        }

    def schema(self) -> int:
        """The version of the shape that `data` has."""
        return _schema_of(self.metadata).schema


class _Schema(msgspec.Struct, gc=False):
    schema: int = 1


_schema_of = msgspec.json.Decoder(_Schema).decode
