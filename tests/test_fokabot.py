"""FokaBot: what can be said to it, what it answers, and that it answers everything once, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

import projections
from bot import faq, syntax
from bot.fokabot import HINT, LOOK_BACK, FokaBot, last_before
from bot.syntax import Alert, Ban, Command, Faq, Help, Kick, RemoveSilence, Report, Roll, Silence, Unban
from chat import events
from chat.commands import Account, Commands, utc_now
from chat.events import decode
from chat.moderation import Moderation
from chat.names import BOT_ID, BOT_NAME, safe_name
from chat.passwords import PasswordHasher
from chat.rules import TEXT_LENGTH
from eventstore.errors import LogUnavailable
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from handlers.services import Services
from projections.models import ReadModels
from tests.conftest import OPERATOR, SECRET, on_loop
from tests.servers import Server
from tests.servers import until as until_true
from tests.tables import Outage
from tests.test_ops import away
from tests.v3client import Person, World, fresh, own_loop, own_world, texts, until

NOT_ALLOWED = "You are not allowed to do that!"
BOT = Account(BOT_ID, BOT_NAME)

# --- What can be said ------------------------------------------------------------------------------------------------

OPERATORS_ONLY = {"alert", "kick", "silence", "removesilence", "ban", "unban"}


def command_in(text: str) -> Command | None:
    said = syntax.parse(text)
    return None if said is None else said.command


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("!help", Help()),
        ("!HELP me, please", Help()),
        ("!roll", Roll(100)),
        ("!roll 6", Roll(6)),
        ("!Roll\t 1000000000 ", Roll(1_000_000_000)),
        ("!faq", Faq(None)),
        ("!faq Rules", Faq("rules")),
        ("!report some_body is  rude\nto me", Report("some_body", "is  rude\nto me")),
        ("!alert  we   restart soon ", Alert("we   restart soon")),
        ("!kick Bob", Kick("Bob", "")),
        ("!kick Bob too  loud", Kick("Bob", "too  loud")),
        ("!silence Bob 90 s swears", Silence("Bob", 90, "swears")),
        ("!silence Bob 10 M swears", Silence("Bob", 600, "swears")),
        ("!silence Bob 2 h swears a lot", Silence("Bob", 7200, "swears a lot")),
        ("!silence Bob 1 d swears", Silence("Bob", 86_400, "swears")),
        ("!removesilence Bob", RemoveSilence("Bob")),
        ("!ban Bob", Ban("Bob", "")),
        ("!ban Bob was warned", Ban("Bob", "was warned")),
        ("!unban Bob", Unban("Bob")),
    ],
)
def test_a_command_is_understood(text: str, command: Command) -> None:
    assert command_in(text) == command


@pytest.mark.parametrize(
    "text",
    [
        "!roll 0",
        "!roll -5",
        "!roll 1000000001",
        "!roll 6 6",
        "!roll six",
        "!roll ٣",
        "!roll " + "9" * 3000,
        "!report",
        "!report Bob",
        "!alert",
        "!alert   ",
        "!kick",
        "!silence Bob",
        "!silence Bob 10 m",
        "!silence Bob ten m swears",
        "!silence Bob 10 y swears",
        "!silence Bob -1 m swears",
        "!silence Bob " + "9" * 3000 + " m swears",
        "!removesilence",
        "!removesilence Bob now",
        "!ban",
        "!unban Some Body",
    ],
)
def test_wrong_arguments_are_told_from_an_unknown_command(text: str) -> None:
    said = syntax.parse(text)

    assert said is not None
    assert said.command is None
    assert said.form.usage.startswith(text.split(maxsplit=1)[0])


@pytest.mark.parametrize(
    "text", ["", "!", "!!", "! help", "help", " !help", "!helpme", "what?!help", "\n!help", "¡help"]
)
def test_what_names_no_command_is_none(text: str) -> None:
    assert syntax.parse(text) is None


def test_only_operators_may_moderate_and_announce() -> None:
    assert {name for name, form in syntax.FORMS.items() if form.for_operators} == OPERATORS_ONLY


# Any text, and texts that are nearly commands.
PIECES = st.sampled_from(
    [*syntax.FORMS, *syntax.SECONDS, "!", " ", "\t", "\n", "Bob", "10", "0", "-1", "rules", "٣", "é"]
)
TEXTS = st.text(max_size=60) | st.lists(PIECES, max_size=12).map("".join).map("!{}".format)


@given(text=TEXTS)
def test_no_text_is_more_than_a_command_a_mistake_or_nothing(text: str) -> None:
    said = syntax.parse(text)

    if said is None:
        words = text.split()
        assert not (words and text.startswith("!") and words[0][1:].lower() in syntax.FORMS)
    else:
        assert syntax.FORMS[text[1:].split()[0].lower()] is said.form


WORDS = st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=20)
REASONS = st.text(st.characters(exclude_categories=["Cs"]), max_size=100).map(str.strip)
SPACE = st.text(" \t", min_size=1, max_size=3)


def words_of(command: Command) -> list[str]:
    """The words of a command, as the usage has them."""
    match command:
        case Help():
            return ["help"]
        case Roll(sides):
            return ["roll", str(sides)]
        case Faq(topic):
            return ["faq", topic or ""]
        case Alert(text):
            return ["alert", text]
        case Silence(username, seconds, reason):
            return ["silence", username, str(seconds), "s", reason]
        case Report(username, reason) | Kick(username, reason) | Ban(username, reason):
            return [type(command).__name__.lower(), username, reason]
        case RemoveSilence(username) | Unban(username):
            return [type(command).__name__.lower(), username]


def written(command: Command, space: str, *, shout: bool) -> str:
    """The command as somebody writes it."""
    name, *arguments = words_of(command)
    return "!" + space.join([name.upper() if shout else name, *arguments])


@given(
    command=st.builds(Roll, st.integers(1, syntax.MOST_SIDES))
    | st.builds(Faq, st.none() | WORDS.map(str.lower))
    | st.builds(Alert, REASONS.filter(bool))
    | st.builds(Report, WORDS, REASONS.filter(bool))
    | st.builds(Kick, WORDS, REASONS)
    | st.builds(Ban, WORDS, REASONS)
    | st.builds(Silence, WORDS, st.integers(0, 9_999_999_999), REASONS.filter(bool))
    | st.builds(RemoveSilence, WORDS)
    | st.builds(Unban, WORDS)
    | st.builds(Help),
    space=SPACE,
    shout=st.booleans(),
)
def test_what_is_written_as_the_usage_says_is_understood_as_it_was_meant(
    command: Command, space: str, shout: bool
) -> None:
    assert command_in(written(command, space, shout=shout)) == command


def test_every_answer_of_the_faq_and_its_list_fit_into_a_message() -> None:
    texts = [faq.about(topic) for topic in (None, "no such topic", *faq.TOPICS)]

    assert len(set(texts)) == len(texts)
    assert all(1 <= len(text) <= TEXT_LENGTH for text in texts)
    assert all(topic in faq.about(None) and topic in faq.about("what?") for topic in faq.TOPICS)


def test_the_faq_has_what_is_asked_for_most() -> None:
    assert {"rules", "swearing", "spam", "offend", "github", "discord"} <= faq.TOPICS.keys()
    assert all(topic == topic.lower() and topic.split() == [topic] for topic in faq.TOPICS)


# --- A world with a bot in it ----------------------------------------------------------------------------------------


class Dice:
    """Draws what a test wants, and keeps note of how often."""

    def __init__(self, value: int = 4) -> None:
        self.value = value
        self.drawn: list[int] = []

    def __call__(self, sides: int) -> int:
        self.drawn.append(sides)
        return self.value


@asynccontextmanager
async def running(
    log: EventLog, models: ReadModels, commands: Commands, dice: Dice, clock: Callable[[], datetime] = utc_now
) -> AsyncIterator[None]:
    """A bot runs until this ends; it must not end by itself."""
    bot = FokaBot(log, models, commands, Moderation(log, models, [OPERATOR]), draw=dice, clock=clock)
    task = asyncio.create_task(bot.run())
    try:
        yield
    finally:
        over = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert not over


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
    yield from own_world(io_loop, cluster)


@pytest.fixture(scope="module")
def dice() -> Dice:
    return Dice()


@pytest.fixture(scope="module")
def bot(io_loop: IOLoop, world: World, dice: Dice) -> Iterator[None]:
    """A bot that runs while the module's tests do."""
    manager = running(world.log, world.services.models, world.commands, dice)
    io_loop.run_sync(manager.__aenter__)
    yield
    io_loop.run_sync(lambda: manager.__aexit__(None, None, None))


