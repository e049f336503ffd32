"""What the handlers call: handed in by the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from chat.commands import Commands
from handlers.limits import FailureLimit, SlidingWindow
from projections.reading import Reading


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
    reading: Reading
    ready: Callable[[], bool]
    messages_per_account: SlidingWindow
    failed_logins: FailureLimit
    in_flight: InFlight = field(default_factory=InFlight)
