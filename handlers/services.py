"""What the handlers call: handed in by the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chat.bridging import Bridging
from chat.commands import Commands
from chat.connections import Connections
from eventstore.transparency.published import Published
from handlers.limits import FailureLimit, SlidingWindow
from projections.models import ReadModels
from projections.presence import Presence
from projections.reading import Reading
from projections.verification import Verification


class InFlight:
    """Counts the requests that are being served: `with in_flight:` around each."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def ended(self) -> None:
        """Returns when none is left."""
        await self._none.wait()


@dataclass(frozen=True)
class Services:
    """Everything that handlers need of the rest of the house."""

    commands: Commands
    bridging: Bridging
    connections: Connections
    reading: Reading
    models: ReadModels
    ready: Callable[[], bool]
    log_head: Callable[[], Awaitable[int]]
    published: Published
    messages_per_account: SlidingWindow
    failed_logins: FailureLimit
    # Whether a restart was asked for: from then on this node only ends what it has begun.
    restarting: Callable[[], bool]
    # Counts of this process's real-time connections: how many are `open`, were `opened`, were `closed` (by reason), how
    # many packets were `delivered` to them, in how many `delivered_bytes`.
    connection_statistics: Callable[[], Mapping[str, Any]]
    # Which of several workers on this machine it is.
    worker: int | None = None
    # The key of the Bancho API's internal endpoints; without one they refuse everybody.
    ci_key: str | None = None
    in_flight: InFlight = field(default_factory=InFlight)

    @property
    def presence(self) -> Presence:
        """Who is online."""
        return self.models.presence

    @property
    def verification(self) -> Verification:
        """Who is verified."""
        return self.models.verification