Read = Callable[[], Awaitable[list[dict[str, str]]]]


async def answers(read: Read, count: int, within: float = 10.0) -> list[str]:
    """What FokaBot said, as soon as that is so many messages."""
    async with asyncio.timeout(within):
        while True:
            said = texts([message for message in await read() if message["sender"] == BOT_NAME])
            if len(said) >= count:
                return said
            await asyncio.sleep(0.01)


async def asked(person: Person, *said: str, channel: str | None = None) -> list[str]:
    """What FokaBot answers to these texts in a channel, each of which must get one answer."""
    channel = channel or await person.makes()
    before = len(await answers(lambda: person.reads(channel), 0))
    for text in said:
        await person.sends(channel, text)
    return (await answers(lambda: person.reads(channel), before + len(said)))[before:]


async def told(person: Person, *said: str) -> list[str]:
    """What FokaBot answers to these direct messages, each of which must get one answer."""
    for text in said:
        sent = await person.does("senddm", username=BOT_NAME, message=text)
        assert sent.status == 200, sent
    return await answers(person.dms, len(said))


async def account(world: World, person: Person) -> Account:
    found = await world.services.models.account_by_name(safe_name(person.username))
    assert found is not None
    return found


async def moderated(world: World, person: Person) -> list[events.Event | None]:
    """What was recorded of somebody's moderation."""
    return [
        decode(each) for each in await world.log.read_stream(f"moderation-{(await account(world, person)).account_id}")
    ]


