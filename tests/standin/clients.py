"""What clients of discord.py need in a test's own process: where the stand-in is, and to be gone when the test is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import yarl
from discord.backoff import ExponentialBackoff
from discord.gateway import DiscordWebSocket
from discord.http import Route

from tests.conftest import until
from tests.standin.server import Discord


def point_clients_at(standin: Discord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients made from now on call this Discord, begin anew at its gateway, and soon try again."""
    monkeypatch.setattr(Route, "BASE", standin.api)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL(standin.gateway_url))
    monkeypatch.setattr(ExponentialBackoff, "delay", lambda _self: 0.05)


@asynccontextmanager
async def tasks_end() -> AsyncIterator[None]:
    """At its end waits for the tasks that were begun in it.

    A client that is closed before it is ready leaves some behind, which end after its `guild_ready_timeout`.
    """
    before = asyncio.all_tasks()
    yield
    # A fixture's end is not in the task of its beginning.
    before |= {task for task in [asyncio.current_task()] if task is not None}
    await until(lambda: asyncio.all_tasks() <= before)
