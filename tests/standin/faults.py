"""What goes wrong with requests on purpose, and the limits of their rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.standin.things import JSON


class Request(NamedTuple):
    """A request of the bot: its path from `/channels/...` on, and the status of its answer (None: it got none)."""

    method: str
    path: str
    status: int | None = None
    body: Any = None


Predicate = Callable[[Request], bool]


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer that is none. Status None cuts the connection instead; `apply` does what was asked nevertheless."""

    status: int | None
    body: JSON | str | None = None
    retry_after: float | None = None
    scope: str = "user"
    apply: bool = False

    def answer(self) -> tuple[JSON | str, Mapping[str, str]]:
        """The body, and the headers of its own."""
        if self.status != 429:
            return {"message": "500: Internal Server Error", "code": 0} if self.body is None else self.body, {}
        return too_many(self.retry_after or 0.0, self.scope) if self.body is None else (self.body, {})


def too_many(retry_after: float, scope: str) -> tuple[JSON, dict[str, str]]:
    """The body and the headers of a 429 (API reference, "Rate Limits"). Times are in seconds."""
    everywhere = scope == "global"
    headers = {"Retry-After": str(int(retry_after) + 1), "X-RateLimit-Scope": scope}
    if everywhere:
        headers["X-RateLimit-Global"] = "true"
    return {"message": "You are being rate limited.", "retry_after": retry_after, "global": everywhere}, headers


@dataclass
class Plan:
    """A fault for the next requests that it is meant for."""

    times: int
    fault: Fault
    only: Predicate


class Hold:
    """Requests wait in it until it is released, which leaving its `with` does, too.

    Those who wait have not been done; or they have, if `applied`, and only their answers wait. `waiting` counts them.
    A request whose client goes away while it waits to be done is never done.
    """

    def __init__(self, only: Predicate, applied: bool) -> None:
        self.waiting = 0
        self.applied = applied
        self._only = only
        self._released = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Lets all go on, and holds no more."""
        self._released.set()

    async def pass_by(self, request: Request) -> None:
        """Returns when the request may go on."""
        if self._released.is_set() or not self._only(request):
            return
        self.waiting += 1
        await self._released.wait()
        self.waiting -= 1


class Limit(NamedTuple):
    """So many messages in so many seconds, in each channel."""

    messages: int
    seconds: float


@dataclass
class Bucket:
    """One window of a rate limit after the other; times are the loop's."""

    limit: Limit
    left: int = field(init=False)
    resets_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.left = self.limit.messages

    def take(self, now: float) -> bool:
        """Whether one more is within the limit."""
        if now >= self.resets_at:
            self.left, self.resets_at = self.limit.messages, now + self.limit.seconds
        self.left -= 1
        return self.left >= 0

    def headers(self, name: str, now: float, clock: float) -> dict[str, str]:
        """What tells clients of the limit; `clock` is the time of day in seconds."""
        after = max(0.0, self.resets_at - now)
        return {
            "X-RateLimit-Limit": str(self.limit.messages),
            "X-RateLimit-Remaining": str(max(0, self.left)),
            "X-RateLimit-Reset": f"{clock + after:.3f}",
            "X-RateLimit-Reset-After": f"{after:.3f}",
            "X-RateLimit-Bucket": name,
        }


def anything(_request: Request) -> bool:
    """Every request."""
    return True
