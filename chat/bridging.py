"""The bridge to Discord: what is said here is delivered there, and the other way round.

Invariants:
* What comes from Discord is recorded once, however often it is handed in: its command id is made of Discord's own.
* A delivery is settled once as delivered, and given up only while it is not; a text that was given up and was taken by
  Discord all the same is delivered in the end.
* Which channels are bridged stands in one stream, decided upon at its version: so no channel on either side is bridged
  to two, whoever bridges.
* What somebody on Discord is called, and which account they are, stands in one stream of theirs, likewise.
* What follows from a request carries that request's correlation id, and stands in the stream of what it is about.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec
import structlog

from chat import rules
from chat.commands import (
    Account,
    Channel,
    Commands,
    Models,
    StandingMessage,
    command_id_of,
    new_message_stream,
    standing_message,
    until_settled,
    utc_now,
    whole_stream,
)
from chat.events import (
    ChannelBridged,
    ChannelUnbridged,
    DiscordLinked,
    DiscordMessageDelivered,
    DiscordMessageFailed,
    DiscordMessageRequested,
    DiscordMessageWithdrawn,
    DiscordUnlinked,
    DiscordUserSeen,
    Event,
    LinkCodeUsed,
    MessageSent,
    decode,
)
from chat.link_codes import LinkCode, LinkCodes
from chat.names import ANNOUNCE, BOT_ID, BOT_NAME, NameStreams, channel_name, safe_name
from chat.refusals import Reason, Refused
from chat.sources import SourceSeal
from eventstore.errors import LogError, WrongVersion
from eventstore.events import Appended, Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.log import EventLog

BRIDGES = "bridges"
# What the bot says in a channel, by which its members learn who else reads it.
BRIDGED = (
    "This channel is bridged to Discord from now on: what is said here is said there, too, and the other way round."
)
UNBRIDGED = "This channel is not bridged to Discord any more."
_SETTLING = ("DiscordMessageDelivered", "DiscordMessageFailed")
_log = structlog.get_logger(__name__)
_BOT = Account(BOT_ID, BOT_NAME)

Status = Literal["waiting", "delivered", "failed", "withdrawn"]


class Destination(msgspec.Struct, frozen=True):
    """Where on Discord something goes: to a channel or to a person; of the two ids the other is None."""

    discord_channel_id: int | None
    discord_user_id: int | None


class Delivery(msgspec.Struct, frozen=True):
    """A text that is to be delivered to Discord, and what has become of it.

    `stream` is where it was requested, and `sender` its sender's name; `message_id` is the message that it is, if it is
    one. `discord_message_ids` are its parts, in order, once Discord took it; `failed` is why it was given up. `settled`
    is the position of the event that said either, and `settled_at` its time. `withdrawn`: the message was deleted
    before it was delivered. `recipient` is the name of the account that a person was called by; None: they were called
    by their name on Discord.
    """

    delivery_id: int
    stream: str
    sender_id: int
    sender: str
    message_id: int | None
    destination: Destination
    text: str
    requested_at: datetime
    discord_message_ids: tuple[int, ...] | None
    failed: str | None
    settled: int | None
    settled_at: datetime | None
    withdrawn: bool
    recipient: str | None = None

    @property
    def status(self) -> Status:
        """What has become of it: what Discord took is delivered, whatever was deleted since."""
        if self.discord_message_ids is not None:
            return "delivered"
        if self.failed is not None:
            return "failed"
        return "withdrawn" if self.withdrawn else "waiting"


class Copy(msgspec.Struct, frozen=True):
    """A message on Discord that stands for something here.

    `origin_id` is the delivery that it is a part of or, if it was `received` from there, the message that it became.
    `message_id` is the message that it stands for; None: the text of a delivery that is no message here.
    """

    discord_message_id: int
    discord_channel_id: int
    origin_id: int
    message_id: int | None
    received: bool


class Bridge(msgspec.Struct, frozen=True):
    """A channel and the channel of Discord that it is bridged to, from which everything is read up to `read_through`.

    `channel` is the name of the one here, `read_through` the id of a message there.
    """

    channel_id: int
    channel: str
    discord_channel_id: int
    read_through: int


class DiscordUser(msgspec.Struct, frozen=True):
    """Somebody on Discord, by id and by the name that is unique there."""

    discord_user_id: int
    username: str


class BridgingModels(Models, Protocol):
    """What the commands of the bridge ask the read models."""

    async def account_by_id(self, account_id: int) -> Account | None:
        """The account of this id, unless it was erased."""

    async def channel_by_id(self, channel_id: int) -> Channel | None:
        """The channel of this id."""

    async def bridge_of(self, channel_id: int) -> Bridge | None:
        """The bridge of a channel, as far as this process has heard; its `read_through` may be an older one."""

    async def bridge_to(self, discord_channel_id: int) -> Bridge | None:
        """The bridge to a channel of Discord, likewise."""

    async def bridges_now(self) -> list[Bridge]:
        """All bridges, as the log stands now."""

    async def discord_user_by_name(self, username: str) -> DiscordUser | None:
        """Who was seen last under this name on Discord, whatever its case."""

    async def discord_user_of(self, account_id: int) -> DiscordUser | None:
        """Who on Discord is this account, the one who was linked last."""

    async def discord_username(self, discord_user_id: int) -> str | None:
        """The name under which somebody on Discord was seen last; None: they never wrote to the bot."""

    async def account_of_discord_user(self, discord_user_id: int) -> Account | None:
        """Which account somebody on Discord is."""

    async def discord_copy(self, discord_message_id: int) -> Copy | None:
        """What a message on Discord stands for here, unless that is gone."""


class Said(msgspec.Struct, frozen=True):
    """What somebody said in a channel of Discord: `author_name` is the name they show there, `link` leads to it."""

    discord_channel_id: int
    discord_message_id: int
    author: DiscordUser
    author_name: str
    text: str
    link: str


class Bridging:
    """The commands of the bridge: those by which people write to Discord, and those by which the bridge tells.

    `default_channel` is the channel of Discord for what goes to no other; `configured` says that there is a Discord to
    write to. `now` is the clock by which codes end. All raise `Refused` for a reason of the rules, `Malformed` for a
    value that cannot be, and `LogUnavailable` when nothing can be recorded now.
    """

    def __init__(
        self,
        log: EventLog,
        models: BridgingModels,
        commands: Commands,
        secret: bytes,
        *,
        default_channel: int | None,
        configured: bool,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._log = log
        self._models = models
        self._commands = commands
        self._streams = NameStreams(secret)
        self._seal = SourceSeal(secret)
        self._codes = LinkCodes(secret, now)
        self._default_channel = default_channel
        self._configured = configured

    async def send_to_default(
        self,
        account: Account,
        text: str,
        correlation_id: str,
        idempotency_key: str | None = None,
        *,
        source_address: str | None = None,
    ) -> Appended:
        """Asks for a text to be delivered to the default channel; its position is the delivery's id."""
        rules.check_text_for_discord("message", text)
        if not self._configured or self._default_channel is None:
            raise Refused(Reason.DISCORD_NOT_CONFIGURED)
        await self._commands.check_may_speak(account)
        source = self._sealed(source_address)
        requested = rules.request_delivery(
            account.account_id, text, discord_channel_id=self._default_channel, source=source
        )
        command_id = command_id_of(account, "discord default channel", idempotency_key)
        return await self._request(account, requested, correlation_id, command_id)

    async def send(
        self,
        account: Account,
        to: str,
        text: str,
        correlation_id: str,
        idempotency_key: str | None = None,
        *,
        source_address: str | None = None,
    ) -> Appended:
        """Sends a text to a bridged channel that the account may write to, or asks for its delivery to a person.

        A person is named by the account that they are linked to, or by their name on Discord. The first position is the
        message's id, or the delivery's.
        """
        rules.check_text_for_discord("message", text)
        self._check_configured()
        if await self._is_bridged_for(account, to):
            # None of those of `sendmessage`, which hold no space.
            own_key = None if idempotency_key is None else f"discord {idempotency_key}"
            return await self._commands.send_message(
                account, to, text, correlation_id, own_key, source_address=source_address
            )
        recipient, person = await self._person_called(to)
        if person is None:
            raise Refused(Reason.NOT_REACHABLE)
        await self._commands.check_may_speak(account)
        requested = rules.request_delivery(
            account.account_id,
            text,
            discord_user_id=person.discord_user_id,
            recipient_id=None if recipient is None else recipient.account_id,
            source=self._sealed(source_address),
        )
        command_id = command_id_of(account, "discord person", idempotency_key)
        return await self._request(account, requested, correlation_id, command_id)

    def link_code(self, account: Account) -> LinkCode:
        """A code by which somebody on Discord shows that they are this account."""
        self._check_configured()
        return self._codes.make(account.account_id)

    async def see_user(self, user: DiscordUser, correlation_id: str) -> bool:
        """Notes that somebody on Discord can be written to; whether they, or their name, were new."""

        async def attempt() -> bool:
            person = await self._person(user.discord_user_id)
            seen = person.seen_as(user.username)
            if seen is not None:
                await self._log.append(person.write(seen), context=Context(None, correlation_id))
            return seen is not None

        return await until_settled(attempt)

    async def link(self, user: DiscordUser, code: str, correlation_id: str) -> Account:
        """Links somebody on Discord to the account whose code they tell, which is used up by it."""
        good = self._codes.read(code)
        account = None if good is None else await self._models.account_by_id(good.account_id)
        if good is None or account is None:
            raise Refused(Reason.WRONG_LINK_CODE)
        await self._commands.check_not_banned(account)
        used = StreamWrite(self._streams.link_code(good.text), [LinkCodeUsed(account.account_id).recorded_form()])
        linked = DiscordLinked(str(user.discord_user_id), account.account_id)

        async def attempt() -> Account:
            person = await self._person(user.discord_user_id)
            if person.account_id != account.account_id:
                await self._check_may_leave(person)
            # With a command id, since who asks again after an outage may have used the code up already.
            repeated = await self._append_first(
                used,
                person.write(person.seen_as(user.username), linked),
                context=Context(account.account_id, correlation_id),
                command_id=f"{used.stream}-{person.stream}",
            )
            if repeated and person.account_id != account.account_id:
                raise Refused(Reason.WRONG_LINK_CODE)
            return account

        return await until_settled(attempt)

    async def unlink(self, user: DiscordUser, correlation_id: str) -> Account | None:
        """Ends that somebody on Discord is an account, which is returned; None if they were none."""

        async def attempt() -> Account | None:
            person = await self._person(user.discord_user_id)
            account = await self._check_may_leave(person)
            if account is not None:
                unlinked = DiscordUnlinked(str(user.discord_user_id), account.account_id)
                await self._log.append(person.write(unlinked), context=Context(account.account_id, correlation_id))
            return account

        return await until_settled(attempt)

    async def bridge(
        self, user_id: int, channel: str, discord_channel_id: int, after_message_id: int, correlation_id: str
    ) -> Channel:
        """Bridges a channel to one of Discord; nothing happens if it is bridged to that one already.

        The channel is told of it by the bot, since its members have not been asked.
        `user_id` is who on Discord wants it, who is to be an account that may write to the channel. From Discord comes
        what is behind its message `after_message_id`.
        """
        account = await self._linked(user_id)
        found = await self._models.channel_by_name(safe_name(channel_name(channel)))
        if found is None:
            raise Refused(Reason.CHANNEL_NOT_FOUND)
        may_bridge = await self._commands.may_write(account, found)

        async def attempt() -> Channel:
            bridges = _Bridges(await whole_stream(self._log, BRIDGES))
            event = rules.bridge(
                found.channel_id,
                discord_channel_id,
                after_message_id,
                account.account_id,
                may_bridge=may_bridge,
                bridged_to=bridges.discord_channel_of(found.channel_id),
                bridged_from=bridges.channel_of(discord_channel_id),
            )
            if event is not None:
                writes = bridges.write(event), _announcement(found.channel_id, BRIDGED)
                await self._log.append(*writes, context=Context(account.account_id, correlation_id))
            return found

        return await until_settled(attempt)

    async def unbridge(self, user_id: int, discord_channel_id: int, correlation_id: str) -> Channel:
        """Ends the bridge to a channel of Discord; returns the channel that was bridged to it."""
        account = await self._linked(user_id)

        async def attempt() -> Channel:
            bridges = _Bridges(await whole_stream(self._log, BRIDGES))
            channel_id = bridges.channel_of(discord_channel_id)
            channel = None if channel_id is None else await self._models.channel_by_id(channel_id)
            if channel is None:
                raise Refused(Reason.NOT_BRIDGED)
            may_bridge = await self._commands.may_write(account, channel)
            event = rules.unbridge(channel.channel_id, discord_channel_id, account.account_id, may_bridge=may_bridge)
            writes = bridges.write(event), _announcement(channel.channel_id, UNBRIDGED)
            await self._log.append(*writes, context=Context(account.account_id, correlation_id))
            return channel

        return await until_settled(attempt)

    async def receive(self, said: Said, correlation_id: str) -> Appended | None:
        """Records what was said in a bridged channel of Discord; the first position is the message's id.

        It is said by the account that its author is, if that may write to the channel, else by the bot in the author's
        name. None: the channel is not bridged, the author may not speak, or there is nothing but white space. The
        correlation id must be this message's alone, since an erasure follows it to what was answered.
        """
        bridge = await self._models.bridge_to(said.discord_channel_id)
        if bridge is None or not said.text.strip():
            return None
        speaker = await self._speaker(bridge, said)
        if speaker is None:
            return None
        recorded = rules.receive_message(
            bridge.channel_id,
            speaker.account_id,
            rules.text_from_discord(_beginning(speaker, said.author_name, said.author.username), said.text, said.link),
            discord_channel_id=said.discord_channel_id,
            discord_message_id=said.discord_message_id,
        )
        return await self._log.append(
            StreamWrite(new_message_stream(), _forms(*recorded)),
            context=Context(speaker.account_id, correlation_id),
            command_id=f"discord-{said.discord_message_id}",
        )

    async def edit(self, discord_message_id: int, author_name: str, text: str, link: str, correlation_id: str) -> bool:
        """Lets a message that came from Discord say what it says there now; False if none of this id did.

        Nothing happens to a message that is gone here, by an author who may not speak, or without a change.
        """

        async def attempt(message_id: int, standing: StandingMessage) -> None:
            sender = Account(standing.sent.sender_id, "")
            beginning = rules.beginning_of(standing.text) if sender.account_id == BOT_ID else ""
            # By the name it was said under: a new one alone is no change of what was said.
            if not text.strip() or rules.text_from_discord(beginning, text, link) == standing.text:
                return
            await self._commands.check_may_speak(sender)
            now = rules.text_from_discord(_beginning(sender, author_name), text, link)
            edited = rules.edit_message(message_id, sender.account_id, now, standing=standing.text)
            if edited is not None:
                await self._follow(standing, edited, correlation_id=correlation_id)

        return await self._concerning(discord_message_id, attempt)

    async def delete(self, discord_message_id: int, correlation_id: str) -> bool:
        """Deletes a message that came from Discord and is gone there; False if none of this id did."""

        async def attempt(message_id: int, standing: StandingMessage) -> None:
            sender_id = standing.sent.sender_id
            deleted = rules.delete_message(message_id, sender_id, sender_id)
            copy = await self._models.discord_copy(discord_message_id)
            # So that nobody tries to remove there what is gone.
            gone = [] if copy is None else [_withdrawn(copy.discord_channel_id, [discord_message_id])]
            await self._follow(standing, deleted, *gone, correlation_id=correlation_id)

        return await self._concerning(discord_message_id, attempt)

    async def delivered(self, delivery: Delivery, discord_channel_id: int, discord_message_ids: Sequence[int]) -> None:
        """Records that Discord took a delivery, as these messages of the channel; once, however often it is told."""
        event = DiscordMessageDelivered(
            delivery.delivery_id,
            delivery.message_id,
            delivery.sender_id,
            str(discord_channel_id),
            tuple(map(str, discord_message_ids)),
        )
        request = await self._event_at(delivery.delivery_id)
        # Whatever else happened to the message meanwhile, Discord has it.
        write = StreamWrite(request.stream, _forms(event), expected_version=None)
        command_id = f"discord-delivered-{delivery.delivery_id}"
        await self._log.append(write, context=_caused_by(request), command_id=command_id)

    async def failed(self, delivery: Delivery, reason: str) -> None:
        """Records that a delivery is given up, unless it is settled; once, however often it is told."""
        request = await self._event_at(delivery.delivery_id)
        event = DiscordMessageFailed(delivery.delivery_id, delivery.message_id, delivery.sender_id, reason)

        async def attempt() -> None:
            history = await whole_stream(self._log, request.stream)
            if any(past.type in _SETTLING for past in history):
                return
            write = StreamWrite(request.stream, _forms(event), expected_version=len(history))
            await self._log.append(write, context=_caused_by(request))

        await until_settled(attempt)

    async def withdrawn(self, discord_channel_id: int, discord_message_ids: Sequence[int]) -> None:
        """Records that messages on Discord are gone, or cannot be removed; what is known to be gone is left out."""
        by_origin: dict[int, list[int]] = {}
        for discord_message_id in discord_message_ids:
            copy = await self._models.discord_copy(discord_message_id)
            if copy is not None:
                by_origin.setdefault(copy.origin_id, []).append(discord_message_id)
        for origin_id, gone in by_origin.items():
            origin = await self._event_at(origin_id)
            event = _withdrawn(discord_channel_id, gone)
            write = StreamWrite(origin.stream, _forms(event), expected_version=None)
            await self._log.append(write, context=_caused_by(origin))

    def _check_configured(self) -> None:
        if not self._configured:
            raise Refused(Reason.DISCORD_NOT_CONFIGURED)

    async def _is_bridged_for(self, account: Account, channel: str) -> bool:
        found = await self._models.channel_by_name(safe_name(channel_name(channel)))
        if found is None or await self._models.bridge_of(found.channel_id) is None:
            return False
        return await self._commands.may_write(account, found)

    async def _person_called(self, name: str) -> tuple[Account | None, DiscordUser | None]:
        """Somebody on Discord, with the account that they were called by."""
        account = await self._models.account_by_name(safe_name(name))
        linked = None if account is None else await self._models.discord_user_of(account.account_id)
        if linked is not None:
            return account, linked
        return None, await self._models.discord_user_by_name(name.strip())

    async def _request(
        self, account: Account, requested: DiscordMessageRequested, correlation_id: str, command_id: str | None
    ) -> Appended:
        write = StreamWrite(new_message_stream(), _forms(requested))
        return await self._log.append(write, context=Context(account.account_id, correlation_id), command_id=command_id)

    def _sealed(self, address: str | None) -> str | None:
        return None if address is None else self._seal.seal(address)

    async def _person(self, discord_user_id: int) -> _Person:
        stream = self._streams.discord_user(discord_user_id)
        return _Person(discord_user_id, stream, await whole_stream(self._log, stream))

    async def _check_may_leave(self, person: _Person) -> Account | None:
        """The account that a person is, if any; refused to who may not speak, and would speak on as another."""
        account = None if person.account_id is None else await self._models.account_by_id(person.account_id)
        if account is not None:
            await self._commands.check_may_speak(account)
        return account

    async def _append_first(self, first: StreamWrite, *more: StreamWrite, context: Context, command_id: str) -> bool:
        """Whether this is a repeat; refused if somebody else used the code up, whose stream is that of `first`."""
        try:
            return (await self._log.append(first, *more, context=context, command_id=command_id)).repeated
        except WrongVersion as error:
            if error.stream == first.stream:
                raise Refused(Reason.WRONG_LINK_CODE) from None
            raise

    async def _linked(self, discord_user_id: int) -> Account:
        account = await self._models.account_of_discord_user(discord_user_id)
        if account is None:
            raise Refused(Reason.NOT_LINKED)
        await self._commands.check_not_banned(account)
        return account

    async def _speaker(self, bridge: Bridge, said: Said) -> Account | None:
        """Who says it here; None: nobody may."""
        account = await self._models.account_of_discord_user(said.author.discord_user_id)
        if account is not None:
            try:
                # By the time of its saying: what somebody said while silenced is not said when it is read later.
                await self._commands.check_may_speak(account, at=rules.said_at(said.discord_message_id))
            except Refused:
                return None
            if await self._commands.may_write(account, Channel(bridge.channel_id, bridge.channel)):
                return account
        # Nobody announces through the bot.
        return None if bridge.channel == ANNOUNCE else _BOT

    async def _concerning(
        self, discord_message_id: int, attempt: Callable[[int, StandingMessage], Awaitable[None]]
    ) -> bool:
        """Does something about a message that came from Discord, if it stands still; False if none of this id did."""
        copy = await self._models.discord_copy(discord_message_id)
        if copy is None or not copy.received:
            return False
        message_id = copy.origin_id

        async def once() -> None:
            await attempt(message_id, await standing_message(self._log, message_id))

        try:
            await until_settled(once)
        except Refused as refused:
            _log.debug("nothing is done about a message from Discord", reason=refused.reason.name)
        return True

    async def _follow(self, standing: StandingMessage, *news: Event, correlation_id: str) -> None:
        write = StreamWrite(standing.stream, _forms(*news), expected_version=standing.version)
        await self._log.append(write, context=Context(standing.sent.sender_id, correlation_id))

    async def _event_at(self, position: int) -> RecordedEvent:
        event = await self._log.event_at(position)
        if event is None:
            raise LogError(f"event {position} is missing from the log")
        return event


