"""A whole Discord on a port of this machine, and what tests do in it.

    async with Discord(token="a token") as discord:
        guild = discord.guild("Minutes")
        channel = discord.text_channel(guild, "general")
        alice = discord.person("alice", global_name="Alice")
        ... a bot whose API is `discord.api` connects ...
        discord.says(alice, channel, "hello")
        await until(lambda: [message.content for message in discord.messages(channel)] == ["hello", "hello, Alice"])

It lives on the loop it is started on, and bots may be in this process or in others. Everything that people do is told
to the bot's sessions before the call returns, so far as they are connected; those who are not are told when they
resume. Values are those of the moment: ask again for what has become of a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.standin.faults import Bucket, Fault, Hold, Limit, Plan, Predicate, Request, anything
from tests.standin.gateway import Connection, Gateway, Op, Session
from tests.standin.http import Rest
from tests.standin.interactions import Interactions, Reply
from tests.standin.things import (
    JSON,
    ORDINARY,
    SEND_MESSAGES,
    VIEW_CHANNEL,
    Channel,
    Guild,
    Message,
    Role,
    User,
)
from tests.standin.world import Dispatch, Draft, Intents, World

TOKEN = "a.token.of-the-stand-in"
ALL_INTENTS = Intents(0x7FFFFFFF)


class Discord:
    """The stand-in. All times are in seconds.

    `heartbeat`: how often clients are told to send one. `nonce_window`: how long a nonce is known. `shards`: how many
    `/gateway/bot` recommends. `kept_events`: how many events a session keeps for its resume. `allowed_intents`: what
    privileged intents the bot has been given. `message_limit`: a real limit of messages sent in each channel; None is
    none. `interaction_limit`: within this the bot must answer a command, `patience` is how long `slash` waits.
    """

    def __init__(
        self,
        token: str = TOKEN,
        *,
        bot_name: str = "minutebook",
        heartbeat: float = 41.25,
        nonce_window: float = 300.0,
        shards: int = 1,
        kept_events: int = 1000,
        allowed_intents: Intents = ALL_INTENTS,
        message_limit: Limit | None = None,
        interaction_limit: float = 3.0,
        patience: float = 10.0,
        port: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.token = token
        self.requests: list[Request] = []
        self.shards = shards
        self.message_limit = message_limit
        self.world = World(bot_name, clock, self._dispatch, nonce_window)
        self.interactions = Interactions(self.world, self._dispatch, interaction_limit)
        self.plans: list[Plan] = []
        self.holds: list[Hold] = []
        self.buckets: dict[int, Bucket] = {}
        self.running: set[asyncio.Task[Any]] = set()
        self._gateway = Gateway(self.world, token, lambda: self.gateway_url, heartbeat, kept_events, allowed_intents)
        self._patience = patience
        self._port = port
        self._server: HTTPServer | None = None

    # Running

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self) -> None:
        """Opens the port, which is the same as before if there was one."""
        routes: list[Any] = [
            (r"/api/v10(/.*)", Rest, {"discord": self}),
            (r"/gateway/?", Connection, {"gateway": self._gateway}),
        ]
        self._server = HTTPServer(Application(routes, log_function=lambda _handler: None))
        sockets = bind_sockets(self._port, "127.0.0.1")
        self._port = sockets[0].getsockname()[1]
        self._server.add_sockets(sockets)

    async def stop(self) -> None:
        """An outage: all connections are cut, new ones are refused; what exists stays, sessions too.

        Requests that are held up are not done any more.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        server.stop()
        for line in list(self._gateway.lines):
            line.end(None)
        await server.close_all_connections()
        for hold in self.holds:
            hold.release()
        if self.running:
            await asyncio.wait(self.running)

    @property
    def api(self) -> str:
        """The base of the paths of REST, which is `discord.http.Route.BASE` of a client."""
        return f"http://127.0.0.1:{self._port}/api/v10"

    @property
    def gateway_url(self) -> str:
        """The gateway, without its query."""
        return f"ws://127.0.0.1:{self._port}/gateway"

    def _dispatch(self, event: Dispatch) -> None:
        self._gateway.dispatch(event)

    # What there is

    @property
    def bot(self) -> User:
        """The bot's own account."""
        return self.world.bot

    @property
    def commands(self) -> list[JSON]:
        """The application commands that the bot has registered; those of a guild have a `guild_id`."""
        return list(self.world.commands.values())

    @property
    def sessions(self) -> list[Session]:
        """All sessions of the gateway, oldest first: one for each time that a client identified."""
        return list(self._gateway.sessions)

    @property
    def connected(self) -> bool:
        """Whether a client is at the gateway, with a session."""
        return any(session.connected for session in self._gateway.sessions)

    def messages(self, channel: Channel, *, deleted: bool = False) -> list[Message]:
        """What stands in a channel, oldest first; with `deleted`, also what stood there."""
        return self.world.messages(channel, deleted=deleted)

    # People and places

    def guild(self, name: str) -> Guild:
        """A new guild that the bot is in."""
        return self.world.add_guild(name)

    def text_channel(self, guild: Guild, name: str) -> Channel:
        """A new channel of a guild, in which the bot may read and write."""
        return self.world.add_text_channel(guild, name)

    def role(self, guild: Guild, name: str) -> Role:
        """A new role, which can be mentioned."""
        return self.world.add_role(guild, name)

    def person(
        self,
        username: str,
        global_name: str | None = None,
        *,
        nick: str | None = None,
        bot: bool = False,
        permissions: int = ORDINARY,
    ) -> User:
        """Somebody new, who is in every guild; `bot` makes it another bot."""
        return self.world.add_user(username, global_name=global_name, nick=nick, bot=bot, permissions=permissions)

    def dm(self, person: User) -> Channel:
        """The direct messages of a person with the bot; either may write first."""
        return self.world.dm(person)

    def says(
        self,
        person: User,
        channel: Channel,
        text: str,
        *,
        attachments: Sequence[str] = (),
        reply_to: Message | None = None,
        webhook_id: int | None = None,
        kind: int = 0,
    ) -> Message:
        """A person writes; attachments are names of files, `kind` one of "Message Types"."""
        draft = Draft(text, attachments=attachments, reply_to=reply_to, webhook_id=webhook_id, kind=kind)
        return self.world.post(channel, person, draft)

    def edits(self, message: Message, text: str) -> Message:
        """The author of a message changes it; the message as it is now."""
        return self.world.edit(message, content=text.strip())

    def unfurls(self, message: Message, *embeds: JSON) -> Message:
        """Discord adds previews to the links of a message: an update that is no edit."""
        return self.world.unfurl(message, embeds)

    def deletes(self, *messages: Message) -> None:
        """Each message is deleted."""
        for message in messages:
            self.world.delete(message)

    def deletes_in_bulk(self, messages: Sequence[Message]) -> None:
        """Messages of one channel are deleted by one event, as moderators do."""
        self.world.delete_in_bulk(messages)

    async def slash(self, person: User, channel: Channel, command: str, /, **options: Any) -> Reply:
        """A person invokes a command, `"bridge"` or `"bridge add"`, and gets the bot's answer.

        Options may be people and channels, too. Raises `LookupError` if the bot has registered no such command or
        option, and TimeoutError if it does not answer.
        """
        interaction = self.interactions.begin(person, channel, command, options)
        async with asyncio.timeout(self._patience):
            return await interaction.reply

    # What the bot may no longer do

    def close_dms(self, person: User) -> None:
        """The person takes no direct messages: 403, code 50007."""
        self.world.closed_dms.add(person.id)

    def open_dms(self, person: User) -> None:
        """The person takes them again."""
        self.world.closed_dms.discard(person.id)

    def delete_channel(self, channel: Channel) -> None:
        """A channel is deleted: 404, code 10003."""
        self.world.remove_channel(channel)

    def hide(self, channel: Channel) -> None:
        """The bot does not see a channel any more: 403, code 50001; it is still told of what is said there."""
        self.world.deny(channel, VIEW_CHANNEL)

    def lock(self, channel: Channel) -> None:
        """The bot cannot write in a channel any more: 403, code 50013."""
        self.world.deny(channel, SEND_MESSAGES)

    def unlock(self, channel: Channel) -> None:
        """Ends `hide` and `lock`."""
        self.world.deny(channel, 0)

    def throw_out(self, guild: Guild) -> None:
        """The bot is no longer in a guild: 403, code 50001 for its channels."""
        self.world.remove_guild(guild)

    # Faults

    def fail_next(
        self,
        times: int,
        status: int | None,
        *,
        only: Predicate = anything,
        body: JSON | str | None = None,
        retry_after: float | None = None,
        scope: str = "user",
        apply: bool = False,
    ) -> None:
        """The next so many requests (of those `only` is true of) are answered by a status; None cuts the connection.

        `body` is JSON, or a text that is sent as HTML. A 429 has `retry_after` in it, and its `scope`: "user",
        "shared" or "global". With `apply` what was asked is done nevertheless.
        """
        self.plans.append(Plan(times, Fault(status, body, retry_after, scope, apply), only))

    def hold(self, only: Predicate = anything, *, applied: bool = False) -> Hold:
        """From now on requests wait until it is released; with `applied` they are done, and their answers wait."""
        hold = Hold(only, applied)
        self.holds.append(hold)
        return hold

    def drop_gateways(self, code: int | None = None) -> None:
        """Ends all connections to the gateway, by a code or without a word; sessions can be resumed."""
        for line in list(self._gateway.lines):
            line.end(code)

    def invalidate_sessions(self, resumable: bool = False) -> None:
        """Tells all sessions that they are invalid; those that are not resumable are over, also of who is away."""
        for session in self._living():
            if session.line is not None:
                session.line.send({"op": Op.INVALID_SESSION, "d": resumable})
            if not resumable:
                self._gateway.forget(session)

    def ask_reconnect(self) -> None:
        """Asks all clients to come again, by op 7."""
        for session in self._living():
            if session.line is not None:
                session.line.send({"op": Op.RECONNECT, "d": None})

    def _living(self) -> Iterable[Session]:
        return [session for session in self._gateway.sessions if not session.ended]
