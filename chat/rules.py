"""The rules: pure functions from what is the case and what is wanted to events, or to a refusal.

Nothing here reads a clock, draws a number or asks a database: all that comes in as arguments.
"""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import UTC, datetime, timedelta

from chat.events import (
    AccountBanned,
    AccountRegistered,
    AccountSilenced,
    AccountVerified,
    BanRemoved,
    ChannelBridged,
    ChannelCreated,
    ChannelUnbridged,
    DeviceClaimed,
    DirectMessageSent,
    DiscordMessageReceived,
    DiscordMessageRequested,
    DiscordUserSeen,
    MemberAdded,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    SilenceRemoved,
    TokenIssued,
    TokenRevoked,
    UsernameClaimed,
)
from chat.names import ANNOUNCE, CHANNEL_NAME_LENGTH, has_control_characters, safe_name
from chat.refusals import Malformed, Reason, Refused

TEXT_LENGTH = 4000
DEVICE_LENGTH = 256
REASON_LENGTH = 500
LONGEST_SILENCE = 365 * 24 * 60 * 60
DISCORD_NAME_LENGTH = 64

# Discord's ids count the milliseconds since then, above 22 bits for what came in the same one.
_DISCORD_EPOCH = datetime(2015, 1, 1, tzinfo=UTC)
_DISCORD_ID_SHIFT = 22
# What the log cannot hold: NUL, and halves of characters.
_UNRECORDABLE = re.compile("[\0\ud800-\udfff]")
# Control characters of all kinds, among them those that turn the direction of what stands behind them; halves.
_NOT_IN_NAMES = ("Cc", "Zl", "Zp", "Cs")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# How a text begins that somebody says through the bot.
_SAID_BY = re.compile(r"\*\*[^*]*\*\*: ")


def check_password(password: str) -> None:
    """Refuses a password that is not 8 to 20 characters with a number, a capital, a special symbol, no white space."""
    good = (
        8 <= len(password) <= 20
        and any(character.isdigit() for character in password)
        and any(character.isupper() for character in password)
        and any(_is_special(character) for character in password)
        and not any(character.isspace() for character in password)
    )
    if not good:
        raise Refused(Reason.WEAK_PASSWORD)


def _is_special(character: str) -> bool:
    return not (character.isalpha() or character.isdigit() or character.isspace())


def check_username(username: str) -> None:
    """Refuses a username that is not 3 to 20 characters long, white space around it not counted as such."""
    if not (len(username) <= 20 and len(username.strip()) >= 3):
        raise Refused(Reason.BAD_USERNAME)


def check_new_username(username: str) -> None:
    """As `check_username`, and what only a name to be shown must keep: no control characters."""
    check_username(username)
    if has_control_characters(username):
        raise Malformed("username", "must not hold control characters")


def check_text(field: str, text: str) -> None:
    """Refuses a message's text that is not 1 to 4,000 characters long."""
    if not 1 <= len(text) <= TEXT_LENGTH:
        raise Malformed(field, f"must be 1 to {TEXT_LENGTH:,} characters long")


def check_text_for_discord(field: str, text: str) -> None:
    """As `check_text`, and refuses white space alone, which Discord takes for nothing."""
    check_text(field, text)
    if not text.strip():
        raise Malformed(field, "must hold more than white space")


def check_channel_name(name: str) -> None:
    """Refuses a name (without its leading `#`) that no channel may have."""
    if not (len(name) <= CHANNEL_NAME_LENGTH and safe_name(name)):
        raise Malformed("name", f"must be 1 to {CHANNEL_NAME_LENGTH} characters long")
    if "#" in name:
        raise Malformed("name", "must not hold a #")
    if has_control_characters(name):
        raise Malformed("name", "must not hold control characters")


def check_device(device: str) -> None:
    """Refuses what a client calls its device if it is longer than 256 characters."""
    if len(device) > DEVICE_LENGTH:
        raise Malformed("device", f"must be at most {DEVICE_LENGTH} characters long")


def check_reason(reason: str, field: str = "reason") -> None:
    """Refuses the reason for a moderation if it is longer than 500 characters; it may be empty."""
    if len(reason) > REASON_LENGTH:
        raise Malformed(field, f"must be at most {REASON_LENGTH} characters long")


def check_silence(seconds: int) -> None:
    """Refuses a silence that is not 1 second to 365 days long."""
    if not 1 <= seconds <= LONGEST_SILENCE:
        raise Malformed("seconds", f"must be 1 to {LONGEST_SILENCE:,}")


