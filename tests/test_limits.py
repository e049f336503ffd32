"""Limits: what a window lets through, stated as properties over a clock that the test holds, and what V3 does with it.

Times are whole numbers here, so that sums of them are exact.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer

import chat.passwords
from chat.commands import Commands
from chat.passwords import PasswordHasher
from eventstore.log import EventLog
from handlers import limits
from handlers.limits import FailureLimit, SlidingWindow, TooMany
from handlers.services import Services
from projections.models import ReadModels
from tests.conftest import SECRET
from tests.v3client import PASSWORD, V3, Answer, Wire, fresh, request, texts, until

SECONDS = 10
MESSAGES = 3
LOGINS = 4
MINUTE = 60
KEYS = st.integers(0, 1)
TOO_MANY = (429, {"message": "Too many requests!"})
TOO_BUSY = (503, {"message": "Too busy now, try again!"})
WRONG = (401, {"message": "Invalid username or password!"})
WRONG_PASSWORD = "0therPassw0rd!"
HOME = "127.0.0.1"


@dataclass
class Clock:
    """Shows the time that it is set to, and counts how often one looks at it."""

    now: float = 1000.0
    readings: int = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.now


# --- The window ------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.just("wait"), st.integers(0, SECONDS + 2)) | st.tuples(st.sampled_from(["take", "give back"]), KEYS),
    max_size=60,
)


@given(limit=st.integers(1, 4), steps=steps)
@settings(deadline=None, max_examples=300)
def test_a_window_lets_through_as_many_as_the_limit_and_never_more(limit: int, steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    window = SlidingWindow(limit, SECONDS, clock)
    counted: dict[int, list[float]] = defaultdict(list)

    for step, number in steps:
        if step == "wait":
            clock.now += number
        elif step == "give back":
            # The oldest one: what takes long is given back late.
            for moment in counted[number][:1]:
                window.give_back(number, moment)
                counted[number].remove(moment)
        else:
            within = [at for at in counted[number] if at > clock.now - SECONDS]
            refusal = refused(window, number)
            # Refused only if the window is full, and told when the oldest in it will have left.
            assert (refusal is not None) == (len(within) == limit)
            if refusal is None:
                counted[number].append(clock.now)
            else:
                assert refusal.retry_after == within[0] + SECONDS - clock.now


def refused(window: SlidingWindow, key: object) -> TooMany | None:
    """Takes one, and returns how that was refused, if it was."""
    try:
        window.take(key)
    except TooMany as refusal:
        return refusal
    return None


@given(limit=st.integers(1, 5), waits=st.lists(st.integers(0, SECONDS), min_size=1, max_size=60))
@settings(deadline=None, max_examples=300)
def test_no_window_of_time_ever_holds_more_than_the_limit(limit: int, waits: list[int]) -> None:
    clock = Clock()
    window = SlidingWindow(limit, SECONDS, clock)
    let_through: list[float] = []

    for wait in waits:
        clock.now += wait
        if refused(window, "key") is None:
            let_through.append(clock.now)

    for at, later in zip(let_through, let_through[limit:], strict=False):
        assert later - at >= SECONDS


@given(limit=st.integers(1, 5), waits=st.lists(st.integers(0, SECONDS), min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_who_waits_as_long_as_told_is_let_through_and_not_a_moment_before(limit: int, waits: list[int]) -> None:
    clock = Clock()
    window = SlidingWindow(limit, SECONDS, clock)

    for wait in waits:
        clock.now += wait
        refusal = refused(window, "key")
        if refusal is not None:
            clock.now += refusal.retry_after - 0.5
            assert refused(window, "key") is not None
            clock.now += 0.5
            assert refused(window, "key") is None


def test_one_key_does_not_use_up_anothers_window() -> None:
    window = SlidingWindow(1, SECONDS, Clock())

    refusals = [refused(window, key) for key in ("one", "another", "one")]

    assert [refusal is None for refusal in refusals] == [True, True, False]


def test_a_limit_of_0_lets_everything_through() -> None:
    window = SlidingWindow(0, SECONDS, Clock())
    window.give_back("key", window.take("key"))

    assert all(refused(window, "key") is None for _ in range(1000))


def test_the_keys_taken_last_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 3)
    window = SlidingWindow(2, SECONDS, Clock())
    for key in ("a", "b", "b", "c", "c", "a", "d"):
        window.take(key)

    # The one whose last taking is the oldest was forgotten, and no other.
    assert [refused(window, key) is None for key in ("c", "a", "b")] == [False, False, True]


# --- Messages over HTTP ----------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def services(services: Services, clock: Clock) -> Services:
    """What the handlers call, with small limits and the test's clock."""
    return dataclasses.replace(
        services,
        messages_per_account=SlidingWindow(MESSAGES, SECONDS, clock),
        failed_logins=FailureLimit(SlidingWindow(LOGINS, MINUTE, clock)),
    )