class _Person:
    """What is the case of somebody on Discord by the history of their stream; what was erased tells nothing."""

    def __init__(self, discord_user_id: int, stream: str, history: Sequence[RecordedEvent]) -> None:
        self.stream = stream
        self.username: str | None = None
        self.account_id: int | None = None
        self._discord_user_id = discord_user_id
        self._version = len(history)
        for event in history:
            self._tell(event)

    def seen_as(self, username: str) -> DiscordUserSeen | None:
        """What is to be noted of their name, if anything."""
        return rules.see_discord_user(self._discord_user_id, rules.discord_name(username), known_as=self.username)

    def write(self, *news: Event | None) -> StreamWrite:
        """What is to be recorded of them, on what is the case."""
        return StreamWrite(self.stream, _forms(*news), expected_version=self._version)

    def _tell(self, recorded: RecordedEvent) -> None:
        event = decode(recorded)
        if recorded.type == "DiscordUserSeen":
            self.username = event.username if isinstance(event, DiscordUserSeen) else None
        else:
            self.account_id = event.account_id if isinstance(event, DiscordLinked) else None


class _Bridges:
    """Which channels are bridged, by the history of all bridges."""

    def __init__(self, history: Sequence[RecordedEvent]) -> None:
        self._version = len(history)
        self._to: dict[int, int] = {}
        for event in history:
            self._tell(event)

    def discord_channel_of(self, channel_id: int) -> int | None:
        """The channel of Discord that a channel is bridged to."""
        return self._to.get(channel_id)

    def channel_of(self, discord_channel_id: int) -> int | None:
        """The channel that is bridged to a channel of Discord."""
        return next((here for here, there in self._to.items() if there == discord_channel_id), None)

    def write(self, event: Event) -> StreamWrite:
        """What is to be recorded, on what is the case."""
        return StreamWrite(BRIDGES, _forms(event), expected_version=self._version)

    def _tell(self, recorded: RecordedEvent) -> None:
        match decode(recorded):
            case ChannelBridged(channel_id=channel_id, discord_channel_id=discord_channel_id):
                self._to[channel_id] = int(discord_channel_id)
            case ChannelUnbridged(channel_id=channel_id):
                self._to.pop(channel_id, None)


class _Metadata(msgspec.Struct):
    correlation_id: str


def _caused_by(event: RecordedEvent) -> Context:
    """The context of what the house itself does because of an event."""
    return Context(None, msgspec.json.decode(event.metadata, type=_Metadata).correlation_id)


def _announcement(channel_id: int, text: str) -> StreamWrite:
    return StreamWrite(new_message_stream(), _forms(MessageSent(channel_id, BOT_ID, text)))


def _forms(*news: Event | None) -> list[NewEvent]:
    return [event.recorded_form() for event in news if event is not None]


def _withdrawn(discord_channel_id: int, discord_message_ids: Sequence[int]) -> DiscordMessageWithdrawn:
    return DiscordMessageWithdrawn(str(discord_channel_id), tuple(map(str, discord_message_ids)))


def _beginning(speaker: Account, *names: str) -> str:
    return rules.said_by(rules.discord_name(*names)) if speaker.account_id == BOT_ID else ""
