"""Events as lines for people: when, where, what, who, and the gist of the data, with names for ids."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from rich.text import Text

from audit.names import Names
from audit.output import visible
from eventstore.events import RecordedEvent

# What tells people nothing, though the log has it.
DIGESTS = frozenset({"password_hash", "token_digest", "device_digest", "safe_name", "source"})
# What is undone or refused stands out from what is done.
_ENDINGS = ("Deleted", "Erased", "Banned", "Silenced", "Kicked", "Reported", "Revoked", "Failed", "Requested")
_LONG = 5


class Metadata(msgspec.Struct, frozen=True):
    """Who caused an event, and in the course of which request."""

    actor: int | None = None
    correlation_id: str | None = None


def metadata(event: RecordedEvent) -> Metadata:
    """The part of an event's metadata that people ask for."""
    return msgspec.json.decode(event.metadata, type=Metadata)


def clock(moment: datetime) -> str:
    """A moment in UTC to the millisecond, as people read it."""
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


async def line(event: RecordedEvent, names: Names) -> Text:
    """An event as a coloured line."""
    actor = metadata(event).actor
    who = "system" if actor is None else await names.account(actor)
    return Text.assemble(
        (clock(event.recorded_at), "dim"),
        (f" {event.position:>8} ", "cyan"),
        (f"{event.type:<18}", "bold red" if event.type.endswith(_ENDINGS) else "bold green"),
        (f" {visible(who)}", "magenta"),
        "  ",
        (visible("(erased)"), "dim") if event.data is None else visible(await gist(event.body(), names)),
    )


async def gist(values: Mapping[str, Any], names: Names) -> str:
    """An event's data, or a row of a read model, in short: `channel=#den sender=Alice text="Hello"`."""
    return " ".join([await told(key, value, names) for key, value in values.items() if key not in DIGESTS])


async def told(key: str, value: Any, names: Names) -> str:
    """One key and its value, by name if the value is somebody's id."""
    name = await names.of(key, value)
    return f"{key}={short(value)}" if name is None else f"{key.removesuffix('_id')}={name}"


def short(value: Any) -> str:
    """A value as JSON; of a long list, how much there is of it."""
    if isinstance(value, list) and len(value) > _LONG:
        return f"[{len(value)} of them]"
    if isinstance(value, datetime):
        return clock(value)
    return msgspec.json.encode(value).decode()
