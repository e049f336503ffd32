"""The read models once more, as a fold in plain Python over the events: what the SQL is held against.

It shares nothing with `projections` but the tables' names and columns, and takes its events as they stand in the log.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from eventstore.events import RecordedEvent

Tables = dict[str, list[tuple[Any, ...]]]


class Fact:
    """An event's data, and where and when it was recorded, and as what of its stream."""

    def __init__(self, event: RecordedEvent) -> None:
        self.stream = event.stream
        self.version = event.version
        self.position = event.position
        self.at = event.recorded_at
        self._data: dict[str, Any] = json.loads(event.data or b"{}")

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def get(self, key: str) -> Any:
        """As by its key, or None where the key is left out."""
        return self._data.get(key)

    def number(self, key: str) -> int | None:
        """A number that is text in the log."""
        return None if self[key] is None else int(self[key])

    @property
    def discord_user(self) -> str:
        """Whom the stream is about, of somebody on Discord."""
        return self.stream.removeprefix("discord-user-")


@dataclasses.dataclass
class _Delivery:
    stream: str
    sender_id: int
    message_id: int | None
    discord_channel_id: int | None
    discord_user_id: int | None
    text: str
    requested_at: datetime
    discord_message_ids: list[int] | None = None
    failed: str | None = None
    settled: int | None = None
    settled_at: datetime | None = None
    withdrawn: bool = False
    recipient_id: int | None = None


@dataclasses.dataclass
class _Copy:
    discord_channel_id: int
    origin_id: int
    message_id: int | None
    received: bool
    doomed: bool


