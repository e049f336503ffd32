"""What a Discord consists of, and how each thing is shown on the wire (Discord's API reference, "Resources")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

JSON = dict[str, Any]

# Bits of "Permissions".
ADMINISTRATOR = 1 << 3
MANAGE_CHANNELS = 1 << 4
MANAGE_GUILD = 1 << 5
MENTION_EVERYONE = 1 << 17
VIEW_CHANNEL = 1 << 10
SEND_MESSAGES = 1 << 11
# What everybody may: see, write, link, attach, read the history, use commands.
ORDINARY = VIEW_CHANNEL | SEND_MESSAGES | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 31

# Bits of "Message Flags".
EPHEMERAL = 1 << 6
LOADING = 1 << 7

# "Message Types".
DEFAULT, REPLY, COMMAND = 0, 19, 20

_FOUNDED = "2016-01-01T00:00:00+00:00"


def iso(seconds: float | None) -> str | None:
    """A time of the stand-in's clock as Discord writes it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class User:
    """An account: a person's, or a bot's. Everybody is a member of every guild, with the same nickname in each."""

    id: int
    username: str
    global_name: str | None = None
    nick: str | None = None
    bot: bool = False
    permissions: int = ORDINARY

    def json(self) -> JSON:
        """The user object."""
        return {
            "id": str(self.id),
            "username": self.username,
            "discriminator": "0",
            "global_name": self.global_name,
            "avatar": None,
            "bot": self.bot,
            "system": False,
            "public_flags": 0,
            "avatar_decoration_data": None,
            "collectibles": None,
            "primary_guild": None,
        }

    def member(self) -> JSON:
        """The guild member object, without its user."""
        return {
            "nick": self.nick,
            "avatar": None,
            "roles": [],
            "joined_at": _FOUNDED,
            "premium_since": None,
            "communication_disabled_until": None,
            "deaf": False,
            "mute": False,
            "pending": False,
            "flags": 0,
        }


@dataclass(frozen=True, slots=True)
class Role:
    """A role that can be mentioned; nobody has one."""

    id: int
    guild_id: int
    name: str

    def json(self) -> JSON:
        """The role object."""
        return {
            "id": str(self.id),
            "name": self.name,
            "color": 0,
            "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
            "hoist": False,
            "icon": None,
            "position": 0 if self.id == self.guild_id else 1,
            "permissions": str(ORDINARY),
            "managed": False,
            "mentionable": True,
            "flags": 0,
        }


@dataclass(frozen=True, slots=True)
class Guild:
    """A server, as people call it."""

    id: int
    name: str
    owner_id: int

    def json(self) -> JSON:
        """The guild object, without what only GUILD_CREATE has."""
        return {
            "id": str(self.id),
            "name": self.name,
            "icon": None,
            "splash": None,
            "discovery_splash": None,
            "description": None,
            "banner": None,
            "owner_id": str(self.owner_id),
            "afk_channel_id": None,
            "afk_timeout": 300,
            "verification_level": 0,
            "default_message_notifications": 1,
            "explicit_content_filter": 0,
            "emojis": [],
            "stickers": [],
            "features": [],
            "mfa_level": 0,
            "nsfw_level": 0,
            "premium_tier": 0,
            "premium_progress_bar_enabled": False,
            "preferred_locale": "en-US",
            "system_channel_id": None,
            "system_channel_flags": 0,
            "rules_channel_id": None,
            "public_updates_channel_id": None,
            "safety_alerts_channel_id": None,
            "vanity_url_code": None,
        }


@dataclass(frozen=True, slots=True)
class Channel:
    """A text channel of a guild, or the direct messages of one person with the bot."""

    id: int
    name: str
    guild_id: int | None = None
    recipient: User | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of a message; nobody can fetch it."""

    id: int
    channel_id: int
    filename: str

    @property
    def url(self) -> str:
        """Where the file would be."""
        return f"https://cdn.discordapp.com/attachments/{self.channel_id}/{self.id}/{self.filename}?ex=0&is=0&hm=0"

    def json(self) -> JSON:
        """The attachment object."""
        return {
            "id": str(self.id),
            "filename": self.filename,
            "size": 1,
            "url": self.url,
            "proxy_url": self.url.replace("cdn.discordapp.com", "media.discordapp.net"),
        }


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it stood when it was asked for: what comes later shows in a new one of the same id.

    `mentions`, `mention_roles` and `mention_everyone` tell whom it pings, which is less than its text names if
    `allowed_mentions` (as the bot sent it; None if it sent none) does not allow more. `deleted` ones are only found
    by who asks for them. Times are seconds since the epoch.
    """

    id: int
    channel: Channel
    author: User
    content: str
    sent_at: float
    edited_at: float | None = None
    deleted: bool = False
    nonce: str | int | None = None
    allowed_mentions: Mapping[str, Any] | None = None
    attachments: tuple[Attachment, ...] = ()
    embeds: tuple[JSON, ...] = ()
    mentions: tuple[User, ...] = ()
    mention_roles: tuple[int, ...] = ()
    mention_everyone: bool = False
    reply_to: Message | None = None
    webhook_id: int | None = None
    flags: int = 0
    kind: int = DEFAULT

    @property
    def ephemeral(self) -> bool:
        """Whether only one person sees it, as an answer to their command."""
        return bool(self.flags & EPHEMERAL)

    def json(self) -> JSON:
        """The message object, as REST has it."""
        shown = {
            "id": str(self.id),
            "channel_id": str(self.channel.id),
            "type": self.kind,
            "author": self.author.json(),
            "content": self.content,
            "timestamp": iso(self.sent_at),
            "edited_timestamp": iso(self.edited_at),
            "tts": False,
            "pinned": False,
            "flags": self.flags,
            "mentions": [user.json() for user in self.mentions],
            "mention_roles": [str(role) for role in self.mention_roles],
            "mention_everyone": self.mention_everyone,
            "attachments": [attachment.json() for attachment in self.attachments],
            "embeds": list(self.embeds),
            "components": [],
        }
        return shown | self._origin() | self._reference()

    def event(self) -> JSON:
        """The message as MESSAGE_CREATE and MESSAGE_UPDATE have it: in a guild with its author's membership."""
        shown = self.json()
        if self.channel.guild_id is not None:
            shown |= {"guild_id": str(self.channel.guild_id), "member": self.author.member()}
            shown["mentions"] = [user.json() | {"member": user.member()} for user in self.mentions]
        return shown

    def _origin(self) -> JSON:
        shown: JSON = {}
        if self.nonce is not None:
            shown["nonce"] = self.nonce
        if self.webhook_id is not None:
            shown["webhook_id"] = str(self.webhook_id)
        return shown

    def _reference(self) -> JSON:
        if self.reply_to is None:
            return {}
        reference = {"type": 0, "message_id": str(self.reply_to.id), "channel_id": str(self.reply_to.channel.id)}
        if self.channel.guild_id is not None:
            reference["guild_id"] = str(self.channel.guild_id)
        return {"message_reference": reference, "referenced_message": self.reply_to.json()}
