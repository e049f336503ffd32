"""FokaBot: follows the log, and answers the commands that it finds there.

Invariants:
* It begins `LOOK_BACK` before its start, so a command that was recorded just before a crash is answered after it.
* Whatever it does for a message carries a command id made of the message's position: what was done before, in an
  earlier life or by another node, is not done again.
* A message is done with before the next one is looked at. While the log is away it is tried again and again, and the
  place in the log is kept: nothing is lost.
* It never answers itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar, assert_never

import msgspec
import structlog

from bot import faq, syntax
from chat import events
from chat.commands import Account, Channel, Commands
from chat.moderation import Moderation
from chat.names import ANNOUNCE, BOT_ID, BOT_NAME
from chat.refusals import Malformed, Reason, Refused
from eventstore.backoff import Backoff
from eventstore.errors import LogUnavailable
from eventstore.events import RecordedEvent
from eventstore.log import EventLog

LOOK_BACK = timedelta(minutes=1)
HINT = "I understand commands only. Say !help, and I tell you which."
NOT_ALLOWED = "You are not allowed to do that!"

REFUSALS: dict[Reason, str] = {
    Reason.NOT_AN_OPERATOR: NOT_ALLOWED,
    Reason.USER_NOT_FOUND: "There is nobody of that name. (Spaces in names are written as _.)",
    Reason.NOT_FOR_THE_BOT: "Not with me!",
    Reason.NOT_FOR_AN_OPERATOR: "That cannot be done to an operator.",
    Reason.NOTHING_TO_UNDO: "There is nothing to undo.",
}

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_BOT = Account(BOT_ID, BOT_NAME)


class Models(Protocol):
    """What the bot asks the read models."""

    async def account_by_id(self, account_id: int) -> Account | None:
        """The account of this id."""

    async def channel_by_id(self, channel_id: int) -> Channel | None:
        """The channel of this id."""


class Times(Protocol):
    """What tells when something was recorded: the log."""

    async def head(self) -> int:
        """The last position."""

    async def event_at(self, position: int) -> RecordedEvent | None:
        """The event at this position."""


async def last_before(log: Times, moment: datetime) -> int:
    """The position of the last event that was recorded before a moment, 0 if there is none.

    It takes about as many looks as the last position has binary digits: times never fall from one position to the next.
    """
    low, high = 0, await log.head()
    while low < high:
        middle = (low + high + 1) // 2
        event = await log.event_at(middle)
        if event is not None and event.recorded_at < moment:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that the bot may have to answer: where it stands in the log, and where it was said.

    `channel` is None for a direct message to the bot.
    """

    position: int
    correlation_id: str
    sender: Account
    channel: Channel | None
    text: str

    def command_id(self, what: str) -> str:
        """The same for the same thing done because of this message, whoever does it."""
        return f"fokabot-{self.position}-{what}"


