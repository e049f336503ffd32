"""Names of people and channels: when two are the same, and which stream of the log stands for one.

The stream of a name is called by a keyed digest of it, so that it can be claimed once and tells nobody the name. The
same goes for the devices that people come from.
"""

from __future__ import annotations

import hmac
import unicodedata
from hashlib import sha256

BOT_NAME = "FokaBot"
BOT_ID = 999
FIRST_PERSON_ID = 1000
ANNOUNCE = "announce"

CHANNEL_NAME_LENGTH = 64

# What stands for the name of an account that was erased, around its id: longer than a username may be.
ERASED_NAME = ("(erased account ", ")")


def safe_name(name: str) -> str:
    """The form by which names are compared (contract, "One world behind both")."""
    return name.lower().strip().replace(" ", "_")


def channel_name(name: str) -> str:
    """A channel's name as it is kept: Bancho's `#den` is V3's `den`."""
    return name.removeprefix("#")


def has_control_characters(name: str) -> bool:
    """Whether a name holds control characters or line breaks."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name)


# How the streams of people on Discord begin.
DISCORD_USER_STREAM = "discord-user-"


class DeviceDigests:
    """Digests of devices, by a key that must stay the same for the life of the log."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"minutebook devices", sha256)

    def digest(self, device: str) -> str:
        """What is kept of what a client calls its device: 32 hex digits, which tell nobody what it was."""
        return hmac.digest(self._key, device.encode("utf-8", "surrogatepass"), sha256)[:16].hex()


class NameStreams:
    """Calls the streams that stand for names, by a key that must stay the same for the life of the log."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"minutebook names", sha256)

    def account(self, safe: str) -> str:
        """The stream whose first event claims a username."""
        return f"username-{self._digest('username', safe)}"

    def channel(self, safe: str) -> str:
        """The stream whose first event makes the channel of this name."""
        return f"channel-{self._digest('channel', safe)}"

    def discord_user(self, discord_user_id: int) -> str:
        """The stream of somebody on Discord."""
        return f"{DISCORD_USER_STREAM}{self._digest('discord user', str(discord_user_id))}"

    def link_code(self, code: str) -> str:
        """The stream whose first event uses up a code by which an account is linked."""
        return f"link-code-{self._digest('link code', code)}"

    def _digest(self, kind: str, safe: str) -> str:
        return hmac.digest(self._key, f"{kind}:{safe}".encode(), sha256)[:16].hex()
