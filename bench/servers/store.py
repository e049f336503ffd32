"""What all peers do with Postgres: the statements, the store that runs them, and what is kept in memory.

In the peers' favour: accounts, channels and members are read once, at the start, into dictionaries, so that a token,
a channel's name, the right to it and a sender's name cost a look-up in memory. What is left for the database is one
statement a request: the INSERT, the list of channels, the last messages, for which the right index is taken whatever
the planner believes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

POOL = 10

INSERT = "INSERT INTO messages (channel_id, sender_id, text) VALUES ($1, $2, $3)"
CHANNELS_OF = (
    "SELECT c.name, c.channel_id FROM members m JOIN channels c USING (channel_id) "
    "WHERE m.account_id = $1 ORDER BY m.channel_id"
)
# With `channel_id = $1 ORDER BY message_id` Postgres may walk the primary key from its end, past the messages of
# all other channels. A range of one value, ordered by both columns, leaves it only the index that is made for this.
NEWEST = (
    "SELECT message_id, sender_id, text, sent_at FROM messages "
    "WHERE channel_id BETWEEN $1 AND $1 ORDER BY channel_id DESC, message_id DESC LIMIT $2"
)
ACCOUNTS = "SELECT token, account_id, username FROM accounts"
CHANNELS = "SELECT name, channel_id FROM channels"
MEMBERS = "SELECT channel_id, account_id FROM members"

Row = Sequence[Any]


class Store(Protocol):
    """A pool of connections, and the statements above on it, each committed on its own."""

    async def open(self) -> None:
        """Opens all connections."""

    async def close(self) -> None:
        """Closes them."""

    async def execute(self, statement: str, *parameters: object) -> None:
        """Runs a statement and waits for its commit."""

    async def fetch(self, statement: str, *parameters: object) -> Sequence[Row]:
        """The rows of a query."""


class Refused(Exception):
    """A request that is answered with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Known:
    """What is kept in memory."""

    accounts: dict[str, int]
    usernames: dict[int, str]
    channels: dict[str, int]
    members: set[tuple[int, int]]

    @classmethod
    async def read(cls, store: Store) -> Known:
        """Reads all of it."""
        accounts = await store.fetch(ACCOUNTS)
        return cls(
            accounts={token: account_id for token, account_id, _ in accounts},
            usernames={account_id: name for _, account_id, name in accounts},
            channels={name: channel_id for [name, channel_id] in await store.fetch(CHANNELS)},
            members={(channel_id, account_id) for channel_id, account_id in await store.fetch(MEMBERS)},
        )

    def account(self, token: str) -> int:
        """The account of a token."""
        account_id = self.accounts.get(token)
        if account_id is None:
            raise Refused(401, "Invalid token!")
        return account_id

    def channel(self, name: str, account_id: int) -> int:
        """The channel of a name, if the account is in it."""
        channel_id = self.channels.get(name)
        if channel_id is None:
            raise Refused(404, "Channel not found!")
        if (channel_id, account_id) not in self.members:
            raise Refused(401, "You are not in this channel!")
        return channel_id