# --- For everyone ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_help_lists_what_everyone_may_say(world: World, bot: None) -> None:
    ann = await world.person()

    [answer] = await asked(ann, "!help")

    usages = {name: form.usage for name, form in syntax.FORMS.items()}
    assert {name for name, usage in usages.items() if usage in answer} == syntax.FORMS.keys() - OPERATORS_ONLY


@pytest.mark.gen_test
async def test_help_lists_everything_for_operators(world: World, bot: None) -> None:
    [answer] = await asked(await world.operator(), "!help")

    assert all(form.usage in answer for form in syntax.FORMS.values())


@pytest.mark.gen_test
async def test_roll_draws_from_as_many_as_are_asked_for(world: World, bot: None, dice: Dice) -> None:
    ann = await world.person()
    dice.drawn.clear()

    said = await asked(ann, "!roll 6", "!roll")

    assert said == [f"{ann.username} rolls 4 of 6.", f"{ann.username} rolls 4 of 100."]
    assert dice.drawn == [6, 100]


@pytest.mark.gen_test
async def test_the_faq_is_told(world: World, bot: None) -> None:
    said = await asked(await world.person(), "!faq rules", "!faq", "!FAQ Spam", "!faq the weather")

    assert said == [faq.TOPICS["rules"], faq.about(None), faq.TOPICS["spam"], faq.about("the weather")]


