"""What people on Discord ask of the bot: by slash commands, by prefix commands where those are not to be had, by DMs.

Whatever way it comes, it is one of the commands here, done in one place, and answered to who asked alone where Discord
can do that. What people write to the bot directly is kept nowhere; that they did is recorded, once, so that they can
be written to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import discord
import structlog
from discord import app_commands

from bot.bridge.away import AWAY, patiently
from bot.bridge.registration import register
from bot.bridge.syntax import PREFIX, Bridge, Command, Help, Link, Unbridge, Unlink, parse
from chat.bridging import Bridging, DiscordUser
from chat.refusals import Malformed, Reason, Refused
from eventstore.errors import LogUnavailable
from eventstore.ids import new_id

NEEDS_MANAGE_CHANNELS = "You need the permission *Manage Channels* here to do that."
NO_CHANNEL = "Only text channels of a server can be bridged: no threads, voice channels or direct messages."
LOG_IS_AWAY = "Minutebook cannot record anything at the moment. Please try again in a minute."
SOMETHING_WENT_WRONG = "Something went wrong; those who run Minutebook can read about it in its log."
CODE_WAS_PUBLIC = " Others may have seen the code, so better use a direct message to me next time; it works only once."
USAGE = """\
I understand, here and in channels:
`/link code:CODE` or `!link CODE` - you are one of Minutebook's accounts from now on; it gives you the code
`/unlink` or `!unlink` - you are no account of Minutebook any more
`/bridge channel:NAME` or `!bridge NAME` - what is said in a channel here is said in one of Minutebook, too
`/unbridge` or `!unbridge` - ends that"""
# Of what people write to the bot so much is heard at a time: answers wait for Discord's limits, writing does not.
MOST_HEARD = 100
REFUSALS: Mapping[Reason, str] = {
    Reason.WRONG_LINK_CODE: "This code is wrong, too old or used up. Let Minutebook make you another one.",
    Reason.NOT_LINKED: "I do not know which account of Minutebook you are. Say `/link` with a code from there first.",
    Reason.CHANNEL_NOT_FOUND: "Minutebook has no channel of that name.",
    Reason.NOT_A_MEMBER: "You are not a member of that channel of Minutebook.",
    Reason.NOT_AN_OPERATOR: "Only operators of Minutebook may bridge that channel.",
    Reason.ALREADY_BRIDGED: "One of the two channels is bridged already; `/unbridge` ends that.",
    Reason.NOT_BRIDGED: "This channel is not bridged.",
    Reason.BANNED: "Your account of Minutebook is banned.",
    Reason.SILENCED: "Your account of Minutebook is silenced.",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and where: `channel` is None in a direct message, and in what cannot be bridged.

    `moment` is the id that the question has on Discord, by which what was said before it is told from what comes.
    `may_manage` says whether they have the permission Manage Channels, `bot_lacks` which the bot needs and has not.
    """

    user: DiscordUser
    channel: discord.TextChannel | None
    moment: int
    may_manage: bool = False
    bot_lacks: tuple[str, ...] = ()


