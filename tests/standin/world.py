"""The state of a Discord, without sockets: guilds, channels, people, messages, commands.

What happens here is told to `announce` as a `Dispatch`, in order and before the call returns. The clock is handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Any

from tests.standin.refusals import Refusal, forbidden, unknown
from tests.standin.things import (
    DEFAULT,
    JSON,
    MENTION_EVERYONE,
    REPLY,
    SEND_MESSAGES,
    VIEW_CHANNEL,
    Attachment,
    Channel,
    Guild,
    Message,
    Role,
    User,
)

# The first millisecond of Discord's ids (API reference, "Snowflakes").
EPOCH = 1_420_070_400_000
TEXT, DIRECT = 0, 1


class Intents(IntFlag):
    """What a session wants to be told of (API reference, "Gateway Intents"); the other bits have no events here."""

    NONE = 0
    GUILDS = 1 << 0
    GUILD_MEMBERS = 1 << 1
    GUILD_PRESENCES = 1 << 8
    GUILD_MESSAGES = 1 << 9
    DIRECT_MESSAGES = 1 << 12
    MESSAGE_CONTENT = 1 << 15


@dataclass(frozen=True, slots=True)
class Dispatch:
    """An event for the sessions that have its intent, on the shard of its guild."""

    name: str
    data: JSON
    intent: Intents
    guild_id: int | None


class Snowflakes:
    """Ids from a clock of seconds: each is greater than the last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last + 1, snowflake(self._clock()))
        return self._last


def snowflake(seconds: float) -> int:
    """The least id of a time."""
    return max(0, int(seconds * 1000) - EPOCH) << 22


@dataclass(frozen=True, slots=True)
class Draft:
    """What somebody wants to write."""

    content: str
    nonce: str | int | None = None
    allowed_mentions: Mapping[str, Any] | None = None
    attachments: Sequence[str] = ()
    embeds: Sequence[JSON] = ()
    reply_to: Message | None = None
    webhook_id: int | None = None
    flags: int = 0
    kind: int = DEFAULT


