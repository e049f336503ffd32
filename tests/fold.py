"""The read models once more, as a fold in plain Python over the events: what the SQL is held against.

It shares nothing with `projections` but the tables' names and columns, and takes its events as they stand in the log.
"""

from __future__ import annotations

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


class Fold:
    """What is the case after the events that were told to it, in order."""

    def __init__(self, events: Iterable[RecordedEvent] = ()) -> None:
        self.accounts: dict[int, tuple[str | None, str | None, str | None]] = {}
        self.tokens: dict[int, tuple[int, str | None]] = {}
        self.channels: dict[int, tuple[str, str]] = {}
        self.members: dict[tuple[int, int], int] = {}
        self.messages: dict[int, tuple[int, int, str, datetime]] = {}
        self.dms: dict[int, tuple[int, int, str, datetime]] = {}
        self.connections: dict[str, tuple[int, str, int, int]] = {}
        self.verifications: dict[int, tuple[bool]] = {}
        self.devices: dict[str, tuple[int]] = {}
        self.restrictions: dict[int, tuple[bool | None, datetime | None]] = {}
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

    def _erase(self, fact: Fact) -> None:
        assert (fact["account_id"] is None) != (fact["message_id"] is None)
        # The log has it as it is now: what this event erased was read as empty.
        assert set(fact["positions"]) <= self.erased
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
        self.messages[fact.position] = (fact["channel_id"], fact["sender_id"], fact["text"], fact.at)

    def _sent_directly(self, fact: Fact) -> None:
        self.dms[fact.position] = (fact["sender_id"], fact["recipient_id"], fact["text"], fact.at)

    def _deleted(self, fact: Fact) -> None:
        message_id = fact["message_id"]
        assert (message_id in self.messages) + (message_id in self.dms) + (message_id in self.erased) == 1
        self.messages.pop(message_id, None)
        self.dms.pop(message_id, None)

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
    "Erased": Fold._erase,
}