class Conversation:
    """The bot's side of what people ask it. It is made with the client, whose only command tree it makes."""

    def __init__(self, client: discord.Client, bridging: Bridging) -> None:
        self._bridging = bridging
        self._tree = app_commands.CommandTree(client)
        self._being_noted: set[int] = set()
        self._heard = 0
        self._add("bridge", "Bridge this channel to a channel of Minutebook", self._slash_bridge, in_guilds_only=True)
        self._add("unbridge", "End the bridge of this channel to Minutebook", self._slash_unbridge, in_guilds_only=True)
        self._add("link", "Link yourself to your account of Minutebook", self._slash_link)
        self._add("unlink", "End the link to your account of Minutebook", self._slash_unlink)

    async def register(self) -> None:
        """Registers the slash commands with Discord; after the client's login. It ends when that is settled."""
        await register(self._tree)

    def concerns(self, message: discord.Message) -> bool:
        """Whether a message is for the bot, and not for the people of a channel."""
        if message.author.bot or message.webhook_id is not None:
            return False
        return _is_direct(message) or parse(message.content) is not None

    async def hear(self, message: discord.Message) -> None:
        """Does and answers what a message asks that `concerns` the bot, unless too many are being answered."""
        if self._heard >= MOST_HEARD:
            return
        self._heard += 1
        try:
            if _is_direct(message):
                await self._hear_directly(message)
            else:
                await self._hear_in_channel(message)
        except AWAY as error:
            _log.warning("somebody on Discord could not be answered", error=type(error).__name__)
        finally:
            self._heard -= 1

    # --- Slash commands

    def _add(self, name: str, description: str, callback: Callable[..., Any], *, in_guilds_only: bool = False) -> None:
        contexts = app_commands.AppCommandContext(guild=True, dm_channel=not in_guilds_only, private_channel=False)
        command: app_commands.Command[Any, ..., Any] = app_commands.Command(
            name=name, description=description, callback=callback, allowed_contexts=contexts
        )
        if in_guilds_only:
            command.default_permissions = discord.Permissions(manage_channels=True)
        self._tree.add_command(command)

    @app_commands.describe(channel="its name in Minutebook")
    async def _slash_bridge(self, interaction: discord.Interaction[discord.Client], channel: str) -> None:
        await self._answer(interaction, Bridge(channel))

    async def _slash_unbridge(self, interaction: discord.Interaction[discord.Client]) -> None:
        await self._answer(interaction, Unbridge())

    @app_commands.describe(code="that Minutebook made for you")
    async def _slash_link(self, interaction: discord.Interaction[discord.Client], code: str) -> None:
        await self._answer(interaction, Link(code))

    async def _slash_unlink(self, interaction: discord.Interaction[discord.Client]) -> None:
        await self._answer(interaction, Unlink())

    async def _answer(self, interaction: discord.Interaction[discord.Client], command: Command) -> None:
        # Discord waits for an answer for 3 seconds, and for one that is announced for 15 minutes.
        try:
            await interaction.response.defer(ephemeral=True)
            answer = await self._outcome(_who_invoked(interaction), command)
            await interaction.edit_original_response(content=answer)
        except AWAY as error:
            _log.warning("a slash command could not be answered", error=type(error).__name__)

    # --- Messages

    async def _hear_directly(self, message: discord.Message) -> None:
        user = _user(message.author)
        is_new = await self._note(user)
        command = Help() if message.content.strip().lower() == f"{PREFIX}help" else parse(message.content)
        if command is not None:
            await message.channel.send(await self._outcome(Asker(user, None, message.id), command))
        elif is_new:
            await message.channel.send(greeting(user))

    async def _hear_in_channel(self, message: discord.Message) -> None:
        command = parse(message.content)
        if command is None:
            return
        if isinstance(command, Link):
            await _take_back(message)
        answer = await self._outcome(_who_wrote(message), command)
        await message.channel.send(answer + CODE_WAS_PUBLIC if isinstance(command, Link) else answer)

    async def _note(self, user: DiscordUser) -> bool:
        """Records that somebody can be written to; whether that is new. It waits for the log, once for each of them."""
        if user.discord_user_id in self._being_noted:
            return False
        self._being_noted.add(user.discord_user_id)
        try:
            return await patiently(lambda: self._bridging.see_user(user, new_id()))
        finally:
            self._being_noted.discard(user.discord_user_id)

    # --- What is done

    async def _outcome(self, asker: Asker, command: Command) -> str:
        """Does what is asked for; what there is to say about it."""
        try:
            return await self._do(asker, command)
        except Refused as refused:
            return REFUSALS.get(refused.reason, "That cannot be done.")
        except Malformed as malformed:
            return f"That cannot be done: {malformed}."
        except LogUnavailable:
            return LOG_IS_AWAY
        except AWAY:
            raise
        except Exception:  # noqa: BLE001 - told to the log, and to who asked
            _log.exception("a command on Discord failed", command=type(command).__name__)
            return SOMETHING_WENT_WRONG

    async def _do(self, asker: Asker, command: Command) -> str:
        match command:
            case Help():
                return USAGE
            case Link(code):
                account = await self._bridging.link(asker.user, code, new_id())
                return f"You are `{account.username}` of Minutebook from now on. `/unlink` ends that."
            case Unlink():
                return await self._unlink(asker.user)
            case Bridge() | Unbridge():
                return await self._bridge_or_unbridge(asker, command)
            case _:
                assert_never(command)

    async def _unlink(self, user: DiscordUser) -> str:
        account = await self._bridging.unlink(user, new_id())
        if account is None:
            return "You are no account of Minutebook as it is."
        return f"You are not `{account.username}` of Minutebook any more."

    async def _bridge_or_unbridge(self, asker: Asker, command: Bridge | Unbridge) -> str:
        if asker.channel is None:
            return NO_CHANNEL
        if not asker.may_manage:
            return NEEDS_MANAGE_CHANNELS
        if isinstance(command, Unbridge):
            return await self._unbridge(asker.user.discord_user_id, asker.channel)
        if asker.bot_lacks:
            return f"I need more permissions in this channel first: {', '.join(asker.bot_lacks)}."
        return await self._bridge(asker.user.discord_user_id, asker.channel, command.channel.strip(), asker.moment)

    async def _bridge(self, user_id: int, here: discord.TextChannel, name: str, moment: int) -> str:
        there = await self._bridging.bridge(user_id, name, here.id, moment, new_id())
        await _announce(
            here,
            f"This channel is bridged to the channel `{there.name}` of Minutebook from now on: what is said here is "
            "said there too, under your name, and recorded for good; what is said there appears here.",
        )
        return f"Done: this channel is bridged to `{there.name}`."

    async def _unbridge(self, user_id: int, here: discord.TextChannel) -> str:
        there = await self._bridging.unbridge(user_id, here.id, new_id())
        await _announce(here, f"This channel is not bridged to the channel `{there.name}` of Minutebook any more.")
        return f"Done: this channel is not bridged to `{there.name}` any more."


