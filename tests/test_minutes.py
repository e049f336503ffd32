"""The minutes are right: random commands against the real log, and after each of them everything agrees.

A state machine plays people who register, get tokens, make channels, bring each other in, send, delete and read, come
online and are moderated, in turn and at once, with and without the right to it. It keeps a plain idea of what must
come of it, from the contract alone. After each step the live read models, the same models projected from zero over the
log cut into ranges, and a fold of the log in plain Python are one and the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import projections
from chat.commands import Account, Commands
from chat.connections import Connections
from chat.moderation import Moderation
from chat.names import BOT_ID, BOT_NAME
from chat.passwords import PasswordHasher
from chat.refusals import Malformed, Reason, Refused
from eventstore.events import Appended
from eventstore.log import EventLog
from eventstore.rebuild import rebuild
from projections.dms import DirectMessage
from projections.messages import Message
from projections.models import ReadModels
from tests import tables
from tests.conftest import OPERATOR, SECRET
from tests.decoded import Decoded
from tests.fold import Fold

T = TypeVar("T")

GOOD, OTHER = "Passw0rd!", "Passw0rd?"
PASSWORDS = st.sampled_from([GOOD, GOOD, GOOD, OTHER, "password", "Passw 0rd!"])
# Good ones more often than bad ones, so that something comes of most commands.
USERNAMES = st.sampled_from(
    [*["alice", "bob"] * 5, "Alice", " ALICE ", "al ice", "Al_Ice", "carol", OPERATOR, "fokabot", "ab", "x" * 21]
)
CHANNELS = st.sampled_from(
    [*["den"] * 10, "#den", "DEN ", "the den", "#The_Den", "announce", "#announce", "a#b", "#", "d" * 65, "de\nn"]
)
TEXTS = st.sampled_from([*["hello", "é 😀 \\u0000 \"'\\", " "] * 4, "x" * 4000, "", "x" * 4001])
KEYS = st.sampled_from([None, None, None, None, "key", "other key"])
COUNTS = st.sampled_from([1, 2, 5, 1000])
# Which of the people, or of the messages, there are: taken modulo their number.
CHOICES = st.integers(0, 30)
YES_OR_NO = st.booleans()
DEVICES = st.sampled_from([None, "phone", "laptop"])

# The methods of the machine, with what they take; those that make up a conversation more often than the others.
_MESSAGES = [
    st.tuples(st.just("send"), CHOICES, CHANNELS, TEXTS, KEYS),
    st.tuples(st.just("write_to"), CHOICES, USERNAMES, TEXTS, KEYS),
    st.tuples(st.just("delete"), CHOICES, CHOICES, YES_OR_NO, YES_OR_NO),
    st.tuples(st.just("read_a_channel"), CHOICES, CHANNELS, COUNTS),
    st.tuples(st.just("read_one_s_own"), CHOICES, COUNTS),
    st.tuples(st.just("read_one_message"), CHOICES, CHOICES),
]
COMMANDS: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    *_MESSAGES,
    *_MESSAGES,
    st.tuples(st.just("register"), USERNAMES, PASSWORDS),
    st.tuples(st.just("register_twice_at_once"), USERNAMES),
    st.tuples(st.just("log_in"), USERNAMES, PASSWORDS),
    st.tuples(st.just("issue_a_token"), CHOICES, YES_OR_NO),
    st.tuples(st.just("use_tokens"), CHOICES),
    st.tuples(st.just("make_a_channel"), CHOICES, CHANNELS),
    st.tuples(st.just("bring_somebody_in"), CHOICES, CHANNELS, USERNAMES, YES_OR_NO),
    st.tuples(st.just("connect"), CHOICES, st.sampled_from(["a", "b", "c"]), DEVICES),
    st.tuples(st.just("disconnect"), CHOICES, YES_OR_NO),
    st.tuples(st.just("silence"), CHOICES, YES_OR_NO),
    st.tuples(st.just("ban"), CHOICES, YES_OR_NO),
    st.tuples(st.just("delete_what_is_no_message"), CHOICES, st.integers(-1, 60)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("replay"), st.sampled_from([3, 1000])),
)


@dataclass
class Person:
    """Somebody, and what the machine knows of them."""

    account: Account
    password: str
    # By their generations; None where one was revoked.
    tokens: list[str | None] = field(default_factory=list)
    banned: bool = False
    silenced: bool = False
    verified: int = -1

    @property
    def id(self) -> int:
        return self.account.account_id


@dataclass
class Line:
    """A connection: whose it is, the version of its stream, and whether it stands open."""

    person: Person
    version: int = 0
    opened: bool = False


@dataclass
class Den:
    """A channel, and who is in it."""

    channel_id: int
    name: str
    members: set[int]


@dataclass
class Sent:
    """A message of either kind: to a channel, or to somebody."""

    message_id: int
    sender: Person
    text: str
    channel: Den | None
    recipient: Person | None
    deleted: bool = False

    def readable_by(self, person: Person) -> bool:
        if self.channel is not None:
            return person.id in self.channel.members or self.channel.name == "announce"
        assert self.recipient is not None
        return person.id in (self.sender.id, self.recipient.id)

    def as_read(self, found: Message | DirectMessage) -> bool:
        """Whether this is what was read."""
        place = self.channel.name if self.channel else self.recipient.account.username if self.recipient else ""
        return (found.message_id, found.sender, found.text) == (
            self.message_id,
            self.sender.account.username,
            self.text,
        ) and place == (found.channel if isinstance(found, Message) else found.recipient)


def safe(name: str) -> str:
    return name.lower().strip().replace(" ", "_")


class Minutes(RuleBasedStateMachine):
    """One conversation, from an empty log on."""

    def __init__(self, database: str) -> None:
        super().__init__()
        self.database = database
        self.loop = asyncio.new_event_loop()
        self.beside = tables.Beside(database)
        self.passwords = PasswordHasher(cost=4)
        # Those who act; the bot only gets messages and is brought into channels.
        self.people: dict[str, Person] = {}
        self.bot = Person(Account(BOT_ID, BOT_NAME), "nobody has it")
        self.channels: dict[str, Den] = {}
        self.sent: list[Sent] = []
        self.keys: dict[tuple[int, str, str], int] = {}
        self.lines: dict[str, Line] = {}
        self.devices: set[str | None] = set()
        self.fold = Fold()
        # The position up to which the models were last projected from zero.
        self.projected = 0

    # --- the machinery -----------------------------------------------------------------------------------------

    @initialize(people=st.integers(0, 3))
    def begin(self, people: int) -> None:
        tables.empty(self.beside.connection)
        self.open()
        [announce] = self.do(lambda: self.log.read(after=2))
        self.channels["announce"] = Den(announce.position, "announce", set())
        for username in ("alice", "bob", OPERATOR)[:people]:
            self.register(username, GOOD)
            self.make_a_channel(0, "den")
            self.bring_somebody_in(0, "den", username, at_once=False)

    # One rule for all commands: hypothesis leaves out many rules of a machine in each of its runs.
    @rule(command=COMMANDS)
    def go_on(self, command: tuple[Any, ...]) -> None:
        name, *arguments = command
        if self.people or name in ("register", "register_twice_at_once", "log_in", "restart", "replay"):
            getattr(self, name)(*arguments)

    @invariant()
    def everything_agrees(self) -> None:
        head = self.do(self.log.head)
        for event in self.do(lambda: self.log.read(self.fold.position)):
            self.fold.tell(event)
        assert self.fold.position == head
        expected = self.fold.tables()

        assert tables.read_models(self.beside.connection) == expected
        # The same log, cut at the same places, would come to the same.
        if head != self.projected:
            assert self.beside.project(tables.cut(head, [head // 3, head - 2, head - 1])) == expected
            self.projected = head

    # --- the house ---------------------------------------------------------------------------------------------

    def restart(self) -> None:
        self.close()
        self.open()

    def replay(self, range_size: int) -> None:
        rebuilt = rebuild(self.database, projections.ALL, range_size=range_size)
        assert rebuilt.position == self.do(self.log.head)

    def open(self) -> None:
        self.log = EventLog(self.database, projections.ALL)
        self.do(self.log.__aenter__)
        models = ReadModels(self.log)
        self.reading = Decoded(models)
        self.models = models
        self.commands = Commands(self.log, models, self.passwords, SECRET, operators=[OPERATOR])
        self.moderation = Moderation(self.log, models, operators=[OPERATOR])
        self.connections = Connections(self.log, models, SECRET, "node")
        self.do(self.commands.prepare)

    def close(self) -> None:
        self.do(lambda: self.log.__aexit__(None, None, None))

    def teardown(self) -> None:
        self.close()
        self.passwords.close()
        self.beside.close()
        self.loop.close()

    def do(self, act: Callable[[], Awaitable[T]]) -> T:
        async def awaited() -> T:
            return await act()

        return self.loop.run_until_complete(awaited())

    def outcome(self, act: Callable[[], Awaitable[T]], expected: Reason | type[Malformed] | None) -> T | None:
        """What comes of a command that is expected to be refused for this reason, or not at all."""
        try:
            done = self.do(act)
        except (Refused, Malformed) as refused:
            self.assert_refused(refused, expected)
            return None
        assert expected is None
        return done

    @staticmethod
    def assert_refused(refused: object, expected: Reason | type[Malformed] | None) -> None:
        if isinstance(refused, Refused):
            assert refused.reason is expected
        else:
            assert isinstance(refused, Malformed)
            assert expected is Malformed

    def both(self, act: Callable[[], Awaitable[T]]) -> list[T | BaseException]:
        """What comes of a command that is given twice at once."""

        async def twice() -> list[T | BaseException]:
            return list(await asyncio.gather(act(), act(), return_exceptions=True))

        return self.do(twice)

    def person(self, choice: int) -> Person:
        return list(self.people.values())[choice % len(self.people)]

    def called(self, username: str) -> Person | None:
        return self.bot if safe(username) == safe(BOT_NAME) else self.people.get(safe(username))

    def den(self, channel: str) -> Den | None:
        return self.channels.get(safe(channel.removeprefix("#")))

    def standing(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.deleted]

    # --- people and tokens -------------------------------------------------------------------------------------

    def register(self, username: str, password: str) -> None:
        account = self.outcome(
            lambda: self.commands.register(username, password, "c"), self.refusal_to_register(username, password)
        )
        if account is not None:
            assert account == Account(1000 + len(self.people), username)
            self.people[safe(username)] = Person(account, password)

    def refusal_to_register(self, username: str, password: str) -> Reason | None:
        if password not in (GOOD, OTHER):
            return Reason.WEAK_PASSWORD
        if not 3 <= len(username) <= 20:
            return Reason.BAD_USERNAME
        if self.called(username) is not None:
            return Reason.USERNAME_TAKEN
        return None

    def register_twice_at_once(self, username: str) -> None:
        if self.refusal_to_register(username, GOOD) is not None:
            return
        outcomes = self.both(lambda: self.commands.register(username, GOOD, "c"))

        [account] = [outcome for outcome in outcomes if isinstance(outcome, Account)]
        [refused] = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert refused.reason is Reason.USERNAME_TAKEN
        assert account == Account(1000 + len(self.people), username)
        self.people[safe(username)] = Person(account, GOOD)

    def log_in(self, username: str, password: str) -> None:
        person = self.called(username)
        wrong = None if person is not None and person.password == password else Reason.WRONG_CREDENTIALS
        if password not in (GOOD, OTHER):
            wrong = Reason.WEAK_PASSWORD
        elif not 3 <= len(username) <= 20:
            wrong = Reason.BAD_USERNAME
        elif wrong is None and person is not None and person.banned:
            wrong = Reason.BANNED

        account = self.outcome(lambda: self.commands.log_in(username, password), wrong)

        assert wrong is not None or (person is not None and account == person.account)

    def issue_a_token(self, choice: int, at_once: bool) -> None:
        person = self.person(choice)
        issue = partial(self.commands.generate_token, person.account, "c")
        if person.banned:
            self.outcome(issue, Reason.BANNED)
            return

        outcomes: list[Any] = self.both(issue) if at_once else [self.do(issue)]

        before = len(person.tokens)
        issued = {generation: token for token, generation in outcomes}
        assert sorted(issued) == list(range(before + 1, before + 1 + len(outcomes)))
        person.tokens += [issued[generation] for generation in sorted(issued)]

    def use_tokens(self, choice: int) -> None:
        person = self.person(choice)
        expected = person.tokens[-1] if person.tokens else None
        newest = self.outcome(
            lambda: self.commands.current_token(person.account), None if expected else Reason.NO_TOKEN
        )
        assert newest == expected
        for token in filter(None, person.tokens):
            account = self.outcome(
                partial(self.commands.authenticate, token), None if token == newest else Reason.INVALID_TOKEN
            )
            assert account == (person.account if token == newest else None)

    # --- channels ----------------------------------------------------------------------------------------------

    def make_a_channel(self, choice: int, name: str) -> None:
        person, kept = self.person(choice), name.removeprefix("#")
        refusal: Reason | type[Malformed] | None = None
        if not 1 <= len(kept) <= 64 or "#" in kept or "\n" in kept:
            refusal = Malformed
        elif safe(kept) in self.channels:
            refusal = Reason.CHANNEL_EXISTS

        made = self.outcome(lambda: self.commands.make_channel(person.account, name, "c"), refusal)

        if made is not None:
            assert made.name == kept
            self.channels[safe(kept)] = Den(made.channel_id, kept, {person.id})

    def bring_somebody_in(self, choice: int, channel: str, username: str, at_once: bool) -> None:
        person, den = self.person(choice), self.den(channel)
        added = self.called(username)
        refusal: Reason | None = None
        if den is None:
            refusal = Reason.CHANNEL_NOT_FOUND
        elif added is None:
            refusal = Reason.USER_NOT_FOUND
        elif person.id not in den.members:
            refusal = Reason.NOT_A_MEMBER
        bring = partial(self.commands.add_member, person.account, channel, username, "c")
        before = self.do(self.log.head)

        if at_once and refusal is None:
            first, second = self.both(bring)
            assert not isinstance(first, BaseException)
            assert first == second
        else:
            self.outcome(bring, refusal)

        if refusal is None and den is not None and added is not None:
            assert self.do(self.log.head) == before + (added.id not in den.members)
            den.members.add(added.id)

    # --- messages ----------------------------------------------------------------------------------------------

    def send(self, choice: int, channel: str, text: str, key: str | None) -> None:
        person, den = self.person(choice), self.den(channel)
        refusal: Reason | type[Malformed] | None = None
        if not 1 <= len(text) <= 4000:
            refusal = Malformed
        elif den is None:
            refusal = Reason.CHANNEL_NOT_FOUND
        elif self.restriction(person) is not None:
            refusal = self.restriction(person)
        elif den.name == "announce":
            refusal = None if safe(person.account.username) == safe(OPERATOR) else Reason.NOT_A_MEMBER
        elif person.id not in den.members:
            refusal = Reason.NOT_A_MEMBER

        appended = self.outcome(
            lambda: self.commands.send_message(person.account, channel, text, "c", idempotency_key=key), refusal
        )

        if appended is not None:
            self.keep(Sent(appended.first_position, person, text, den, None), appended, key)

    def write_to(self, choice: int, username: str, text: str, key: str | None) -> None:
        person, recipient = self.person(choice), self.called(username)
        refusal: Reason | type[Malformed] | None = None
        if not 1 <= len(text) <= 4000:
            refusal = Malformed
        elif recipient is None:
            refusal = Reason.USER_NOT_FOUND
        else:
            refusal = self.restriction(person)

        appended = self.outcome(
            lambda: self.commands.send_direct_message(person.account, username, text, "c", idempotency_key=key), refusal
        )

        if appended is not None:
            self.keep(Sent(appended.first_position, person, text, None, recipient), appended, key)

    def keep(self, sent: Sent, appended: Appended, key: str | None) -> None:
        """Remembers a message; one that was sent under a known key is the one of before."""
        if key is None:
            assert not appended.repeated
        else:
            kind = "channel" if sent.channel else "direct"
            first = self.keys.setdefault((sent.sender.id, kind, key), sent.message_id)
            assert first == sent.message_id
            if appended.repeated:
                assert sent.message_id in [known.message_id for known in self.sent]
                return
        assert not self.sent or sent.message_id > self.sent[-1].message_id
        self.sent.append(sent)

    def delete(self, choice: int, which: int, own: bool, at_once: bool) -> None:
        if not self.sent:
            return
        sent = self.sent[-1 - which % len(self.sent)]
        person = sent.sender if own else self.person(choice)
        refusal: Reason | None = None
        if sent.deleted:
            refusal = Reason.MESSAGE_NOT_FOUND
        elif sent.sender is not person:
            refusal = Reason.NOT_YOUR_MESSAGE
        act = partial(self.commands.delete_message, person.account, sent.message_id, "c")

        if at_once and refusal is None:
            outcomes = self.both(act)
            [refused] = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
            assert refused.reason is Reason.MESSAGE_NOT_FOUND
            assert None in outcomes
        else:
            self.outcome(act, refusal)
        sent.deleted = sent.deleted or refusal is None

    def delete_what_is_no_message(self, choice: int, position: int) -> None:
        if position not in [sent.message_id for sent in self.sent]:
            account = self.person(choice).account
            self.outcome(lambda: self.commands.delete_message(account, position, "c"), Reason.MESSAGE_NOT_FOUND)

    # --- connections -------------------------------------------------------------------------------------------

    def connect(self, choice: int, connection_id: str, device: str | None) -> None:
        person = self.person(choice)
        line = self.lines.get(connection_id, Line(person))
        if line.person is not person:
            return
        self.do(
            lambda: self.connections.open(person.account, 1, connection_id, "c", device=device, version=line.version)
        )
        self.lines[connection_id] = Line(person, line.version + 1, opened=True)
        if person.verified == -1:
            person.verified = 0 if device in self.devices else 1
            self.devices |= {device} - {None}
        self.assert_presence()

    def disconnect(self, choice: int, lost: bool) -> None:
        opened = [connection_id for connection_id, line in self.lines.items() if line.opened]
        if not opened:
            return
        ended = opened if lost else [opened[choice % len(opened)]]
        lines = [self.lines[connection_id] for connection_id in ended]
        if lost:
            assert self.do(lambda: self.connections.sweep(["node"])) == len(opened)
        else:
            closings = [(name, line.person.id, line.version) for name, line in zip(ended, lines, strict=True)]
            self.both(lambda: self.connections.close(closings, "gone"))
        for line in lines:
            line.version, line.opened = line.version + 1, False
        self.assert_presence()

    def assert_presence(self) -> None:
        online = {line.person.id for line in self.lines.values() if line.opened}
        assert self.do(self.models.presence.online_accounts) == len(online) + 1
        for person in self.people.values():
            assert self.do(partial(self.models.presence.is_online, person.id)) is (person.id in online)
            assert self.do(partial(self.models.verification.status, person.id)) == person.verified

    # --- moderation --------------------------------------------------------------------------------------------

    def silence(self, choice: int, undo: bool) -> None:
        person = self.person(choice)
        name, bot = person.account.username, self.bot.account
        if undo:
            nothing = None if person.silenced else Reason.NOTHING_TO_UNDO
            self.outcome(lambda: self.moderation.remove_silence(bot, name, "c"), nothing)
        else:
            self.do(lambda: self.moderation.silence(bot, name, 3600, "", "c"))
        person.silenced = not undo

    def ban(self, choice: int, undo: bool) -> None:
        person = self.person(choice)
        name, bot = person.account.username, self.bot.account
        if undo:
            nothing = None if person.banned else Reason.NOTHING_TO_UNDO
            self.outcome(lambda: self.moderation.unban(bot, name, "c"), nothing)
        elif safe(name) == safe(OPERATOR):
            self.outcome(lambda: self.moderation.ban(bot, name, "", "c"), Reason.NOT_FOR_AN_OPERATOR)
            return
        else:
            self.both(lambda: self.moderation.ban(bot, name, "", "c"))
            person.tokens += [] if person.banned else [None]
        person.banned = not undo

    @staticmethod
    def restriction(person: Person) -> Reason | None:
        if person.banned:
            return Reason.BANNED
        return Reason.SILENCED if person.silenced else None

    # --- reading -----------------------------------------------------------------------------------------------

    def read_a_channel(self, choice: int, channel: str, count: int) -> None:
        person, den = self.person(choice), self.den(channel)
        refusal: Reason | None = None
        if den is None:
            refusal = Reason.CHANNEL_NOT_FOUND
        elif person.id not in den.members and den.name != "announce":
            refusal = Reason.NOT_A_MEMBER

        found = self.outcome(lambda: self.reading.channel(person.account, channel, count), refusal)

        if found is not None:
            self.assert_read(found, [sent for sent in self.standing() if sent.channel is den], count)

    def read_one_s_own(self, choice: int, count: int) -> None:
        person = self.person(choice)
        standing = self.standing()

        mine = self.do(lambda: self.reading.sent_by(person.account, count))
        direct = self.do(lambda: self.reading.direct_messages(person.account, count))
        channels = self.do(lambda: self.reading.channels(person.account))
        announced = self.do(lambda: self.reading.announcements(count))

        self.assert_read(mine, [sent for sent in standing if sent.channel and sent.sender is person], count)
        self.assert_read(direct, [sent for sent in standing if sent.recipient and sent.readable_by(person)], count)
        self.assert_read(announced, [sent for sent in standing if sent.channel is self.channels["announce"]], count)
        assert {(channel.channel_id, channel.name) for channel in channels} == {
            (den.channel_id, den.name) for den in self.channels.values() if person.id in den.members
        }

    def read_one_message(self, choice: int, which: int) -> None:
        if not self.sent:
            return
        person, sent = self.person(choice), self.sent[-1 - which % len(self.sent)]
        refusal: Reason | None = None
        if sent.deleted:
            refusal = Reason.MESSAGE_NOT_FOUND
        elif not sent.readable_by(person):
            refusal = Reason.NOT_A_READER

        found = self.outcome(lambda: self.reading.message(person.account, sent.message_id), refusal)

        assert found is None or sent.as_read(found)

    @staticmethod
    def assert_read(found: Sequence[Message | DirectMessage], expected: list[Sent], count: int) -> None:
        newest = expected[-count:]
        assert len(found) == len(newest)
        assert all(sent.as_read(each) for each, sent in zip(found, newest, strict=True))


@pytest.mark.slow
def test_the_minutes_are_right(database: str) -> None:
    class OnThisDatabase(Minutes):
        def __init__(self) -> None:
            super().__init__(database)

    run_state_machine_as_test(
        OnThisDatabase,
        settings=settings(
            deadline=None,
            max_examples=12,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
            # A conversation takes a second, so to shorten one takes minutes: for those who look into a failure,
            # add Phase.shrink.
            phases=[Phase.reuse, Phase.generate],
        ),
    )
