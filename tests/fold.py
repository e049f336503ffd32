"""The read models once more, as a fold in plain Python over the events: what the SQL is held against.

It shares nothing with `projections` but the tables' names and columns, and takes its events as they stand in the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from eventstore.events import RecordedEvent

Tables = dict[str, list[tuple[Any, ...]]]


class Fact:
    """An event's data, and where and when it was recorded."""

    def __init__(self, event: RecordedEvent) -> None:
        self.position = event.position
        self.at = event.recorded_at
        self._data: dict[str, Any] = json.loads(event.data or b"{}")

    def __getitem__(self, key: str) -> Any:
        return self._data[key]


class Fold:
    """What is the case after the events that were told to it, in order."""

    def __init__(self, events: Iterable[RecordedEvent] = ()) -> None:
        self.accounts: dict[int, tuple[str, str, str | None]] = {}
        self.tokens: dict[int, tuple[int, str]] = {}
        self.channels: dict[int, tuple[str, str]] = {}
        self.members: dict[tuple[int, int], int] = {}
        self.messages: dict[int, tuple[int, int, str, datetime]] = {}
        self.dms: dict[int, tuple[int, int, str, datetime]] = {}
        self.position = 0
        for event in events:
            self.tell(event)

    def tell(self, event: RecordedEvent) -> None:
        """Goes on by one event; fails if it is not the next one, or cannot be where it stands."""
        assert event.position == self.position + 1
        self.position = event.position
        if event.data is not None:
            _TELL[event.type](self, Fact(event))

    def tables(self) -> Tables:
        """The rows of all tables, in the order of their columns, sorted."""
        kept: dict[str, dict[Any, Any]] = {
            "accounts": self.accounts,
            "tokens": self.tokens,
            "channels": self.channels,
            "members": {key: (since,) for key, since in self.members.items()},
            "messages": self.messages,
            "dms": self.dms,
        }
        return {
            name: sorted((*(key if isinstance(key, tuple) else (key,)), *row) for key, row in rows.items())
            for name, rows in kept.items()
        }

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
        assert (message_id in self.messages) != (message_id in self.dms)
        self.messages.pop(message_id, None)
        self.dms.pop(message_id, None)


_TELL: dict[str, Callable[[Fold, Fact], None]] = {
    "UsernameClaimed": Fold._claimed,
    "AccountRegistered": Fold._registered,
    "TokenIssued": Fold._issued,
    "ChannelCreated": Fold._created,
    "MemberAdded": Fold._added,
    "MessageSent": Fold._sent,
    "DirectMessageSent": Fold._sent_directly,
    "MessageDeleted": Fold._deleted,
}