class Fold:
    """What is the case after the events that were told to it, in order."""

    def __init__(self, events: Iterable[RecordedEvent] = ()) -> None:
        self.accounts: dict[int, tuple[str | None, str | None, str | None]] = {}
        self.tokens: dict[int, tuple[int, str | None]] = {}
        self.channels: dict[int, tuple[str, str]] = {}
        self.members: dict[tuple[int, int], int] = {}
        self.messages: dict[int, tuple[int, int, str, datetime, int | None]] = {}
        self.dms: dict[int, tuple[int, int, str, datetime]] = {}
        self.connections: dict[str, tuple[int, str, int, int]] = {}
        self.verifications: dict[int, tuple[bool]] = {}
        self.devices: dict[str, tuple[int]] = {}
        self.restrictions: dict[int, tuple[bool | None, datetime | None]] = {}
        self.deliveries: dict[int, _Delivery] = {}
        self.copies: dict[int, _Copy] = {}
        self.bridges: dict[int, tuple[int, int]] = {}
        self.watermarks: dict[int, tuple[int]] = {}
        self.discord_users: dict[str, tuple[int | None, str | None, int]] = {}
        self.discord_links: dict[str, tuple[int | None, int | None, int]] = {}
        self.deleted: set[int] = set()
        self.erased: set[int] = set()
        self.position = 0
        for event in events:
            self.tell(event)

    def tell(self, event: RecordedEvent) -> None:
        """Goes on by one event; fails if it is not the next one, or cannot be where it stands."""
        assert event.position == self.position + 1
        self.position = event.position
        if event.data is not None:
            _TELL[event.type](self, Fact(event))
        else:
            self._read_nothing(event)

    def tables(self) -> Tables:
        """The rows of all tables, in the order of their columns, sorted."""
        kept: dict[str, dict[Any, Any]] = {
            "accounts": self.accounts,
            "tokens": self.tokens,
            "channels": self.channels,
            "members": {key: (since,) for key, since in self.members.items()},
            "messages": self.messages,
            "dms": self.dms,
            "connections": self.connections,
            "verifications": self.verifications,
            "devices": self.devices,
            "restrictions": self.restrictions,
            "deliveries": {key: dataclasses.astuple(each) for key, each in self.deliveries.items()},
            "discord_copies": {key: dataclasses.astuple(each) for key, each in self.copies.items()},
            "bridges": self.bridges,
            "discord_watermarks": self.watermarks,
            "discord_users": self.discord_users,
            "discord_links": self.discord_links,
        }
        return {
            name: sorted((*(key if isinstance(key, tuple) else (key,)), *row) for key, row in rows.items())
            for name, rows in kept.items()
        }

    def _read_nothing(self, event: RecordedEvent) -> None:
        """An event that was erased: that there was an account is all that is known still."""
        self.erased.add(event.position)
        if event.type == "AccountRegistered":
            self.accounts[int(event.stream.removeprefix("account-"))] = (None, None, None)
        user_key = event.stream.removeprefix("discord-user-")
        if event.type == "DiscordUserSeen":
            self.discord_users[user_key] = (None, None, event.position)
        elif event.type in ("DiscordLinked", "DiscordUnlinked"):
            self.discord_links[user_key] = (None, None, event.position)

    def _erase(self, fact: Fact) -> None:
        assert (fact["account_id"] is None) != (fact["message_id"] is None)
        named = set(fact["positions"])
        # The log has it as it is now: what this event erased was read as empty.
        assert named <= self.erased
        for delivery_id, delivery in list(self.deliveries.items()):
            if {delivery_id, delivery.message_id} & named:
                del self.deliveries[delivery_id]
        for copy in self.copies.values():
            copy.doomed = copy.doomed or bool({copy.origin_id, copy.message_id} & named)
        if fact["account_id"] is not None:
            assert self.accounts[fact["account_id"]] == (None, None, None)
            self._restrict(fact, is_banned=True, silenced_until=fact.at)

    def _claimed(self, fact: Fact) -> None:
        assert fact["account_id"] not in self.accounts

    def _registered(self, fact: Fact) -> None:
        assert fact["account_id"] not in self.accounts
        assert fact["safe_name"] not in {safe for _, safe, _ in self.accounts.values()}
        self.accounts[fact["account_id"]] = (fact["username"], fact["safe_name"], fact["password_hash"])

    def _issued(self, fact: Fact) -> None:
        before, _ = self.tokens.get(fact["account_id"], (0, ""))
        assert fact["generation"] == before + 1
        self.tokens[fact["account_id"]] = (fact["generation"], fact["token_digest"])

    def _revoked(self, fact: Fact) -> None:
        before, _ = self.tokens.get(fact["account_id"], (0, ""))
        assert fact["generation"] == before + 1
        self.tokens[fact["account_id"]] = (fact["generation"], None)

    def _created(self, fact: Fact) -> None:
        assert fact["safe_name"] not in {safe for _, safe in self.channels.values()}
        self.channels[fact.position] = (fact["name"], fact["safe_name"])
        if fact["creator_id"] is not None:
            self.members[fact.position, fact["creator_id"]] = fact.position

    def _added(self, fact: Fact) -> None:
        assert (fact["channel_id"], fact["added_by"]) in self.members
        assert (fact["channel_id"], fact["account_id"]) not in self.members
        self.members[fact["channel_id"], fact["account_id"]] = fact.position

    def _sent(self, fact: Fact) -> None:
        self.messages[fact.position] = (fact["channel_id"], fact["sender_id"], fact["text"], fact.at, None)

    def _edited(self, fact: Fact) -> None:
        message_id = fact["message_id"]
        if message_id in self.messages:
            channel_id, sender_id, _, at, _ = self.messages[message_id]
            assert sender_id == fact["edited_by"]
            self.messages[message_id] = (channel_id, sender_id, fact["text"], at, fact.position)

    def _sent_directly(self, fact: Fact) -> None:
        self.dms[fact.position] = (fact["sender_id"], fact["recipient_id"], fact["text"], fact.at)

    def _deleted(self, fact: Fact) -> None:
        message_id = fact["message_id"]
        assert (message_id in self.messages) + (message_id in self.dms) + (message_id in self.erased) == 1
        self.messages.pop(message_id, None)
        self.dms.pop(message_id, None)
        self.deleted.add(message_id)
        for delivery in self.deliveries.values():
            delivery.withdrawn = delivery.withdrawn or delivery.message_id == message_id
        for copy in self.copies.values():
            copy.doomed = copy.doomed or copy.message_id == message_id

    def _opened(self, fact: Fact) -> None:
        connection_id = fact.stream.removeprefix("connection-")
        self.connections[connection_id] = (fact["account_id"], fact["node_id"], fact.position, fact.version)

    def _closed(self, fact: Fact) -> None:
        account_id, *_ = self.connections.pop(fact.stream.removeprefix("connection-"))
        assert account_id == fact["account_id"]

    def _verified(self, fact: Fact) -> None:
        assert fact["account_id"] not in self.verifications
        assert fact["is_multiaccount"] is (fact["device_digest"] in self.devices)
        self.verifications[fact["account_id"]] = (fact["is_multiaccount"],)

    def _claimed_device(self, fact: Fact) -> None:
        digest = fact.stream.removeprefix("device-")
        assert digest not in self.devices
        self.devices[digest] = (fact["account_id"],)

    def _silenced(self, fact: Fact) -> None:
        self._restrict(fact, silenced_until=fact.at + timedelta(seconds=fact["seconds"]))

    def _unsilenced(self, fact: Fact) -> None:
        self._restrict(fact, silenced_until=fact.at)

    def _banned(self, fact: Fact) -> None:
        self._restrict(fact, is_banned=True)

    def _unbanned(self, fact: Fact) -> None:
        self._restrict(fact, is_banned=False)

    def _restrict(self, fact: Fact, is_banned: bool | None = None, silenced_until: datetime | None = None) -> None:
        banned_before, until_before = self.restrictions.get(fact["account_id"], (None, None))
        banned = banned_before if is_banned is None else is_banned
        self.restrictions[fact["account_id"]] = (banned, silenced_until or until_before)

    def _asked(self, fact: Fact) -> None:
        message_id = fact.position - 1 if fact.get("of_message") else None
        assert (fact["discord_channel_id"] is None) != (fact["discord_user_id"] is None)
        self.deliveries[fact.position] = _Delivery(
            fact.stream,
            fact["sender_id"],
            message_id,
            fact.number("discord_channel_id"),
            fact.number("discord_user_id"),
            fact["text"],
            fact.at,
            recipient_id=fact.get("recipient_id"),
        )

    def _delivered(self, fact: Fact) -> None:
        delivery = self.deliveries.get(fact["delivery_id"])
        ids = [int(each) for each in fact["discord_message_ids"]]
        if delivery is not None:
            delivery.discord_message_ids, delivery.failed = ids, None
            delivery.settled, delivery.settled_at = fact.position, fact.at
        gone = delivery is None or delivery.withdrawn
        for copy_id in ids:
            channel_id = int(fact["discord_channel_id"])
            self.copies[copy_id] = _Copy(channel_id, fact["delivery_id"], fact["message_id"], False, gone)

    def _gave_up(self, fact: Fact) -> None:
        if fact["delivery_id"] in self.deliveries:
            delivery = self.deliveries[fact["delivery_id"]]
            delivery.discord_message_ids, delivery.failed = None, fact["reason"]
            delivery.settled, delivery.settled_at = fact.position, fact.at

    def _received(self, fact: Fact) -> None:
        message_id = fact.position - 1
        channel_id, copy_id = int(fact["discord_channel_id"]), int(fact["discord_message_id"])
        self.copies[copy_id] = _Copy(channel_id, message_id, message_id, True, message_id in self.deleted)
        self._read_on(channel_id, copy_id)

    def _read_on(self, discord_channel_id: int, message_id: int) -> None:
        [before] = self.watermarks.get(discord_channel_id, (0,))
        self.watermarks[discord_channel_id] = (max(before, message_id),)

    def _withdrawn(self, fact: Fact) -> None:
        for copy_id in fact["discord_message_ids"]:
            del self.copies[int(copy_id)]

    def _bridged(self, fact: Fact) -> None:
        assert fact["channel_id"] not in self.bridges
        discord_channel_id = int(fact["discord_channel_id"])
        self.bridges[fact["channel_id"]] = (discord_channel_id, fact.position)
        self._read_on(discord_channel_id, int(fact["after_message_id"]))

    def _unbridged(self, fact: Fact) -> None:
        assert self.bridges.pop(fact["channel_id"])[0] == int(fact["discord_channel_id"])

    def _seen(self, fact: Fact) -> None:
        self.discord_users[fact.discord_user] = (int(fact["discord_user_id"]), fact["username"], fact.position)

    def _linked(self, fact: Fact) -> None:
        self.discord_links[fact.discord_user] = (int(fact["discord_user_id"]), fact["account_id"], fact.position)

    def _unlinked(self, fact: Fact) -> None:
        self.discord_links[fact.discord_user] = (int(fact["discord_user_id"]), None, fact.position)

    def _nothing(self, fact: Fact) -> None:
        """Nothing that a read model shows."""


