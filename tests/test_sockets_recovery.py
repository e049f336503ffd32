"""Recovery from the log, packet by packet: a client that was away gets what it missed, or is told why not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from tests.listeners import (
    Chat,
    Ended,
    Event,
    Listener,
    Refused,
    eventually,
    message_texts,
    own_chat,
    own_server,
    ready,
)
from tests.servers import Server
from tests.v3client import PASSWORD, Person, own_loop

TOKEN_ENDED = "the token has ended"


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(cluster, tmp_path_factory.mktemp("server"))


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


async def recoverable(chat: Chat, person: Person) -> tuple[Listener, str]:
    """A registered connection that can be recovered, and the offset of its `ready`."""
    listener = await chat.connected(recovery=True, token=person.token)
    name, words, offset = await listener.event()
    assert (name, words) == ("ready", ready(person))
    return listener, offset


async def recovered(chat: Chat, pid: str, offset: str | None = None, **auth: object) -> Listener:
    """A connection that was recovered, as the JavaScript client sees that: its pid is what it was."""
    listener = await coming_back(chat, pid, offset, **auth)
    assert listener.reply["pid"] == pid, listener.early
    return listener


async def coming_back(chat: Chat, pid: object, offset: object = None, **auth: object) -> Listener:
    """A connection that asks for recovery."""
    return await chat.connected(recovery=True, pid=pid, **({} if offset is None else {"offset": offset}), **auth)


def offsets(events: list[Event]) -> list[int]:
    return [int(event[-1]) for event in events]


# --- Who asks for it -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_only_who_asks_gets_a_pid_and_offsets(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(bob, ann)
    plain, asking = await chat.connected(), await chat.connected(recovery=True)
    await plain.emit("api_v3_connect", {})
    await asking.emit("api_v3_connect", {})
    assert [await plain.registers(ann), await plain.event()] == [
        ["error", {"message": "Invalid token!"}],
        ["ready", ready(ann)],
    ]
    asked = [await asking.registers(ann), await asking.event()]

    message_id = await bob.sends(channel, "to the channel")
    dm_id = await bob.writes_to(ann, "to Ann")

    without, with_offsets = await plain.events(2), asked + await asking.events(2)
    assert plain.reply.keys() == {"sid"}
    assert asking.reply.keys() == {"sid", "pid"}
    assert [event[0] for event in with_offsets] == ["error", "ready", "new_message", "new_dm"]
    assert all(isinstance(event[-1], str) for event in with_offsets)
    assert offsets(with_offsets) == sorted(offsets(with_offsets))
    assert offsets(with_offsets[2:]) == [message_id, dm_id]
    assert [event[:-1] for event in with_offsets[2:]] == without


@pytest.mark.parametrize("asked", [None, False, "yes", 1, "true"])
@pytest.mark.gen_test
async def test_recovery_is_asked_for_by_true_alone(chat: Chat, asked: object) -> None:
    listener = await chat.connected(recovery=asked)

    assert listener.reply.keys() == {"sid"}


# --- What was missed -------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_what_was_missed_comes_before_the_reply_and_then_it_goes_on(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    listener, _ = await recoverable(chat, bob)
    await ann.sends(channel, "seen")
    *_, offset = await listener.event()

    listener.drop()
    await ann.sends(channel, "missed in the channel")
    await ann.writes_to(bob, "missed for Bob")
    again = await recovered(chat, listener.pid, offset)

    assert message_texts(again.early) == ["missed in the channel", "missed for Bob"]
    missed = await again.events(2)
    await ann.sends(channel, "live")
    await ann.writes_to(bob, "live for Bob")
    live = await again.events(2)
    assert message_texts(live) == ["live", "live for Bob"]
    assert [int(offset), *offsets(missed + live)] == sorted({int(offset), *offsets(missed + live)})
    body, status = await again.call("send_message", {"channel": channel, "message": "registered still"})
    assert (body, status) == ({"message": "Message sent!"}, 200)


@pytest.mark.gen_test
async def test_a_connection_can_be_recovered_again_and_again(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener, offset = await recoverable(chat, bob)
    pid = listener.pid

    for number in range(5):
        listener.drop()
        await ann.writes_to(bob, f"missed {number}")
        listener = await recovered(chat, pid, offset, token=bob.token if number % 2 else None)
        *event, offset = await listener.event()
        assert message_texts([event]) == [f"missed {number}"]
        assert listener.early == []


@pytest.mark.gen_test
async def test_thousands_of_messages_of_all_kinds_come_in_order(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channels = [await chat.channel_of(ann, bob) for _ in range(3)]
    listener, offset = await recoverable(chat, bob)
    witness = await chat.listens(bob, recovery=True)
    listener.drop()

    # Alone, a page of the one kind reaches further than one of the other.
    async def talk(number: int) -> None:
        sender = await chat.listens(ann)
        for count in range(150 if number < 6 else 60):
            what = {"message": f"{number} {count}"}
            place = {"channel": channels[number % 3]} if number < 6 else {"username": bob.username}
            _, status = await sender.call("send_message" if number < 6 else "send_dm", what | place)
            assert status == 200

    total = 6 * 150 + 12 * 60
    everything, *_ = await asyncio.gather(witness.events(total), *(talk(number) for number in range(18)))
    again = await recovered(chat, listener.pid, offset)

    assert len(again.early) == total
    assert {event[0] for event in again.early} == {"new_message", "new_dm"}
    assert again.early == everything


@pytest.mark.gen_test
async def test_who_comes_back_in_the_midst_of_a_flood_misses_nothing(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    witness = await chat.listens(bob, recovery=True)
    listener, offset = await recoverable(chat, bob)
    pid, is_over = listener.pid, asyncio.Event()
    received: list[Event] = []

    async def talk(number: int) -> None:
        sender = await chat.listens(ann)
        for count in range(10_000):
            await sender.call("send_message", {"channel": channel, "message": f"{number} {count}"})
            if is_over.is_set():
                return

    talking = [asyncio.create_task(talk(number)) for number in range(8)]
    for number in range(25):
        received += await listener.events(number)
        # An offset out of the middle is as good as the last one.
        received = received[: len(received) // 3 * 3]
        listener.drop()
        listener = await recovered(chat, pid, received[-1][-1] if received else offset)
    is_over.set()
    await asyncio.gather(*talking)
    await ann.sends(channel, "the end")

    received += await listener.events_until(lambda event: event[1]["message"] == "the end")
    assert received == await witness.events_until(lambda event: event[1]["message"] == "the end")


@pytest.mark.gen_test
async def test_deleted_messages_are_not_replayed(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    listener, offset = await recoverable(chat, bob)
    listener.drop()
    ids = [await ann.sends(channel, "regretted"), await ann.sends(channel, "kept")]
    ids += [await ann.writes_to(bob, "regretted"), await ann.writes_to(bob, "kept")]
    for message_id in (ids[0], ids[2]):
        assert (await ann.does("deletemessage", message_id=message_id)).status == 200

    again = await recovered(chat, listener.pid, offset)

    assert message_texts(again.early) == ["kept", "kept"]


@pytest.mark.gen_test
async def test_of_a_channel_joined_while_away_only_what_came_after_is_replayed(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener, offset = await recoverable(chat, bob)
    listener.drop()
    channel = await ann.makes()
    await ann.sends(channel, "before")
    await ann.brings(bob, channel)
    await ann.sends(channel, "after")

    again = await recovered(chat, listener.pid, offset)

    assert message_texts(await again.events(1)) == ["after"]
    await ann.sends(channel, "live")
    assert message_texts(await again.events(1)) == ["live"]


@pytest.mark.gen_test
async def test_announcements_are_replayed(chat: Chat) -> None:
    operator, bob = await chat.operator(), await chat.person()
    listener, offset = await recoverable(chat, bob)
    listener.drop()
    await operator.does("sendmessage", channel="announce", message="hear, hear")

    again = await recovered(chat, listener.pid, offset)

    assert message_texts(again.early) == ["hear, hear"]


# --- Who has had no event yet ----------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_whom_ready_did_not_reach_gets_it_and_everything_behind_it(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener = await chat.connected(recovery=True)
    await listener.emit("api_v3_connect", {"token_api_v3": bob.token})
    await eventually(lambda: chat.is_online(bob), "the connection is registered")
    listener.drop()
    await ann.writes_to(bob, "missed")

    again = await recovered(chat, listener.pid)

    (name, words, offset), missed = await again.events(2)
    assert (name, words) == ("ready", ready(bob))
    assert message_texts([missed]) == ["missed"]
    assert int(offset) < int(missed[-1])


@pytest.mark.gen_test
async def test_who_was_not_registered_yet_comes_back_and_registers(chat: Chat) -> None:
    bob = await chat.person()
    listener = await chat.connected(recovery=True)
    listener.drop()

    again = await recovered(chat, listener.pid)

    assert again.early == []
    assert (await again.registers(bob))[:2] == ["ready", ready(bob)]


@pytest.mark.gen_test
async def test_who_was_recovered_may_register_as_one_who_cannot_tell(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener, offset = await recoverable(chat, bob)
    listener.drop()
    again = await recovered(chat, listener.pid, offset)

    [name, error, _] = await again.registers(ann)
    assert (name, error.keys()) == ("error", {"message"})
    assert (await again.registers(bob))[:2] == ["ready", ready(bob)]
    [name, error, _] = await again.registers(bob)
    assert (name, error) == ("error", {"message": "Already registered!"})
    await ann.writes_to(bob, "once")
    await ann.writes_to(bob, "twice")
    assert message_texts(await again.events(2)) == ["once", "twice"]


# --- One connection for a pid ----------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_pid_that_comes_back_closes_the_connection_that_had_it(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    first, offset = await recoverable(chat, bob)

    second = await recovered(chat, first.pid, offset)

    ended = await first.end()
    assert (ended.events, ended.by_disconnect) == ([], False)
    await ann.writes_to(bob, "to the second")
    assert message_texts([await second.event()]) == ["to the second"]


@pytest.mark.gen_test
async def test_of_many_that_come_back_by_one_pid_at_once_one_stays(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener, offset = await recoverable(chat, bob)
    rivals = [await chat.opened() for _ in range(5)]

    async def comes_back(rival: Listener) -> bool:
        """Whether it was not closed before it was told that it was recovered, or that others are."""
        try:
            await rival.connect({"recovery": True, "pid": listener.pid, "offset": offset})
        except Ended:
            return False
        return bool(rival.reply["pid"] == listener.pid)

    async def heard(rival: Listener) -> list[str]:
        """What it gets, nothing if it was closed."""
        try:
            return message_texts([await rival.event()])
        except Ended:
            return []

    stood = await asyncio.gather(*map(comes_back, rivals))
    await ann.writes_to(bob, "for one")

    recovered_ones = [rival for rival, is_recovered in zip(rivals, stood, strict=True) if is_recovered]
    assert sorted(await asyncio.gather(*map(heard, recovered_ones))) == [
        *[[]] * (len(recovered_ones) - 1),
        ["for one"],
    ]
    assert not (await listener.end()).events


# --- When it cannot be -----------------------------------------------------------------------------------------------


async def reason_of(listener: Listener) -> str:
    """Why a client was not recovered, which it must have been told first."""
    name, told, offset = await listener.event()
    assert (name, told.keys(), offset.isdecimal()) == ("recovery_failed", {"reason"}, True)
    return str(told["reason"])


@pytest.mark.parametrize(
    "pid",
    [
        "",
        "nobody's",
        "A" * 51,
        "A" * 52,
        "A" * 99,
        "ä" * 20,
        "x" * 5000,
        "%00",
        None,
        1,
        [],
        {"pid": 1},
        True,
        "\ud800",
    ],
    ids=lambda pid: json.dumps(pid)[:12],
)
@pytest.mark.gen_test
async def test_a_pid_that_is_none_fails_with_a_reason(chat: Chat, pid: object) -> None:
    bob = await chat.person()

    listener = await coming_back(chat, pid, "1")

    assert await reason_of(listener) == "the pid is not known"
    assert listener.pid != pid
    assert (await listener.registers(bob))[:2] == ["ready", ready(bob)]


@pytest.mark.gen_test
async def test_a_pid_that_was_tampered_with_fails(chat: Chat) -> None:
    bob = await chat.person()
    listener, offset = await recoverable(chat, bob)
    pid = listener.pid

    for changed in (
        ("A" if pid[0] != "A" else "B") + pid[1:],
        pid[:30] + ("A" if pid[30] != "A" else "B") + pid[31:],
        pid[:-4],
        pid + pid,
    ):
        assert await reason_of(await coming_back(chat, changed, offset)) == "the pid is not known"


@pytest.mark.parametrize("offset", ["", "-1", "1.5", "one", "٣", "1" * 19, "999999999999", 1, [], True])
@pytest.mark.gen_test
async def test_an_offset_that_is_none_fails_with_a_reason(chat: Chat, offset: object) -> None:
    bob = await chat.person()
    listener, _ = await recoverable(chat, bob)

    again = await coming_back(chat, listener.pid, offset, token=bob.token)

    assert "the offset is" in await reason_of(again)
    # It begins anew by its token.
    assert again.pid != listener.pid
    assert (await again.event())[:2] == ["ready", ready(bob)]


@pytest.mark.gen_test
async def test_a_pid_belongs_to_its_account(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener, offset = await recoverable(chat, bob)
    await ann.writes_to(bob, "for Bob alone")

    thief = await coming_back(chat, listener.pid, offset, token=ann.token)

    assert await reason_of(thief) == "the connection belongs to another account"
    assert thief.pid != listener.pid
    assert (await thief.event())[:2] == ["ready", ready(ann)]
    # The owner's connection is as it was.
    assert message_texts([await listener.event()]) == ["for Bob alone"]
    await bob.writes_to(ann, "for Ann")
    assert message_texts([await thief.event()]) == ["for Ann"]


@pytest.mark.gen_test
async def test_a_token_that_changed_meanwhile_recovers_nobody_by_the_pid_alone(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener, offset = await recoverable(chat, bob)
    listener.drop()
    changed = await chat.v3.known_person(bob.username)
    await ann.writes_to(changed, "missed")

    alone = await coming_back(chat, listener.pid, offset)
    assert await reason_of(alone) == TOKEN_ENDED
    assert alone.early == []
    with pytest.raises(Refused, match="Invalid token!"):
        await coming_back(chat, listener.pid, offset, token=bob.token)
    # Whoever has the new token is the owner.
    again = await recovered(chat, listener.pid, offset, token=changed.token)
    assert message_texts(again.early) == ["missed"]


@pytest.mark.gen_test
async def test_who_was_banned_meanwhile_does_not_come_back(chat: Chat) -> None:
    operator, bob = await chat.operator(), await chat.person()
    den = await operator.makes()
    listener, offset = await recoverable(chat, bob)
    listener.drop()
    await operator.sends(den, f"!ban {bob.username} spam")

    async def is_banned() -> bool:
        return (await chat.v3.call("login", username=bob.username, password=PASSWORD)).status == 403

    await eventually(is_banned, "the ban takes effect")

    alone = await coming_back(chat, listener.pid, offset)
    assert await reason_of(alone) == TOKEN_ENDED
    with pytest.raises(Refused, match="Invalid token!"):
        await coming_back(chat, listener.pid, offset, token=bob.token)


@pytest.mark.gen_test
async def test_the_connections_that_failed_leave_nobody_online(chat: Chat) -> None:
    bob = await chat.person()
    listener, offset = await recoverable(chat, bob)
    others = [await recovered(chat, listener.pid, offset) for _ in range(3)]

    others[-1].drop()

    async def is_offline() -> bool:
        return not await chat.is_online(bob)

    await eventually(is_offline, "the connection's end is recorded")