@pytest.fixture
def v3(http_client: AsyncHTTPClient, base_url: str) -> V3:
    return V3(base_url, http_client)


@pytest.mark.gen_test
async def test_messages_beyond_the_limit_are_429_with_retry_after_and_not_sent(v3: V3, clock: Clock) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    for number in range(MESSAGES):
        assert (await ann.does("sendmessage", channel=channel, message=str(number))).status == 200
    clock.now += 3.5

    answers = [await ann.does("sendmessage", channel=channel, message="too many") for _ in range(3)]

    assert [answer.said for answer in answers] == [TOO_MANY] * 3
    assert {answer.headers["Retry-After"] for answer in answers} == {"7"}
    assert texts(await ann.reads(channel)) == ["0", "1", "2"]


@pytest.mark.gen_test
async def test_after_retry_after_the_next_message_is_sent(v3: V3, clock: Clock) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    while (answer := await ann.does("sendmessage", channel=channel, message="x")).status == 200:
        clock.now += 1

    clock.now += int(answer.headers["Retry-After"])

    assert (await ann.does("sendmessage", channel=channel, message="x")).status == 200
    assert (await ann.does("sendmessage", channel=channel, message="x")).said == TOO_MANY


@pytest.mark.gen_test
async def test_channel_messages_and_dms_share_the_limit_and_each_account_has_its_own(v3: V3) -> None:
    ann, bob = await v3.person(), await v3.person()
    channel = await ann.makes()
    await ann.brings(bob, channel)
    for _ in range(MESSAGES - 1):
        await ann.does("senddm", username=bob.username, message="x")
    last = await ann.does("sendmessage", channel=channel, message="x")

    refused = [
        await ann.does("senddm", username=bob.username, message="x"),
        await ann.does("sendmessage", channel=channel, message="x"),
    ]
    others = await bob.does("sendmessage", channel=channel, message="x")

    assert [last.status, others.status] == [200, 200]
    assert [answer.said for answer in refused] == [TOO_MANY] * 2


@pytest.mark.gen_test
async def test_reading_and_everything_else_has_no_limit(v3: V3) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    while (await ann.does("sendmessage", channel=channel, message="x")).status == 200:
        pass

    others = [
        await ann.does("getchannels"),
        await ann.does("readmessagesfromchannel", name=channel, count=1),
        await ann.does("makechannel", name=fresh("den")),
    ]

    assert [answer.status for answer in others] == [200] * 3


@pytest.mark.gen_test
async def test_a_burst_of_messages_does_not_get_past_the_limit(v3: V3) -> None:
    ann = await v3.person()
    channel = await ann.makes()

    answers = await asyncio.gather(*(ann.does("sendmessage", channel=channel, message="x") for _ in range(10)))

    assert sorted(answer.status for answer in answers) == [200] * MESSAGES + [429] * (10 - MESSAGES)
    assert len(await ann.reads(channel)) == MESSAGES


@pytest.mark.gen_test
async def test_a_token_that_is_changed_starts_no_new_window(v3: V3) -> None:
    ann = await v3.person()
    channel = await ann.makes()
    for _ in range(MESSAGES):
        await ann.does("sendmessage", channel=channel, message="x")

    again = await v3.known_person(ann.username)

    assert (await again.does("sendmessage", channel=channel, message="x")).said == TOO_MANY


# --- Logins over HTTP ------------------------------------------------------------------------------------------------


