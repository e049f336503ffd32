"""The rules: pure functions from what is the case and what is wanted to events, or to a refusal.

Nothing here reads a clock, draws a number or asks a database: all that comes in as arguments.
"""

from __future__ import annotations

import math
from datetime import datetime

from chat.events import (
    AccountBanned,
    AccountRegistered,
    AccountSilenced,
    AccountVerified,
    BanRemoved,
    ChannelCreated,
    DeviceClaimed,
    DirectMessageSent,
    MemberAdded,
    MessageDeleted,
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
