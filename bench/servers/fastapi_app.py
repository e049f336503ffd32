"""The three endpoints on FastAPI, as its documentation writes them, over whatever store is given.

Answers go through the declared models, which is FastAPI's fastest way to JSON.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from bench.servers.store import CHANNELS_OF, INSERT, NEWEST, Known, Refused, Store


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


def make_app(store: Store) -> FastAPI:
    """The app on this store."""
    known: Known

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal known
        await store.open()
        known = await Known.read(store)
        yield
        await store.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> JSONResponse:
        return JSONResponse({"message": refused.message}, refused.status)

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