class Addresses:
    """Logs in from several addresses: all of 127.0.0.0/8 is this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wires: dict[str, Wire] = {}

    async def logs_in(
        self, username: str, password: str = WRONG_PASSWORD, *headers: bytes, source: str = HOME
    ) -> Answer:
        """The answer to a login from an address."""
        wire = self._wires.setdefault(source, Wire(self._port, source))
        body = json.dumps({"username": username, "password": password}).encode()
        return await wire.ask(request("/api/v3/login/", body, *headers))

    def close(self) -> None:
        for wire in self._wires.values():
            wire.close()


@pytest.fixture
def people(http_server: HTTPServer, http_port: int) -> Iterator[Addresses]:
    addresses = Addresses(http_port)
    yield addresses
    addresses.close()


def addresses() -> Iterator[str]:
    """Addresses of this machine, each another one."""
    return (f"127.0.1.{number}" for number in range(1, 255))


@pytest.mark.gen_test
async def test_wrong_logins_of_one_name_are_limited_from_however_many_addresses(
    v3: V3, people: Addresses, clock: Clock
) -> None:
    ann = await v3.person()
    source = addresses()
    tries = [await people.logs_in(ann.username, source=next(source)) for _ in range(LOGINS)]
    clock.now += 20.5

    one_more = await people.logs_in(ann.username, source=next(source))
    by_another_spelling = await people.logs_in(f" {ann.username.upper()} ", source=next(source))
    with_the_right_one = await people.logs_in(ann.username, PASSWORD, source=next(source))
    another_name = await people.logs_in(fresh("Nobody"), source=next(source))

    assert [answer.said for answer in tries] == [WRONG] * LOGINS
    assert [answer.said for answer in (one_more, by_another_spelling, with_the_right_one)] == [TOO_MANY] * 3
    assert one_more.headers["Retry-After"] == "40"
    assert another_name.said == WRONG


@pytest.mark.gen_test
async def test_wrong_logins_from_one_address_are_limited_over_however_many_names(v3: V3, people: Addresses) -> None:
    ann = await v3.person()
    tries = [await people.logs_in(fresh("Nobody")) for _ in range(LOGINS)]

    one_more = await people.logs_in(fresh("Nobody"))
    elsewhere = await people.logs_in(ann.username, PASSWORD, source="127.0.0.2")

    assert [answer.said for answer in tries] == [WRONG] * LOGINS
    assert one_more.said == TOO_MANY
    assert elsewhere.status == 200


@pytest.mark.gen_test
async def test_an_address_that_a_client_claims_is_not_believed(people: Addresses) -> None:
    claims = (b"X-Forwarded-For: 192.0.2.1", b"X-Real-Ip: 192.0.2.2", b"Forwarded: for=192.0.2.3")
    for _ in range(LOGINS):
        await people.logs_in(fresh("Nobody"))

    answers = [await people.logs_in(fresh("Nobody"), WRONG_PASSWORD, claim) for claim in claims]

    assert [answer.said for answer in answers] == [TOO_MANY] * 3


@pytest.mark.parametrize("endpoint", ["login", "generatetoken", "gettoken"])
@pytest.mark.gen_test
async def test_every_endpoint_that_takes_a_password_is_limited(v3: V3, endpoint: str) -> None:
    wrong = {"username": fresh("Nobody"), "password": WRONG_PASSWORD}
    answers = [await v3.call(endpoint, None, **wrong) for _ in range(LOGINS + 1)]

    others = [await v3.call(other, None, **wrong) for other in ("login", "generatetoken", "gettoken")]

    assert [answer.said for answer in answers] == [WRONG] * LOGINS + [TOO_MANY]
    assert [answer.said for answer in others] == [TOO_MANY] * 3


@pytest.mark.gen_test
async def test_a_minute_later_the_next_tries_are_let_through(people: Addresses, clock: Clock) -> None:
    name = fresh("Nobody")
    while (answer := await people.logs_in(name)).said == WRONG:
        clock.now += 2

    clock.now += int(answer.headers["Retry-After"])

    assert (await people.logs_in(name)).said == WRONG
    assert (await people.logs_in(name)).said == TOO_MANY


@pytest.mark.gen_test
async def test_good_logins_are_never_counted(v3: V3, people: Addresses) -> None:
    ann = await v3.person()

    good = [await people.logs_in(ann.username, PASSWORD) for _ in range(3 * LOGINS)]
    wrong = [await people.logs_in(ann.username) for _ in range(LOGINS + 1)]

    assert [answer.status for answer in good] == [200] * 3 * LOGINS
    assert [answer.said for answer in wrong] == [WRONG] * LOGINS + [TOO_MANY]


@pytest.mark.gen_test
async def test_what_is_refused_by_the_rules_is_no_try(v3: V3, people: Addresses) -> None:
    for _ in range(3 * LOGINS):
        assert (await people.logs_in("ab")).status == 411
        assert (await people.logs_in(fresh("Nobody"), "weak")).status == 411
        assert (await v3.call("register", username="ab", password=PASSWORD)).status == 411

    assert (await people.logs_in(fresh("Nobody"))).said == WRONG


@pytest.mark.gen_test
async def test_a_burst_of_wrong_logins_does_not_get_past_the_limit(v3: V3) -> None:
    ann = await v3.person()

    tries = await asyncio.gather(
        *(v3.call("login", username=ann.username, password=WRONG_PASSWORD) for _ in range(5 * LOGINS))
    )

    assert sorted(answer.status for answer in tries) == [401] * LOGINS + [429] * 4 * LOGINS


@pytest.mark.gen_test
async def test_a_burst_of_wrong_logins_from_many_addresses_does_not_get_past_the_limit(
    v3: V3, people: Addresses
) -> None:
    ann = await v3.person()

    tries = await asyncio.gather(
        *(people.logs_in(ann.username, source=source) for source, _ in zip(addresses(), range(20), strict=False))
    )

    assert sorted(answer.status for answer in tries) == [401] * LOGINS + [429] * (20 - LOGINS)


@pytest.mark.gen_test
async def test_more_passwords_than_can_be_checked_in_good_time_are_503_too_busy(
    models: ReadModels, log: EventLog, v3: V3, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = await a_slow_person(log, models, cost=11)
    monkeypatch.setattr(chat.passwords, "MAX_WAITING", 2)

    answers = await asyncio.gather(*(v3.call("login", username=slow, password=PASSWORD) for _ in range(LOGINS)))

    busy = [answer for answer in answers if answer.status != 200]
    assert [answer.said for answer in busy] == [TOO_BUSY] * (LOGINS - 2)
    assert {answer.headers["Retry-After"] for answer in busy} == {"1"}
    # What was too much work was no wrong login.
    assert (await v3.call("login", username=slow, password=WRONG_PASSWORD)).said == WRONG


async def a_slow_person(log: EventLog, models: ReadModels, cost: int) -> str:
    """Somebody whose password takes long to check, half a second at a cost of 13: a check costs what its hash cost."""
    hasher = PasswordHasher(cost)
    name = fresh("Slow")
    await Commands(log, models, hasher, SECRET).register(name, PASSWORD, "test")
    hasher.close()
    return name


@pytest.mark.gen_test
async def test_tries_that_are_refused_for_their_name_do_not_use_up_their_address(v3: V3, people: Addresses) -> None:
    ann, bob = await v3.person(), await v3.person()
    for _, source in zip(range(LOGINS), addresses(), strict=False):
        await people.logs_in(ann.username, source=source)

    # Ann, who knows her password, tries and tries while somebody else has used up her name.
    refused = [await people.logs_in(ann.username, PASSWORD) for _ in range(2 * LOGINS)]
    at_the_same_address = await people.logs_in(bob.username, PASSWORD)

    assert [answer.said for answer in refused] == [TOO_MANY] * 2 * LOGINS
    assert at_the_same_address.status == 200


@pytest.mark.gen_test
async def test_a_good_login_that_takes_long_takes_back_itself_and_no_wrong_one(
    models: ReadModels, log: EventLog, v3: V3, people: Addresses, clock: Clock
) -> None:
    slow = await a_slow_person(log, models, cost=13)
    before = clock.readings
    begun = asyncio.create_task(people.logs_in(slow, PASSWORD, source=HOME))
    await until(lambda: clock.readings == before + 2, "it is counted, for its address and for its name")
    clock.now += MINUTE - 1
    wrong = [await v3.call("login", username=fresh("Nobody"), password=WRONG_PASSWORD) for _ in range(LOGINS - 1)]
    assert not begun.done()
    good = await begun
    clock.now += 2

    # The wrong ones were two seconds ago: one more, and it is enough.
    answers = [await people.logs_in(fresh("Nobody")) for _ in range(2)]

    assert [good.status, *(answer.status for answer in wrong)] == [200] + [401] * (LOGINS - 1)
    assert [answer.said for answer in answers] == [WRONG, TOO_MANY]


@pytest.mark.gen_test
async def test_a_burst_of_good_logins_is_let_through_whole(v3: V3) -> None:
    ann = await v3.person()

    answers = await asyncio.gather(
        *(v3.call("login", username=ann.username, password=PASSWORD) for _ in range(3 * LOGINS))
    )

    assert [answer.status for answer in answers] == [200] * 3 * LOGINS