def greeting(user: DiscordUser) -> str:
    """What the bot says to somebody who writes to it for the first time."""
    return (
        "Hello! I carry messages between Discord and Minutebook, a chat server that keeps its minutes. From now on "
        f"people there can write to you, as `{user.username}`, and it reaches you here. That you wrote to me is "
        "recorded there; what you wrote is not, and nobody reads it. Say `!help`, and I tell you what I understand."
    )


def _user(user: discord.User | discord.Member) -> DiscordUser:
    return DiscordUser(user.id, user.name)


def _is_direct(message: discord.Message) -> bool:
    return isinstance(message.channel, discord.DMChannel)


def _who_invoked(interaction: discord.Interaction[discord.Client]) -> Asker:
    channel = interaction.channel if isinstance(interaction.channel, discord.TextChannel) else None
    return Asker(
        _user(interaction.user),
        channel,
        interaction.id,
        may_manage=interaction.permissions.manage_channels,
        bot_lacks=_lacking(interaction.app_permissions),
    )


def _who_wrote(message: discord.Message) -> Asker:
    user, channel, author = _user(message.author), message.channel, message.author
    if not isinstance(channel, discord.TextChannel) or not isinstance(author, discord.Member):
        return Asker(user, None, message.id)
    may_manage = channel.permissions_for(author).manage_channels
    return Asker(user, channel, message.id, may_manage, _lacking(channel.permissions_for(channel.guild.me)))


def _lacking(permissions: discord.Permissions) -> tuple[str, ...]:
    """What a bridge needs of a channel and is not there, by the names that Discord's clients show."""
    needed = {
        "View Channel": permissions.view_channel,
        "Send Messages": permissions.send_messages,
        "Read Message History": permissions.read_message_history,
    }
    return tuple(name for name, is_there in needed.items() if not is_there)


async def _take_back(message: discord.Message) -> None:
    """Deletes what somebody should not have said in public, if the bot may."""
    try:
        await message.delete()
    except AWAY as error:
        _log.info("a message with a code stays in its channel", error=type(error).__name__)


async def _announce(channel: discord.TextChannel, text: str) -> None:
    """Says something in a channel. What it tells of is done, so it is no failure where that cannot be told."""
    try:
        await channel.send(text)
    except AWAY as error:
        _log.warning("a channel of Discord could not be told of its bridge", error=type(error).__name__)