def register(
    account_id: int, username: str, password_hash: str | None, *, taken: bool
) -> tuple[UsernameClaimed, AccountRegistered]:
    """Makes an account, unless somebody has its name."""
    if taken:
        raise Refused(Reason.USERNAME_TAKEN)
    return UsernameClaimed(account_id), AccountRegistered(account_id, username, safe_name(username), password_hash)


def issue_token(account_id: int, generation: int, token_digest: str) -> TokenIssued:
    """Gives an account its token of this generation."""
    return TokenIssued(account_id, generation, token_digest)


def revoke_token(account_id: int, generation: int) -> TokenRevoked:
    """Takes an account's token away; `generation` is the next one that a token would have had."""
    return TokenRevoked(account_id, generation)


def make_channel(name: str, creator_id: int | None, *, taken: bool) -> ChannelCreated:
    """Makes a channel, unless one of its name exists."""
    if taken:
        raise Refused(Reason.CHANNEL_EXISTS)
    return ChannelCreated(name, safe_name(name), creator_id)


def add_member(
    channel_id: int, account_id: int, added_by: int, *, adder_is_member: bool, is_member: bool
) -> MemberAdded | None:
    """Lets a member bring somebody in; nothing happens to somebody who is in already."""
    if not adder_is_member:
        raise Refused(Reason.NOT_A_MEMBER)
    return None if is_member else MemberAdded(channel_id, account_id, added_by)


def may_read(channel: str, *, is_member: bool) -> bool:
    """Whether somebody may read a channel: its members may, and the announcements are for everyone."""
    return is_member or channel == ANNOUNCE


def send_message(
    channel_id: int, sender_id: int, text: str, *, may_write: bool, source: str | None = None
) -> MessageSent:
    """Sends a text to a channel that its sender may write to; `source`, as everywhere, is a sealed address."""
    if not may_write:
        raise Refused(Reason.NOT_A_MEMBER)
    return MessageSent(channel_id, sender_id, text, source)


def send_direct_message(
    sender_id: int, recipient_id: int, text: str, *, source: str | None = None
) -> DirectMessageSent:
    """Sends a text from one account to another, or to itself."""
    return DirectMessageSent(sender_id, recipient_id, text, source)


def delete_message(message_id: int, sender_id: int, deleted_by: int, *, source: str | None = None) -> MessageDeleted:
    """Lets nobody but its sender delete a message."""
    if sender_id != deleted_by:
        raise Refused(Reason.NOT_YOUR_MESSAGE)
    return MessageDeleted(message_id, deleted_by, source)


def verify(
    account_id: int, device_digest: str | None, *, verified_by_device: int | None
) -> tuple[AccountVerified, DeviceClaimed | None]:
    """Verifies an account at its first connection; one from a device that has verified another is flagged.

    `verified_by_device` is the account that the device verified before, if it did.
    """
    verified = AccountVerified(account_id, verified_by_device is not None, device_digest)
    is_first = device_digest is not None and verified_by_device is None
    return verified, DeviceClaimed(account_id) if is_first else None


def silence_left(silenced_until: datetime | None, now: datetime) -> int:
    """For how many whole seconds somebody is silenced still, 0 when no longer."""
    return 0 if silenced_until is None else max(0, math.ceil((silenced_until - now).total_seconds()))


def check_may_speak(*, is_banned: bool, silenced_for: int) -> None:
    """Refuses every text of somebody who is banned or silenced."""
    if is_banned:
        raise Refused(Reason.BANNED)
    if silenced_for:
        raise Refused(Reason.SILENCED, seconds=silenced_for)


def silence(account_id: int, seconds: int, reason: str, silenced_by: int) -> AccountSilenced:
    """Silences an account; a silence that lasts still ends when the new one does."""
    return AccountSilenced(account_id, seconds, reason, silenced_by)


def remove_silence(account_id: int, removed_by: int, *, silenced_for: int) -> SilenceRemoved:
    """Lets somebody speak again who is silenced."""
    if not silenced_for:
        raise Refused(Reason.NOTHING_TO_UNDO)
    return SilenceRemoved(account_id, removed_by)


def ban(account_id: int, reason: str, banned_by: int, *, is_operator: bool, is_banned: bool) -> AccountBanned | None:
    """Bans somebody who is no operator; nothing happens to one who is banned already."""
    if is_operator:
        raise Refused(Reason.NOT_FOR_AN_OPERATOR)
    return None if is_banned else AccountBanned(account_id, reason, banned_by)