class FokaBot:
    """Answers commands; `run` is its task.

    `draw(n)` gives a number from 1 to n, `clock` the time, by which it looks back.
    """

    def __init__(
        self,
        log: EventLog,
        models: Models,
        commands: Commands,
        moderation: Moderation,
        *,
        draw: Callable[[int], int],
        clock: Callable[[], datetime],
    ) -> None:
        self._log = log
        self._models = models
        self._commands = commands
        self._moderation = moderation
        self._draw = draw
        self._clock = clock

    async def run(self) -> None:
        """Answers until cancelled."""
        since = self._clock() - LOOK_BACK
        after = await _patiently(lambda: last_before(self._log, since))
        async for batch in self._log.follow(after):
            await self._answer_all(batch)

    async def _answer_all(self, batch: Sequence[RecordedEvent]) -> None:
        for event in batch:
            if _may_be_for_the_bot(event):
                try:
                    await _patiently(lambda event=event: self._answer(event))  # type: ignore[misc]
                except Exception:  # noqa: BLE001 - told to the log, and nothing of it is lost
                    # What one message brings about must not keep the bot from all others, or end the server.
                    _log.exception("a message to the bot could not be answered", position=event.position)

    async def _answer(self, event: RecordedEvent) -> None:
        heard = await self._heard(event)
        if heard is None:
            return
        said = syntax.parse(heard.text)
        if said is not None:
            answer = await self._answer_to(heard, said)
        else:
            answer = HINT if heard.channel is None else None
        if answer is not None:
            await self._say(heard, answer)

    async def _heard(self, event: RecordedEvent) -> Heard | None:
        """The message, if it is for the bot to look at: a direct one to it, or what looks like a command."""
        sent = events.decode(event)
        channel = None
        match sent:
            case events.DirectMessageSent(recipient_id=recipient_id) if recipient_id == BOT_ID:
                pass
            case events.MessageSent(channel_id=channel_id):
                channel = await self._models.channel_by_id(channel_id)
                if channel is None:
                    return None
            case _:
                return None
        sender = None if sent.sender_id == BOT_ID else await self._models.account_by_id(sent.sender_id)
        if sender is None:
            return None
        return Heard(event.position, _correlation_id(event), sender, channel, sent.text)

    async def _answer_to(self, heard: Heard, said: syntax.Said) -> str | None:
        if said.form.for_operators and not self._moderation.is_operator(heard.sender):
            return NOT_ALLOWED
        if said.command is None:
            return f"Usage: {said.form.usage}"
        try:
            return await self._do(heard, said.command)
        except Refused as refused:
            return REFUSALS.get(refused.reason, "That cannot be done.")
        except Malformed as malformed:
            return f"That cannot be done: {malformed}."

    async def _do(self, heard: Heard, command: syntax.Command) -> str | None:
        """Does what is asked for; what there is to say about it."""
        match command:
            case syntax.Help():
                return self._help(heard.sender)
            case syntax.Roll(sides):
                return f"{heard.sender.username} rolls {self._draw(sides)} of {sides}."
            case syntax.Faq(topic):
                return faq.about(topic)
            case syntax.Alert(text):
                await self._send(ANNOUNCE, text, heard, "alert")
                return None if heard.channel and heard.channel.name == ANNOUNCE else "It is announced."
            case _:
                return await self._moderate(heard, command)

    async def _moderate(self, heard: Heard, command: syntax.Moderating) -> str:
        by, moderation = heard.sender, self._moderation
        ids = heard.correlation_id, heard.command_id("moderation")
        match command:
            case syntax.Report(username, reason):
                await moderation.report(by, username, reason, *ids)
                return "Thank you, the operators can read it now."
            case syntax.Kick(username, reason):
                return f"{(await moderation.kick(by, username, reason, *ids)).username} is kicked."
            case syntax.Silence(username, seconds, reason):
                silenced = await moderation.silence(by, username, seconds, reason, *ids)
                return f"{silenced.username} is silenced for {seconds} seconds."
            case syntax.RemoveSilence(username):
                return f"{(await moderation.remove_silence(by, username, *ids)).username} may write again."
            case syntax.Ban(username, reason):
                return f"{(await moderation.ban(by, username, reason, *ids)).username} is banned."
            case syntax.Unban(username):
                return f"{(await moderation.unban(by, username, *ids)).username} may come back."
            case _:
                assert_never(command)

    def _help(self, sender: Account) -> str:
        is_operator = self._moderation.is_operator(sender)
        lines = [form.usage for form in syntax.FORMS.values() if is_operator or not form.for_operators]
        return "\n".join(["I understand:", *lines])

    async def _say(self, heard: Heard, text: str) -> None:
        """Answers where the message came from."""
        if heard.channel is not None:
            await self._send(heard.channel.name, text, heard, "answer")
            return
        try:
            await self._commands.send_direct_message(
                _BOT, heard.sender.username, text, heard.correlation_id, heard.command_id("answer")
            )
        except Refused as refused:
            # Who asked was erased meanwhile, and nobody waits for the answer.
            if refused.reason is not Reason.USER_NOT_FOUND:
                raise

    async def _send(self, channel: str, text: str, heard: Heard, what: str) -> None:
        await self._commands.send_message(_BOT, channel, text, heard.correlation_id, heard.command_id(what))


# What the data of such events has in it, being canonical JSON: finding that it is not there is much cheaper than
# decoding every message of the house.
_COMMAND = b'"text":"%b' % syntax.PREFIX.encode()
_TO_THE_BOT = b'"recipient_id":%d,' % BOT_ID


def _may_be_for_the_bot(event: RecordedEvent) -> bool:
    """Whether it is worth a look; an erased one is not."""
    if event.data is None:
        return False
    if event.type == events.MessageSent.__name__:
        return _COMMAND in event.data
    return event.type == events.DirectMessageSent.__name__ and _TO_THE_BOT in event.data


class _Metadata(msgspec.Struct):
    correlation_id: str


def _correlation_id(event: RecordedEvent) -> str:
    """What the message was sent in the course of: what the bot does about it belongs to the same."""
    return msgspec.json.decode(event.metadata, type=_Metadata).correlation_id


async def _patiently(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """The outcome of an attempt, which is repeated while the log is away."""
    backoff = Backoff()
    while True:
        await backoff.pause()
        try:
            return await attempt()
        except LogUnavailable as error:
            _log.warning("FokaBot waits for the log", error=str(error))