@pytest.mark.gen_test
async def test_a_report_is_recorded_for_the_operators(world: World, bot: None) -> None:
    ann, bob = await world.person(), await world.v3.person(fresh("Some Body "))

    said = await asked(ann, f"!report {bob.username.upper().replace(' ', '_')} was  rude")

    assert said == ["Thank you, the operators can read it now."]
    ids = [(await account(world, each)).account_id for each in (bob, ann)]
    assert await moderated(world, bob) == [events.AccountReported(ids[0], "was  rude", ids[1])]


@pytest.mark.gen_test
async def test_a_command_in_a_direct_message_is_answered_by_one(world: World, bot: None) -> None:
    ann = await world.person()

    assert await told(ann, "!roll 6", "!roll none") == [f"{ann.username} rolls 4 of 6.", "Usage: !roll [n]"]


@pytest.mark.parametrize("text", ["hello", "!what is that", "!", "help", " !help"])
@pytest.mark.gen_test
async def test_a_direct_message_that_is_no_command_gets_a_hint(world: World, bot: None, text: str) -> None:
    assert await told(await world.person(), text) == [HINT]
    assert "!help" in HINT


@pytest.mark.gen_test
async def test_what_is_no_command_gets_no_answer_in_a_channel(world: World, bot: None) -> None:
    ann = await world.person()
    channel = await ann.makes()
    for text in ("hello FokaBot", "!", "!unknown", "! roll", "say !roll", " !roll", "!!roll"):
        await ann.sends(channel, text)

    # Messages are answered in their order: had one of them been, it would be before this.
    assert await asked(ann, "!roll", channel=channel) == [f"{ann.username} rolls 4 of 100."]
    assert len(await answers(lambda: ann.reads(channel), 1)) == 1


@pytest.mark.gen_test
async def test_it_never_answers_itself(world: World, bot: None) -> None:
    ann = await world.person()
    channel = await ann.makes()
    await world.commands.send_message(BOT, channel, "!roll", "test")
    before = await world.log.head()
    for text in ("!roll", "hello"):
        await world.commands.send_direct_message(BOT, BOT_NAME, text, "test")

    await asked(ann, "!roll", channel=channel)

    assert await answers(lambda: ann.reads(channel), 1) == ["!roll", f"{ann.username} rolls 4 of 100."]
    direct = [event for event in await world.log.read(after=before) if event.type == "DirectMessageSent"]
    assert len(direct) == 2


@pytest.mark.gen_test
async def test_an_answer_belongs_to_the_request_that_asked(world: World, bot: None) -> None:
    ann, bob = await world.person(), await world.person()
    before = await world.log.head()
    channel = await ann.makes()

    sent = await ann.does("sendmessage", channel=channel, message=f"!report {bob.username} rude")
    await answers(lambda: ann.reads(channel), 1)

    caused = [
        (event.type, msgspec.json.decode(event.metadata)["actor"])
        for event in await world.log.read(after=before)
        if sent.request_id in event.metadata.decode()
    ]
    ann_id = (await account(world, ann)).account_id
    assert caused == [("MessageSent", ann_id), ("AccountReported", ann_id), ("MessageSent", BOT_ID)]


# --- For operators ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_operators_moderate(world: World, bot: None) -> None:
    operator, bob = await world.operator(), await world.v3.person(fresh("Some Body "))
    name = bob.username.lower().replace(" ", "_")

    said = await asked(
        operator,
        f"!kick {name}",
        f"!silence {name} 2 m swears a lot",
        f"!removesilence {name}",
        f"!ban {name} was  warned",
        f"!unban {name}",
    )

    assert said == [
        f"{bob.username} is kicked.",
        f"{bob.username} is silenced for 120 seconds.",
        f"{bob.username} may write again.",
        f"{bob.username} is banned.",
        f"{bob.username} may come back.",
    ]
    his, by = [(await account(world, each)).account_id for each in (bob, operator)]
    assert await moderated(world, bob) == [
        events.AccountKicked(his, "", by),
        events.AccountSilenced(his, 120, "swears a lot", by),
        events.SilenceRemoved(his, by),
        events.AccountBanned(his, "was  warned", by),
        events.BanRemoved(his, by),
    ]


