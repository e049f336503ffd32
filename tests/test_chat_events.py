"""The events' shapes, which stand in the log for ever: a change here breaks every log that was ever written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest

from chat import events
from chat.events import (
    AccountBanned,
    AccountKicked,
    AccountRegistered,
    AccountReported,
    AccountSilenced,
    AccountVerified,
    BanRemoved,
    ChannelBridged,
    ChannelCreated,
    ChannelUnbridged,
    ConnectionClosed,
    ConnectionOpened,
    DeviceClaimed,
    DirectMessageSent,
    DiscordLinked,
    DiscordMessageDelivered,
    DiscordMessageFailed,
    DiscordMessageReceived,
    DiscordMessageRequested,
    DiscordMessageWithdrawn,
    DiscordUnlinked,
    DiscordUserSeen,
    Erased,
    Event,
    LinkCodeUsed,
    MemberAdded,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    RestartRequested,
    SilenceRemoved,
    TokenIssued,
    TokenRevoked,
    UsernameClaimed,
)
from eventstore.errors import LogError
from eventstore.events import RecordedEvent

# An event, its wire name, its shape's version and its data as they stand in the log.
FROZEN: list[tuple[Event, str, int, str]] = [
    (UsernameClaimed(1000), "UsernameClaimed", 1, '{"account_id":1000}'),
    (
        AccountRegistered(1000, "Al Ice", "al_ice", "$2b$"),
        "AccountRegistered",
        1,
        '{"account_id":1000,"password_hash":"$2b$","safe_name":"al_ice","username":"Al Ice"}',
    ),
    (
        AccountRegistered(999, "FokaBot", "fokabot", None),
        "AccountRegistered",
        1,
        '{"account_id":999,"password_hash":null,"safe_name":"fokabot","username":"FokaBot"}',
    ),
    (TokenIssued(1000, 2, "ab12"), "TokenIssued", 1, '{"account_id":1000,"generation":2,"token_digest":"ab12"}'),
    (
        ChannelCreated("The Den", "the_den", 1000),
        "ChannelCreated",
        1,
        '{"creator_id":1000,"name":"The Den","safe_name":"the_den"}',
    ),
    (
        ChannelCreated("announce", "announce", None),
        "ChannelCreated",
        1,
        '{"creator_id":null,"name":"announce","safe_name":"announce"}',
    ),
    (MemberAdded(3, 1001, 1000), "MemberAdded", 1, '{"account_id":1001,"added_by":1000,"channel_id":3}'),
    (MessageSent(3, 1000, 'é "\\'), "MessageSent", 1, '{"channel_id":3,"sender_id":1000,"text":"é \\"\\\\"}'),
    (
        DirectMessageSent(1000, 1001, "hi"),
        "DirectMessageSent",
        1,
        '{"recipient_id":1001,"sender_id":1000,"text":"hi"}',
    ),
    (
        MessageSent(3, 1000, "hi", "c2VhbGVk"),
        "MessageSent",
        1,
        '{"channel_id":3,"sender_id":1000,"source":"c2VhbGVk","text":"hi"}',
    ),
    (
        DirectMessageSent(1000, 999, "!hi", "c2VhbGVk"),
        "DirectMessageSent",
        1,
        '{"recipient_id":999,"sender_id":1000,"source":"c2VhbGVk","text":"!hi"}',
    ),
    (MessageDeleted(7, 1000), "MessageDeleted", 1, '{"deleted_by":1000,"message_id":7}'),
    (
        MessageDeleted(7, 1000, "c2VhbGVk"),
        "MessageDeleted",
        1,
        '{"deleted_by":1000,"message_id":7,"source":"c2VhbGVk"}',
    ),
    (
        Erased(None, 7, (7, 9), "a court order", "root"),
        "Erased",
        1,
        '{"account_id":null,"erased_by":"root","message_id":7,"positions":[7,9],"reason":"a court order"}',
    ),
    (TokenRevoked(1000, 3), "TokenRevoked", 1, '{"account_id":1000,"generation":3}'),
    (
        AccountVerified(1000, True, "ab12"),
        "AccountVerified",
        1,
        '{"account_id":1000,"device_digest":"ab12","is_multiaccount":true}',
    ),
    (
        AccountVerified(1000, False, None),
        "AccountVerified",
        1,
        '{"account_id":1000,"device_digest":null,"is_multiaccount":false}',
    ),
    (DeviceClaimed(1000), "DeviceClaimed", 1, '{"account_id":1000}'),
    (ConnectionOpened(1000, "n1", 2), "ConnectionOpened", 1, '{"account_id":1000,"node_id":"n1","token_generation":2}'),
    (ConnectionClosed(1000, "gone"), "ConnectionClosed", 1, '{"account_id":1000,"reason":"gone"}'),
    (RestartRequested(5), "RestartRequested", 1, '{"reconnect_in":5}'),
    (
        AccountSilenced(1000, 60, "spam", 1001),
        "AccountSilenced",
        1,
        '{"account_id":1000,"reason":"spam","seconds":60,"silenced_by":1001}',
    ),
    (SilenceRemoved(1000, 1001), "SilenceRemoved", 1, '{"account_id":1000,"removed_by":1001}'),
    (AccountBanned(1000, "", 1001), "AccountBanned", 1, '{"account_id":1000,"banned_by":1001,"reason":""}'),
    (BanRemoved(1000, 1001), "BanRemoved", 1, '{"account_id":1000,"removed_by":1001}'),
    (AccountKicked(1000, "spam", 1001), "AccountKicked", 1, '{"account_id":1000,"kicked_by":1001,"reason":"spam"}'),
    (
        AccountReported(1000, "spam", 1002),
        "AccountReported",
        1,
        '{"account_id":1000,"reason":"spam","reporter_id":1002}',
    ),
    (MessageEdited(7, "hi", 1000), "MessageEdited", 1, '{"edited_by":1000,"message_id":7,"text":"hi"}'),
    (
        DiscordUserSeen("80351110224678912", "nelly"),
        "DiscordUserSeen",
        1,
        '{"discord_user_id":"80351110224678912","username":"nelly"}',
    ),
    (DiscordLinked("77", 1000), "DiscordLinked", 1, '{"account_id":1000,"discord_user_id":"77"}'),
    (DiscordUnlinked("77", 1000), "DiscordUnlinked", 1, '{"account_id":1000,"discord_user_id":"77"}'),
    (LinkCodeUsed(1000), "LinkCodeUsed", 1, '{"account_id":1000}'),
    (
        ChannelBridged(3, "5", "9", 1000),
        "ChannelBridged",
        1,
        '{"after_message_id":"9","bridged_by":1000,"channel_id":3,"discord_channel_id":"5"}',
    ),
    (
        ChannelUnbridged(3, "5", 1000),
        "ChannelUnbridged",
        1,
        '{"channel_id":3,"discord_channel_id":"5","unbridged_by":1000}',
    ),
    (
        DiscordMessageReceived("5", "9"),
        "DiscordMessageReceived",
        1,
        '{"discord_channel_id":"5","discord_message_id":"9"}',
    ),
    (
        DiscordMessageRequested(1000, "5", None, "hi"),
        "DiscordMessageRequested",
        1,
        '{"discord_channel_id":"5","discord_user_id":null,"sender_id":1000,"text":"hi"}',
    ),
    (
        DiscordMessageRequested(1000, None, "77", "hi", of_message=True, source="c2VhbGVk", recipient_id=1001),
        "DiscordMessageRequested",
        1,
        '{"discord_channel_id":null,"discord_user_id":"77","of_message":true,"recipient_id":1001,"sender_id":1000,'
        '"source":"c2VhbGVk","text":"hi"}',
    ),
    (
        DiscordMessageDelivered(8, 7, 1000, "5", ("9", "10")),
        "DiscordMessageDelivered",
        1,
        '{"delivery_id":8,"discord_channel_id":"5","discord_message_ids":["9","10"],"message_id":7,"sender_id":1000}',
    ),
    (
        DiscordMessageFailed(8, None, 1000, "gone"),
        "DiscordMessageFailed",
        1,
        '{"delivery_id":8,"message_id":null,"reason":"gone","sender_id":1000}',
    ),
    (
        DiscordMessageWithdrawn("5", ("9",)),
        "DiscordMessageWithdrawn",
        1,
        '{"discord_channel_id":"5","discord_message_ids":["9"]}',
    ),
]
IDS = [f"{name}-{number}" for number, (_, name, _, _) in enumerate(FROZEN)]


def recorded(name: str, data: dict[str, Any] | None, schema: int = 1) -> RecordedEvent:
    text = None if data is None else json.dumps(data).encode()
    metadata = json.dumps({"actor": None, "correlation_id": "c", "event_id": "e", "schema": schema}).encode()
    return RecordedEvent(7, "stream", 1, name, text, metadata, datetime.now(UTC))


@pytest.mark.parametrize(("event", "name", "schema", "data"), FROZEN, ids=IDS)
def test_an_event_is_written_in_the_frozen_form(event: Event, name: str, schema: int, data: str) -> None:
    form = event.recorded_form()

    assert (form.type, form.schema, form.data.decode()) == (name, schema, data)


@pytest.mark.parametrize(("event", "name", "schema", "data"), FROZEN, ids=IDS)
def test_the_frozen_form_is_read_back_as_the_event(event: Event, name: str, schema: int, data: str) -> None:
    assert events.decode(recorded(name, json.loads(data), schema)) == event


def test_every_type_of_event_is_in_the_frozen_table() -> None:
    assert set(events.TYPES) == {name for _, name, _, _ in FROZEN}
    assert {name: kind.__name__ for name, kind in events.TYPES.items()} == {name: name for name in events.TYPES}


def test_no_shape_is_without_a_way_from_the_one_before() -> None:
    assert set(events.UPCASTERS) == {
        (name, schema) for name, kind in events.TYPES.items() for schema in range(1, kind.SCHEMA)
    }


def test_events_cannot_be_changed() -> None:
    event: Any = MessageSent(3, 1000, "hello")

    with pytest.raises(AttributeError):
        event.text = "something else"


def test_an_unknown_type_is_an_error_that_names_it() -> None:
    with pytest.raises(LogError, match="event 7 is of the unknown type NeverHeardOf"):
        events.decode(recorded("NeverHeardOf", {}))


def test_an_erased_event_has_no_form() -> None:
    assert events.decode(recorded("MessageSent", None)) is None


def test_data_of_another_shape_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError):
        events.decode(recorded("MessageSent", {"channel_id": "three", "sender_id": 1000, "text": "hello"}))


class LaterMessageSent(Event, frozen=True, gc=False):
    """What `MessageSent` might be one day: with a language, and with the text under another name."""

    SCHEMA: ClassVar[int] = 3

    channel_id: int
    sender_id: int
    body: str
    language: str


def with_a_language(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "language": "unknown"}


def with_a_body(old: dict[str, Any]) -> dict[str, Any]:
    return {"body": old["text"], **{key: value for key, value in old.items() if key != "text"}}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version of Minutebook, in which messages have their third shape."""
    monkeypatch.setitem(events.TYPES, "MessageSent", LaterMessageSent)
    monkeypatch.setitem(events.UPCASTERS, ("MessageSent", 1), with_a_language)
    monkeypatch.setitem(events.UPCASTERS, ("MessageSent", 2), with_a_body)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    ("schema", "data", "language"),
    [
        (1, {"channel_id": 3, "sender_id": 1000, "text": "hello"}, "unknown"),
        (2, {"channel_id": 3, "sender_id": 1000, "text": "hello", "language": "en"}, "en"),
        (3, {"channel_id": 3, "sender_id": 1000, "body": "hello", "language": "fr"}, "fr"),
    ],
)
def test_an_old_shape_is_read_as_today_s_by_way_of_those_between(
    schema: int, data: dict[str, Any], language: str
) -> None:
    assert events.decode(recorded("MessageSent", data, schema)) == LaterMessageSent(3, 1000, "hello", language)


@pytest.mark.usefixtures("later")
def test_an_event_that_says_nothing_of_its_shape_has_the_first_one() -> None:
    data = json.dumps({"channel_id": 3, "sender_id": 1000, "text": "hello"}).encode()
    event = RecordedEvent(7, "stream", 1, "MessageSent", data, b"{}", datetime.now(UTC))

    assert events.decode(event) == LaterMessageSent(3, 1000, "hello", "unknown")
