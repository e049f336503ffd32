"""The bridge as a part that runs: in a server, alone, as one of several; started, stopped and killed."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import discord as discord_py
import pytest
import yarl
from discord.gateway import DiscordWebSocket
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from audit import cli
from bot.bridge import bridge as bridge_module
from bot.bridge import rest
from bot.bridge.away import patiently
from bot.bridge.bridge import LEADERSHIP, NAME, Bridge
from bot.bridge.client import GatewayClient
from chat.bridging import DiscordUser
from chat.commands import Commands
from eventstore.errors import LogUnavailable
from eventstore.leadership import Leadership
from eventstore.log import EventLog
from projections.models import ReadModels
from server import run_bot
from tests.conftest import SECRET, Enter, on_loop, until
from tests.outgoing import DAY, PAUSES, Scene, make_scene, register_alice, sending
from tests.servers import MINUTEBOOK, Server
from tests.standin.clients import point_clients_at
from tests.standin.server import TOKEN, Discord
from tests.standin.world import Intents

StartServer = Callable[..., Server]
RUNS = "the bridge to Discord runs"
LEADS = f"{NAME}: led from here"


@pytest.fixture
def discord(database: str, enter: Enter[Discord], monkeypatch: pytest.MonkeyPatch) -> Discord:
    # The database comes first and so goes last, which is slow while a log is open on it.
    standin = enter(Discord())
    point_clients_at(standin, monkeypatch)
    return standin


@pytest.fixture
def scene(io_loop: IOLoop, log: EventLog, models: ReadModels, commands: Commands, discord: Discord) -> Scene:
    alice = on_loop(io_loop, lambda: register_alice(commands))
    return make_scene(log, models, commands, discord, alice)


@asynccontextmanager
async def bridge(scene: Scene, database: str, token: str = TOKEN) -> AsyncIterator[asyncio.Task[None]]:
    """A bridge that runs in this process meanwhile."""
    part = Bridge(
        scene.log,
        scene.models,
        scene.bridging,
        Leadership(database, LEADERSHIP, NAME),
        token=token,
        api=scene.discord.api,
        give_up=DAY,
        pauses=PAUSES,
    )
    running = asyncio.create_task(part.run())
    try:
        yield running
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


# In this process


@pytest.mark.gen_test
async def test_a_bridge_listens_and_delivers_through_an_outage_of_discord(scene: Scene, database: str) -> None:
    with capture_logs() as logs:
        async with bridge(scene, database):
            await scene.settled(*await scene.writes("one"))
            await until(lambda: scene.discord.connected)

            await scene.discord.stop()
            waiting = await scene.writes("two")
            await until(lambda: len(said(logs, "debug", "gateway of Discord is gone")) >= 2)
            scene.discord.start()

            await scene.settled(*waiting)
            await until(lambda: scene.discord.connected)

    assert scene.shown() == ["**Alice**: one", "**Alice**: two"]
    # Once for the outage, not for each try.
    assert len(said(logs, "warning", "")) == 1


@pytest.mark.gen_test
async def test_a_session_that_is_over_is_followed_by_another_at_the_same_discord(
    scene: Scene, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(_client: GatewayClient, _shard_id: int | None, *, initial: bool = False) -> None:
        """In place of 5 s."""

    # Where discord.py would begin anew by itself, and nobody is.
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL("ws://127.0.0.1:1"))
    monkeypatch.setattr(GatewayClient, "before_identify_hook", at_once)
    async with bridge(scene, database):
        await until(lambda: scene.discord.connected)
        scene.discord.invalidate_sessions()

        await until(lambda: len(scene.discord.sessions) == 2 and scene.discord.connected)


@pytest.mark.gen_test
async def test_a_bot_that_may_not_listen_delivers_all_the_same(
    scene: Scene, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.discord._gateway, "allowed", Intents(0))
    with capture_logs() as logs:
        async with bridge(scene, database):
            assert await scene.settled(*await scene.writes("one")) == ["delivered"]
            await until(lambda: said(logs, "error", "Message Content Intent"))


@pytest.mark.gen_test
async def test_a_wrong_token_is_an_error_said_once_and_ends_nothing(scene: Scene, database: str) -> None:
    with capture_logs() as logs:
        async with bridge(scene, database, token="a wrong token"):
            await until(lambda: said(logs, "error", "does not know the bot's token"))
            await asyncio.sleep(0.1)

    assert len(said(logs, "error", "")) == 1
    assert "a wrong token" not in json.dumps(logs, default=str)


@pytest.mark.gen_test
async def test_a_token_that_is_taken_back_is_tried_again_later(
    scene: Scene, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_module, "_RARELY", 0.05)
    scene.discord.fail_next(2, 401, body={"message": "401: Unauthorized", "code": 0})
    async with bridge(scene, database):
        assert await scene.settled(*await scene.writes("one")) == ["delivered"]


@pytest.mark.gen_test
async def test_the_last_sessions_of_a_day_are_not_used_up(scene: Scene, database: str) -> None:
    limit = {"total": 1000, "remaining": 12, "reset_after": 150, "max_concurrency": 1}
    gateway = {"url": scene.discord.gateway_url, "shards": 1, "session_start_limit": limit}
    scene.discord.fail_next(1, 200, only=lambda request: request.path == "/gateway/bot", body=gateway)
    loop = asyncio.get_running_loop()
    with capture_logs() as logs:
        async with bridge(scene, database):
            await until(lambda: said(logs, "error", "too many sessions"))
            told = loop.time()
            await until(lambda: scene.discord.connected)

    assert loop.time() - told >= 0.1


@pytest.mark.gen_test
async def test_that_the_log_is_away_is_told_once() -> None:
    attempts = 0

    async def attempt() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise LogUnavailable("away")
        return attempts

    with capture_logs() as logs:
        assert await patiently(attempt) == 3

    assert len(logs) == 1


@pytest.mark.gen_test
async def test_a_client_whose_goodbye_is_not_answered_is_left(
    discord: Discord, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = discord_py.Client(intents=discord_py.Intents(guilds=True))
    await client.login(discord.token)
    monkeypatch.setattr(rest, "_CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(client, "close", asyncio.Event().wait)

    await rest.close(client)

    with pytest.raises(RuntimeError, match="Session is closed"):
        await client.application_info()


def said(logs: Sequence[Any], level: str, words: str) -> list[Any]:
    return [line for line in logs if line["log_level"] == level and words in line["event"]]


# As processes


@pytest.mark.slow
@pytest.mark.gen_test
async def test_a_backlog_is_delivered_once_and_in_order_through_kills_and_restarts(
    scene: Scene, database: str, tmp_path: Path
) -> None:
    """A thousand to four destinations. The leader is killed when Discord has taken a message and not answered yet;
    the next one is told to stop in the midst of it, and a third, in this process, goes on.
    """
    people = [scene.discord.person(f"person{number}") for number in range(3)]
    for person in people:
        await scene.bridging.see_user(DiscordUser(person.id, person.username), "seen")
    channels = [scene.channel, *map(scene.discord.dm, people)]
    for number in range(250):
        await asyncio.gather(
            scene.bridging.send_to_default(scene.alice, str(number), "request"),
            *(scene.bridging.send(scene.alice, person.username, str(number), "request") for person in people),
        )

    def asked() -> int:
        return len(scene.discord.requests)

    async with bots(scene, database, tmp_path, 2) as (first, second):
        await until(lambda: asked() > 200, 30)
        leader, other = (first, second) if leads(first) else (second, first)
        with scene.discord.hold(sending(), applied=True) as hold:
            await until(lambda: hold.waiting == len(channels))
            leader.kill()
        await until(lambda: asked() > 500, 30)
        with scene.discord.hold(sending()) as hold:
            await until(lambda: hold.waiting == len(channels))
            async with bridge(scene, database):
                assert await ends(other) == 0
                assert len(await scene.models.deliveries.destinations()) == len(channels), "in the midst of it"
                hold.release()
                await scene.until_nothing_waits()
        assert not any(TOKEN in bot.output for bot in (first, second))

    assert [scene.shown(channel) for channel in channels] == [[f"**Alice**: {number}" for number in range(250)]] * 4
    recorded = await scene.models.deliveries.of_sender(scene.alice.account_id, 1000)
    assert sorted(each for delivery in recorded for each in delivery.discord_message_ids or ()) == sorted(
        message.id for channel in channels for message in scene.discord.messages(channel)
    )


@pytest.mark.gen_test
async def test_a_server_with_a_token_is_a_bridge_and_stops_at_once_while_discord_is_away(
    scene: Scene, database: str, tmp_path: Path
) -> None:
    settings = {"discord_channel": scene.channel.id} | bot_settings(scene, database)
    with Server(tmp_path / "server", **settings) as server:
        waiting = await scene.writes("one")
        assert await scene.settled(*waiting) == ["delivered"]
        await until(lambda: scene.discord.connected)
        with scene.discord.hold(sending()) as hold:
            await scene.writes("two")
            await until(lambda: hold.waiting)
            began = time.monotonic()

            # Nothing answers: the loop on which the stand-in lives is kept waiting.
            assert server.stop() == 0
            assert time.monotonic() - began < 3

    assert TOKEN not in server.output
    assert [line for line in server.log if line["level"] in ("warning", "error")] == []


def bot_settings(scene: Scene, database: str) -> dict[str, Any]:
    return {
        "database_url": database,
        "secret": SECRET.decode(),
        "discord_token": TOKEN,
        "discord_api": scene.discord.api,
        "log_level": "info",
    }


@asynccontextmanager
async def bots(scene: Scene, database: str, folder: Path, count: int) -> AsyncIterator[list[Server]]:
    """Processes of `minutebook bot`, each once it runs."""
    settings = bot_settings(scene, database)
    processes = [Server(folder / f"bot{number}", command=(MINUTEBOOK, "bot"), **settings) for number in range(count)]
    try:
        for process in processes:
            process.launch()
        await until(lambda: all(RUNS in process.output for process in processes), 30)
        yield processes
    finally:
        for process in processes:
            process.end()


def leads(process: Server) -> bool:
    return LEADS in process.output


async def ends(process: Server) -> int:
    """Tells a process to stop; its exit code, once it has ended."""
    process.process.send_signal(signal.SIGTERM)
    await until(lambda: process.process.poll() is not None, 3)
    return process.process.returncode


# What keeps it from running


def test_a_bot_without_a_token_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["bot", "--data-dir", str(tmp_path)], lambda _settings: None, run_bot) == 1

    assert capsys.readouterr().err == "minutebook: there is no bot to run: give its discord_token\n"


def test_a_bot_makes_no_secret_of_its_own(database: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--data-dir", str(tmp_path), "--database-url", database, "--discord-token", TOKEN]

    assert cli.run(["bot", *arguments], lambda _settings: None, run_bot) == 1

    assert "give the --data-dir or the --secret of the servers" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