@pytest.mark.gen_test
async def test_operators_announce(world: World, bot: None) -> None:
    operator, text = await world.operator(), fresh("News ")

    assert await asked(operator, f"!alert {text}") == ["It is announced."]
    assert (await operator.newest("announce"))["message"] == text
    # There, the announcement itself is the answer.
    await operator.sends("announce", f"!alert again: {text}")
    await asked(operator, "!roll")
    newest = await operator.reads("announce", 2)
    assert [(each["sender"], each["message"]) for each in newest] == [
        (OPERATOR, f"!alert again: {text}"),
        (BOT_NAME, f"again: {text}"),
    ]


@pytest.mark.parametrize(
    "command", ["alert x", "alert", "kick {}", "silence {} 1 m x", "silence", "ban {}", "unban {}"]
)
@pytest.mark.gen_test
async def test_nobody_else_may(world: World, bot: None, command: str) -> None:
    ann, bob = await world.person(), await world.person()
    text = "!" + command.format(bob.username)

    assert (await asked(ann, text), await told(ann, text)) == ([NOT_ALLOWED], [NOT_ALLOWED])
    assert await moderated(world, bob) == []


@pytest.mark.parametrize("name", ["roll", "report", *sorted(OPERATORS_ONLY)])
@pytest.mark.gen_test
async def test_wrong_arguments_are_answered_by_the_usage(world: World, bot: None, name: str) -> None:
    wrong = f"!{name} x y z" if name in ("roll", "removesilence", "unban") else f"!{name}"

    assert await asked(await world.operator(), wrong) == [f"Usage: {syntax.FORMS[name].usage}"]


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("kick nobody_at_all", "There is nobody of that name. (Spaces in names are written as _.)"),
        ("report nobody_at_all x", "There is nobody of that name. (Spaces in names are written as _.)"),
        ("ban fokabot", "Not with me!"),
        (f"ban {OPERATOR}", "That cannot be done to an operator."),
        ("unban {}", "There is nothing to undo."),
        ("removesilence {}", "There is nothing to undo."),
        ("silence {} 366 d x", "That cannot be done: seconds: must be 1 to 31,536,000."),
        ("silence {} 0 s x", "That cannot be done: seconds: must be 1 to 31,536,000."),
        ("kick {} " + "x" * 501, "That cannot be done: reason: must be at most 500 characters long."),
    ],
)
@pytest.mark.gen_test
async def test_what_is_refused_is_told_why(world: World, bot: None, command: str, answer: str) -> None:
    bob = await world.person()

    assert await asked(await world.operator(), "!" + command.format(bob.username)) == [answer]
    assert await moderated(world, bob) == []


# --- Once, whatever happens ------------------------------------------------------------------------------------------


class Stage:
    """A log of its own with two people and a channel, and a bot that a test starts and stops."""

    def __init__(self, log: EventLog, services: Services) -> None:
        self.log = log
        self.commands = services.commands
        self.models = services.models
        self.channel = "den"

    async def set_up(self) -> None:
        for name in (OPERATOR, "Bob"):
            await self.commands.register(name, "Passw0rd!", "test")
        await self.commands.make_channel(await self.account(OPERATOR), self.channel, "test")

    async def account(self, name: str) -> Account:
        found = await self.models.account_by_name(safe_name(name))
        assert found is not None
        return found

    async def says(self, *said: str) -> None:
        for text in said:
            await self.commands.send_message(await self.account(OPERATOR), self.channel, text, "test")

    async def answers(self, count: int) -> list[str]:
        """What the bot said, as soon as that is so many messages."""
        channel = await self.models.channel_by_name(self.channel)
        assert channel is not None

        async def read() -> list[dict[str, str]]:
            newest = await self.models.messages.newest_in_channel(channel, 1000)
            return [{"sender": each.sender, "message": each.text} for each in newest]

        return await answers(read, count, within=20)

    async def of_type(self, kind: type[events.Event]) -> int:
        return len([event for event in await self.log.read(limit=100_000) if event.type == kind.__name__])

    async def answers_when_back(self, count: int) -> list[str]:
        """As `answers`, and until then the log may be away."""
        await until(lambda: self.log.ready, "the log is there again")
        return await self.answers(count)

    def running(
        self, dice: Dice | None = None, clock: Callable[[], datetime] = utc_now
    ) -> AbstractAsyncContextManager[None]:
        return running(self.log, self.models, self.commands, dice or Dice(), clock)