def remove_ban(account_id: int, removed_by: int, *, is_banned: bool) -> BanRemoved:
    """Lets somebody back in who is banned."""
    if not is_banned:
        raise Refused(Reason.NOTHING_TO_UNDO)
    return BanRemoved(account_id, removed_by)


def request_delivery(
    sender_id: int,
    text: str,
    *,
    discord_channel_id: int | None = None,
    discord_user_id: int | None = None,
    recipient_id: int | None = None,
    of_message: bool = False,
    source: str | None = None,
) -> DiscordMessageRequested:
    """Asks for a text to be delivered to a channel of Discord, or to somebody there, called by an account or not."""
    channel = None if discord_channel_id is None else str(discord_channel_id)
    user = None if discord_user_id is None else str(discord_user_id)
    return DiscordMessageRequested(sender_id, channel, user, text, of_message, source, recipient_id)


def see_discord_user(discord_user_id: int, username: str, *, known_as: str | None) -> DiscordUserSeen | None:
    """Notes somebody on Discord; nothing happens if they are known by this name already."""
    return None if username == known_as else DiscordUserSeen(str(discord_user_id), username)


def bridge(
    channel_id: int,
    discord_channel_id: int,
    after_message_id: int,
    bridged_by: int,
    *,
    may_bridge: bool,
    bridged_to: int | None,
    bridged_from: int | None,
) -> ChannelBridged | None:
    """Bridges a channel to one of Discord, of which neither may be bridged to another; nothing happens if they are.

    `bridged_to` is the channel of Discord that the channel is bridged to, `bridged_from` the channel that the one of
    Discord is bridged to.
    """
    if not may_bridge:
        raise Refused(Reason.NOT_A_MEMBER)
    if (bridged_to, bridged_from) == (discord_channel_id, channel_id):
        return None
    if bridged_to is not None or bridged_from is not None:
        raise Refused(Reason.ALREADY_BRIDGED)
    return ChannelBridged(channel_id, str(discord_channel_id), str(after_message_id), bridged_by)


def unbridge(channel_id: int, discord_channel_id: int, unbridged_by: int, *, may_bridge: bool) -> ChannelUnbridged:
    """Ends a bridge."""
    if not may_bridge:
        raise Refused(Reason.NOT_A_MEMBER)
    return ChannelUnbridged(channel_id, str(discord_channel_id), unbridged_by)


def receive_message(
    channel_id: int, sender_id: int, text: str, *, discord_channel_id: int, discord_message_id: int
) -> tuple[MessageSent, DiscordMessageReceived]:
    """Takes in what was said in a bridged channel of Discord."""
    received = DiscordMessageReceived(str(discord_channel_id), str(discord_message_id))
    return MessageSent(channel_id, sender_id, text), received


def edit_message(message_id: int, edited_by: int, text: str, *, standing: str) -> MessageEdited | None:
    """Lets a message say something else; nothing happens if it says that already."""
    return None if text == standing else MessageEdited(message_id, text, edited_by)


def said_at(discord_message_id: int) -> datetime:
    """When a message was said on Discord, which its id tells (Discord's reference, "Snowflakes")."""
    return _DISCORD_EPOCH + timedelta(milliseconds=discord_message_id >> _DISCORD_ID_SHIFT)


def discord_name(*names: str) -> str:
    """The first of these names from Discord of which something is left in one line of at most 64 characters.

    Stars go, so that a name cannot end the bold type in which it is shown.
    """
    lines = (" ".join("".join(map(_in_names, name)).split())[:DISCORD_NAME_LENGTH].rstrip() for name in names)
    return next(filter(None, lines), "somebody")


def _in_names(character: str) -> str:
    if character == "*" or character in _TURNING:
        return ""
    return " " if unicodedata.category(character) in _NOT_IN_NAMES else character


def text_from_discord(beginning: str, text: str, link: str) -> str:
    """A text from Discord as it is recorded: behind its beginning, without what the log cannot hold, cut if too long.

    `beginning` is a `said_by`, or empty. What is cut ends with the link to the message there.
    """
    whole = beginning + _UNRECORDABLE.sub("\ufffd", text)
    if len(whole) <= TEXT_LENGTH:
        return whole
    end = f"… {link}"
    return whole[: TEXT_LENGTH - len(end)] + end


def said_by(author: str) -> str:
    """How a text begins that somebody of this `discord_name` says through the bot."""
    return f"**{author}**: "


def beginning_of(text: str) -> str:
    """The `said_by` with which a text begins."""
    found = _SAID_BY.match(text)
    return found[0] if found else ""
