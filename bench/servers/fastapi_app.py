"""The three endpoints on FastAPI, as its documentation writes them, over whatever store is given.

In the peers' favour: accounts, channels and members are read once, at the start, into dictionaries, so that a token,
a channel's name, the right to it and a sender's name cost a look-up in memory. What is left for the database is one
statement a request: the INSERT, the list of channels, the last messages, for which the right index is taken whatever
the planner believes. Answers go through the declared models, which is FastAPI's fastest way to JSON.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

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
    """A pool of 10 connections, and the statements above on it, each committed on its own."""

    async def open(self) -> None:
        """Opens all connections."""

    async def close(self) -> None:
        """Closes them."""

    async def execute(self, statement: str, *parameters: object) -> None:
        """Runs a statement and waits for its commit."""

    async def fetch(self, statement: str, *parameters: object) -> Sequence[Row]:
        """The rows of a query."""


class SendMessage(BaseModel):
    token: str
    message: str = Field(min_length=1, max_length=4000)
    channel: str


class GetChannels(BaseModel):
    token: str


class ReadMessages(BaseModel):
    token: str
    name: str
    count: int = Field(ge=1, le=1000)


class Done(BaseModel):
    message: str


class Channel(BaseModel):
    channel_name: str
    channel_id: int


class Channels(BaseModel):
    channels: list[Channel]


class Message(BaseModel):
    message_id: int
    sender: str
    message: str
    channel: str
    timestamp: datetime


class Messages(BaseModel):
    messages: list[Message]


@dataclass(frozen=True)
class _Known:
    """What is kept in memory."""

    accounts: dict[str, int]
    usernames: dict[int, str]
    channels: dict[str, int]
    members: set[tuple[int, int]]

    @classmethod
    async def read(cls, store: Store) -> _Known:
        accounts = await store.fetch(ACCOUNTS)
        return cls(
            accounts={token: account_id for token, account_id, _ in accounts},
            usernames={account_id: name for _, account_id, name in accounts},
            channels={name: channel_id for [name, channel_id] in await store.fetch(CHANNELS)},
            members={(channel_id, account_id) for channel_id, account_id in await store.fetch(MEMBERS)},
        )

    def account(self, token: str) -> int:
        account_id = self.accounts.get(token)
        if account_id is None:
            raise HTTPException(401, "Invalid token!")
        return account_id

    def channel(self, name: str, account_id: int) -> int:
        channel_id = self.channels.get(name)
        if channel_id is None:
            raise HTTPException(404, "Channel not found!")
        if (channel_id, account_id) not in self.members:
            raise HTTPException(401, "You are not in this channel!")
        return channel_id


def make_app(store: Store) -> FastAPI:
    """The app on this store."""
    known: _Known

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal known
        await store.open()
        known = await _Known.read(store)
        yield
        await store.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.post("/api/v3/sendmessage/")
    async def send_message(body: SendMessage) -> Done:
        account_id = known.account(body.token)
        await store.execute(INSERT, known.channel(body.channel, account_id), account_id, body.message)
        return Done(message="Message sent!")

    @app.post("/api/v3/getchannels/", response_model=Channels)
    async def get_channels(body: GetChannels) -> dict[str, object]:
        rows = await store.fetch(CHANNELS_OF, known.account(body.token))
        return {"channels": [{"channel_name": name, "channel_id": channel_id} for name, channel_id in rows]}

    @app.post("/api/v3/readmessagesfromchannel/", response_model=Messages)
    async def read_messages(body: ReadMessages) -> dict[str, object]:
        channel_id = known.channel(body.name, known.account(body.token))
        rows = await store.fetch(NEWEST, channel_id, body.count)
        return {
            "messages": [
                {
                    "message_id": message_id,
                    "sender": known.usernames[sender_id],
                    "message": text,
                    "channel": body.name,
                    "timestamp": sent_at,
                }
                for message_id, sender_id, text, sent_at in reversed(rows)
            ]
        }

    return app