class World:
    """Everything that exists. Nobody is asked for permission here: `rest` does that for the bot."""

    def __init__(
        self, bot_name: str, clock: Callable[[], float], announce: Callable[[Dispatch], None], nonce_window: float
    ) -> None:
        self.now = clock
        self.next_id = Snowflakes(clock)
        self.guilds: dict[int, Guild] = {}
        self.roles: dict[int, Role] = {}
        self.channels: dict[int, Channel] = {}
        self.users: dict[int, User] = {}
        self.commands: dict[int, JSON] = {}
        self.closed_dms: set[int] = set()
        self.denied: dict[int, int] = {}  # the permissions that the bot lacks, by channel
        self._announce = announce
        self._nonce_window = nonce_window
        self._messages: dict[int, Message] = {}
        self._by_nonce: dict[tuple[int, str], int] = {}
        self.bot = self._known(User(self.next_id(), bot_name, bot=True))
        self.owner = self._known(User(self.next_id(), "the_owner"))

    # People and places

    def add_user(self, username: str, **traits: Any) -> User:
        """Somebody new, who joins all guilds."""
        user = self._known(User(self.next_id(), username, **traits))
        for guild in self.guilds.values():
            member = user.member() | {"user": user.json(), "guild_id": str(guild.id)}
            self._tell("GUILD_MEMBER_ADD", member, Intents.GUILD_MEMBERS, guild.id)
        return user

    def _known(self, user: User) -> User:
        self.users[user.id] = user
        return user

    def add_guild(self, name: str) -> Guild:
        """A new guild, which the bot is in."""
        guild = Guild(self.next_id(), name, self.owner.id)
        self.guilds[guild.id] = guild
        self.roles[guild.id] = Role(guild.id, guild.id, "@everyone")
        # Told as to one who joins: what comes with a session's start has "unavailable" besides.
        data = self.guild_json(guild, Intents.NONE)
        del data["unavailable"]
        self._tell("GUILD_CREATE", data, Intents.GUILDS, guild.id)
        return guild

    def remove_guild(self, guild: Guild) -> None:
        """The bot is thrown out."""
        del self.guilds[guild.id]
        self._tell("GUILD_DELETE", {"id": str(guild.id)}, Intents.GUILDS, guild.id)

    def add_role(self, guild: Guild, name: str) -> Role:
        """A new role that can be mentioned."""
        role = Role(self.next_id(), guild.id, name)
        self.roles[role.id] = role
        self._tell("GUILD_ROLE_CREATE", {"guild_id": str(guild.id), "role": role.json()}, Intents.GUILDS, guild.id)
        return role

    def add_text_channel(self, guild: Guild, name: str) -> Channel:
        """A new channel of a guild."""
        channel = self._open(Channel(self.next_id(), name, guild_id=guild.id))
        self._tell("CHANNEL_CREATE", self.channel_json(channel), Intents.GUILDS, guild.id)
        return channel

    def dm(self, person: User) -> Channel:
        """The direct messages of a person with the bot: always the same channel."""
        for channel in self.channels.values():
            if channel.recipient is not None and channel.recipient.id == person.id:
                return channel
        return self._open(Channel(self.next_id(), person.username, recipient=person))

    def _open(self, channel: Channel) -> Channel:
        self.channels[channel.id] = channel
        return channel

    def remove_channel(self, channel: Channel) -> None:
        """The channel and what was said in it are gone."""
        data = self.channel_json(channel)
        del self.channels[channel.id]
        self._tell("CHANNEL_DELETE", data, Intents.GUILDS, channel.guild_id)

    def deny(self, channel: Channel, permissions: int) -> None:
        """From now on the bot lacks these permissions in a channel, and no others; 0 gives all back."""
        self.denied[channel.id] = permissions
        self._tell("CHANNEL_UPDATE", self.channel_json(channel), Intents.GUILDS, channel.guild_id)

    # What is said

    def post(self, channel: Channel, author: User, draft: Draft) -> Message:
        """Somebody writes; the new message."""
        moment = self.now()
        message_id = self.next_id()
        message = Message(
            id=message_id,
            channel=channel,
            author=author,
            content=draft.content.strip(),
            sent_at=moment,
            nonce=draft.nonce,
            allowed_mentions=draft.allowed_mentions,
            attachments=tuple(Attachment(self.next_id(), channel.id, name) for name in draft.attachments),
            embeds=tuple(draft.embeds),
            reply_to=draft.reply_to,
            webhook_id=draft.webhook_id,
            flags=draft.flags,
            kind=REPLY if draft.reply_to else draft.kind,
        )
        message = self._keep(self._with_mentions(message))
        if draft.nonce is not None:
            self._by_nonce[author.id, str(draft.nonce)] = message.id
        self._tell_of("MESSAGE_CREATE", message)
        return message

    def posted(self, author: User, nonce: str | int) -> Message | None:
        """The message that an author has sent with a nonce within the last minutes."""
        message = self._messages.get(self._by_nonce.get((author.id, str(nonce)), 0))
        return message if message and self.now() - message.sent_at < self._nonce_window else None

    def edit(self, message: Message, **changes: Any) -> Message:
        """A message is changed by its author: fields of `Message`; what it is now."""
        current = self._messages[message.id]
        edited = replace(current, **changes, edited_at=self.now())
        edited = self._keep(self._with_mentions(edited))
        self._tell_of("MESSAGE_UPDATE", edited)
        return edited

    def unfurl(self, message: Message, embeds: Iterable[JSON]) -> Message:
        """Discord adds previews of the links, which is told as an update but is no edit."""
        shown = self._keep(replace(self._messages[message.id], embeds=tuple(embeds)))
        self._tell_of("MESSAGE_UPDATE", shown)
        return shown

    def delete(self, message: Message) -> None:
        """A message is gone."""
        self._keep(replace(self._messages[message.id], deleted=True))
        if not message.ephemeral:
            self._tell_in(message.channel, "MESSAGE_DELETE", {"id": str(message.id)})

    def delete_in_bulk(self, messages: Sequence[Message]) -> None:
        """Messages of one channel are gone at once."""
        for message in messages:
            self._keep(replace(self._messages[message.id], deleted=True))
        self._tell_in(messages[0].channel, "MESSAGE_DELETE_BULK", {"ids": [str(message.id) for message in messages]})

    def message(self, message_id: int) -> Message:
        """A message as it is now, also if it is deleted."""
        return self._messages[message_id]

    def messages(self, channel: Channel, *, deleted: bool = False) -> list[Message]:
        """What was said in a channel, oldest first."""
        return [
            message
            for message in self._messages.values()
            if message.channel.id == channel.id and not message.ephemeral and (deleted or not message.deleted)
        ]

    def _keep(self, message: Message) -> Message:
        self._messages[message.id] = message
        return message

    def _with_mentions(self, message: Message) -> Message:
        """The message with whom it pings (API reference, "Allowed Mentions Object")."""
        everyone = message.author.bot or bool(message.author.permissions & MENTION_EVERYONE)
        allowed = message.allowed_mentions
        if allowed is None:
            allowed = {"parse": ["users", "roles", *(["everyone"] if everyone else [])]}
        return replace(
            message,
            mentions=tuple(
                self.users[user] for user in _allowed(message.content, r"<@!?(\d+)>", "users", allowed, self.users)
            ),
            mention_roles=tuple(_allowed(message.content, r"<@&(\d+)>", "roles", allowed, self.roles)),
            mention_everyone="everyone" in allowed.get("parse", ())
            and re.search("@(everyone|here)", message.content) is not None,
        )

    # Telling

    def _tell(self, name: str, data: JSON, intent: Intents, guild_id: int | None) -> None:
        self._announce(Dispatch(name, data, intent, guild_id))

    def _tell_of(self, name: str, message: Message) -> None:
        if message.ephemeral:
            return
        self._tell(name, message.event(), _intent(message.channel), message.channel.guild_id)

    def _tell_in(self, channel: Channel, name: str, data: JSON) -> None:
        place = {"channel_id": str(channel.id)}
        if channel.guild_id is not None:
            place["guild_id"] = str(channel.guild_id)
        self._tell(name, data | place, _intent(channel), channel.guild_id)

    # How it looks

    def channel_json(self, channel: Channel) -> JSON:
        """The channel object."""
        said = self.messages(channel)
        shown: JSON = {"id": str(channel.id), "last_message_id": str(said[-1].id) if said else None, "flags": 0}
        if channel.recipient is not None:
            return shown | {"type": DIRECT, "recipients": [channel.recipient.json()]}
        denied = {"id": str(self.bot.id), "type": 1, "allow": "0", "deny": str(self.denied.get(channel.id, 0))}
        return shown | {
            "type": TEXT,
            "guild_id": str(channel.guild_id),
            "name": channel.name,
            "position": 0,
            "parent_id": None,
            "topic": None,
            "nsfw": False,
            "rate_limit_per_user": 0,
            "permission_overwrites": [denied],
        }

    def guild_json(self, guild: Guild, intents: Intents) -> JSON:
        """What GUILD_CREATE holds; all members only for those who follow presences, otherwise the bot alone."""
        members = self.users.values() if intents & Intents.GUILD_PRESENCES else [self.bot]
        return guild.json() | {
            "roles": [role.json() for role in self.roles.values() if role.guild_id == guild.id],
            "channels": [self.channel_json(channel) for channel in self.channels_of(guild)],
            "members": [self.member_json(user) for user in members],
            "member_count": len(self.users),
            "joined_at": "2016-01-01T00:00:00+00:00",
            "large": False,
            "unavailable": False,
            **{name: [] for name in _EMPTY_OF_GUILDS},
        }

    def channels_of(self, guild: Guild) -> Iterator[Channel]:
        """The channels of a guild that the bot can see or not."""
        return (channel for channel in self.channels.values() if channel.guild_id == guild.id)

    @staticmethod
    def member_json(user: User) -> JSON:
        """The guild member object."""
        return user.member() | {"user": user.json()}

    # What the bot may do

    def channel_for_bot(self, channel_id: int, needs: int = VIEW_CHANNEL) -> Channel:
        """The channel, if the bot has these permissions in it; raises `Refusal`."""
        channel = self.channels.get(channel_id)
        if channel is None:
            raise unknown("Channel")
        refusal = self._refusal(channel, needs)
        if refusal is not None:
            raise refusal
        return channel

    def _refusal(self, channel: Channel, needs: int) -> Refusal | None:
        denied = self.denied.get(channel.id, 0)
        if channel.recipient is not None:
            closed = channel.recipient.id in self.closed_dms and needs & SEND_MESSAGES
            return forbidden(50007) if closed else None
        if channel.guild_id not in self.guilds or denied & VIEW_CHANNEL:
            return forbidden(50001)
        return forbidden(50013) if denied & needs else None

    def message_for_bot(self, channel_id: int, message_id: int) -> Message:
        """The message, if it is there and the bot can see its channel; raises `Refusal`."""
        channel = self.channel_for_bot(channel_id)
        message = self._messages.get(message_id)
        if message is None or message.deleted or message.ephemeral or message.channel.id != channel.id:
            raise unknown("Message")
        return message


_EMPTY_OF_GUILDS = (
    "threads",
    "presences",
    "voice_states",
    "stage_instances",
    "guild_scheduled_events",
    "soundboard_sounds",
)


def _intent(channel: Channel) -> Intents:
    return Intents.DIRECT_MESSAGES if channel.guild_id is None else Intents.GUILD_MESSAGES


def _allowed(
    content: str, pattern: str, kind: str, allowed: Mapping[str, Any], known: Mapping[int, object]
) -> Iterable[int]:
    named = dict.fromkeys(int(found) for found in re.findall(pattern, content))
    listed = {int(each) for each in allowed.get(kind) or ()}
    return [each for each in named if each in known and (kind in allowed.get("parse", ()) or each in listed)]