@pytest.fixture
def stage(io_loop: IOLoop, log: EventLog, services: Services) -> Stage:
    made = Stage(log, services)
    on_loop(io_loop, made.set_up)
    return made


@pytest.mark.gen_test
async def test_what_was_said_before_it_started_is_answered_if_it_is_not_long_ago(stage: Stage) -> None:
    await stage.says("!roll 6")
    later = utc_now() + LOOK_BACK

    async with stage.running(clock=lambda: later):
        await stage.says("!roll 7")
        late = await stage.answers(1)
    async with stage.running():
        in_time = await stage.answers(2)

    assert late == [f"{OPERATOR} rolls 4 of 7."]
    assert in_time == [f"{OPERATOR} rolls 4 of 7.", f"{OPERATOR} rolls 4 of 6."]


@pytest.mark.gen_test
async def test_what_was_done_is_not_done_again_by_one_that_starts_anew(stage: Stage) -> None:
    said = ["!roll", "!kick bob", "!ban bob", "!unban bob", "!silence bob 1 h x", "!removesilence bob", "!alert x"]
    async with stage.running(Dice(1)):
        await stage.says(*said, "!report bob x", "!unban bob")
        before = await stage.answers(len(said) + 2)
    recorded = await stage.log.head()

    dice = Dice(2)
    async with stage.running(dice):
        await stage.says("!roll 3")
        after = await stage.answers(len(before) + 1)

    assert after == [*before, f"{OPERATOR} rolls 2 of 3."]
    # It came by what was asked first, drew anew for it, and could not record that.
    assert dice.drawn == [100, 3]
    assert await stage.log.head() == recorded + 2


@pytest.mark.gen_test
async def test_several_nodes_answer_once(stage: Stage, database: str) -> None:
    dice, others = Dice(1), Dice(2)
    commands = ["!roll", "!ban bob", "!unban bob", "!silence bob 1 h x", "!removesilence bob", "!report bob x"] * 5

    async with as_node(database) as node, stage.running(dice), running(*node, others):
        await stage.says(*commands)
        await until(lambda: len(dice.drawn) == len(others.drawn) == 5, "both have seen every command")
        # What comes last is answered last, by both.
        await stage.says("!roll 2")
        await until(lambda: dice.drawn[-1:] == others.drawn[-1:] == [2], "both have come to the end")
        said = await stage.answers(len(commands) + 1)

    rolls = [text for text in said if "rolls" in text]
    assert len(said) == len(commands) + 1
    assert len(rolls) == 6
    assert said[1:6] == [
        "Bob is banned.",
        "Bob may come back.",
        "Bob is silenced for 3600 seconds.",
        "Bob may write again.",
        "Thank you, the operators can read it now.",
    ]
    assert said[1:6] * 5 == [text for text in said if "rolls" not in text]
    kinds = (events.AccountBanned, events.BanRemoved, events.AccountSilenced, events.AccountReported)
    assert [await stage.of_type(kind) for kind in kinds] == [5] * 4


@asynccontextmanager
async def as_node(database: str) -> AsyncIterator[tuple[EventLog, ReadModels, Commands]]:
    """Another process's view of the same log."""
    passwords = PasswordHasher(cost=4)
    async with EventLog(database, projections.ALL) as log:
        models = ReadModels(log)
        yield log, models, Commands(log, models, passwords, SECRET, operators=[OPERATOR])
    passwords.close()