_TELL: dict[str, Callable[[Fold, Fact], None]] = {
    "UsernameClaimed": Fold._claimed,
    "AccountRegistered": Fold._registered,
    "TokenIssued": Fold._issued,
    "TokenRevoked": Fold._revoked,
    "ChannelCreated": Fold._created,
    "MemberAdded": Fold._added,
    "MessageSent": Fold._sent,
    "DirectMessageSent": Fold._sent_directly,
    "MessageDeleted": Fold._deleted,
    "ConnectionOpened": Fold._opened,
    "ConnectionClosed": Fold._closed,
    "AccountVerified": Fold._verified,
    "DeviceClaimed": Fold._claimed_device,
    "RestartRequested": Fold._nothing,
    "AccountSilenced": Fold._silenced,
    "SilenceRemoved": Fold._unsilenced,
    "AccountBanned": Fold._banned,
    "BanRemoved": Fold._unbanned,
    "AccountKicked": Fold._nothing,
    "AccountReported": Fold._nothing,
    "MessageEdited": Fold._edited,
    "DiscordUserSeen": Fold._seen,
    "DiscordLinked": Fold._linked,
    "DiscordUnlinked": Fold._unlinked,
    "LinkCodeUsed": Fold._nothing,
    "ChannelBridged": Fold._bridged,
    "ChannelUnbridged": Fold._unbridged,
    "DiscordMessageReceived": Fold._received,
    "DiscordMessageRequested": Fold._asked,
    "DiscordMessageDelivered": Fold._delivered,
    "DiscordMessageFailed": Fold._gave_up,
    "DiscordMessageWithdrawn": Fold._withdrawn,
    "Erased": Fold._erase,
}