class Cut(Dice):
    """Loses the database at the first draw: in the midst of a command."""

    def __init__(self, outage: Outage) -> None:
        super().__init__()
        self._outage = outage

    def __call__(self, sides: int) -> int:
        if not self.drawn:
            self._outage.begin()
        return super().__call__(sides)


@pytest.mark.gen_test
async def test_nothing_is_lost_when_the_log_is_lost_in_the_midst_of_it(stage: Stage, outage: Outage) -> None:
    dice = Cut(outage)
    await stage.says(*(f"!roll {number}" for number in range(1, 6)))

    async with stage.running(dice):
        await until(lambda: len(dice.drawn) >= 3, "it tries again")
        tried = list(dice.drawn)
        outage.end()
        said = await stage.answers_when_back(5)

    assert set(tried) == {1}
    assert said == [f"{OPERATOR} rolls 4 of {number}." for number in range(1, 6)]


@pytest.mark.gen_test
async def test_it_can_be_started_while_the_log_is_away(stage: Stage, outage: Outage) -> None:
    await stage.says("!roll 6")

    with capture_logs() as logged:
        with away(outage):
            bot = stage.running()
            await bot.__aenter__()
            await until(
                lambda: [line for line in logged if line["event"] == "FokaBot waits for the log"] != [], "it waits"
            )
        said = await stage.answers_when_back(1)
        await bot.__aexit__(None, None, None)

    assert said == [f"{OPERATOR} rolls 4 of 6."]


@pytest.mark.gen_test
async def test_whatever_breaks_every_command_is_answered_once(stage: Stage, outage: Outage) -> None:
    async with stage.running():
        for number in range(1, 31):
            if number % 10 == 0:
                outage.end_connections()
            await say_until_recorded(stage, f"!roll {number}")
        said = await stage.answers_when_back(30)

    assert said == [f"{OPERATOR} rolls 4 of {number}." for number in range(1, 31)]


async def say_until_recorded(stage: Stage, text: str) -> None:
    """Says something once, however often that has to be tried."""
    async with asyncio.timeout(10):
        while True:
            try:
                operator = await stage.account(OPERATOR)
                await stage.commands.send_message(operator, stage.channel, text, "test", text)
            except LogUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.slow
def test_what_was_said_just_before_a_crash_is_answered_after_it(start_server: Callable[..., Server]) -> None:
    server = start_server()
    with server.client() as client:
        token = client.enrol("Ann")
        client.must("makechannel", token=token, name="den")
        for number in range(1, 31):
            client.must("sendmessage", token=token, channel="den", message=f"!roll {number}")
    server.kill()
    server.start()

    with server.client() as client:

        def rolled() -> list[str]:
            return [text.partition(" of ")[2] for text in client.texts(token, "den") if " rolls " in text]

        client.must("sendmessage", token=token, channel="den", message="!roll 31")
        # What was said last is answered last: until then, everything has been answered that ever will be.
        until_true(lambda: rolled()[-1:] == ["31."], "all commands are answered")
        assert rolled() == [f"{number}." for number in range(1, 32)]


@given(
    seconds=st.lists(st.integers(0, 20), max_size=40).map(sorted),
    moment=st.integers(-1, 21),
)
def test_the_place_to_begin_at_is_behind_everything_older(seconds: list[int], moment: int) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)

    class Recorded:
        async def head(self) -> int:
            return len(seconds)

        async def event_at(self, position: int) -> RecordedEvent | None:
            at = begin + timedelta(seconds=seconds[position - 1])
            return RecordedEvent(position, "stream", position, "Type", b"{}", b"{}", at)

    found = asyncio.run(last_before(Recorded(), begin + timedelta(seconds=moment)))

    assert found == len([each for each in seconds if each < moment])
