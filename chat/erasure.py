"""Erasure: what somebody said, or everything that an account said and was called, goes from the log for ever.

Invariants:
* What is erased, the `Erased` event that says so, and the read models change in one transaction.
* An account's name, password and token go first, so nothing new can come of it; what it said follows in chunks. If that
  is interrupted, doing it again by the account's id erases the rest.
* The account's id stays, with where and when it was connected, and with what others wrote to it. Its name is never
  given again: the stream that claimed it, which is called by a digest of it, is still there.
* Which messages on Discord are copies of what is erased stays known, so that they can be removed there; it is told by
  ids alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from chat import rules
from chat.commands import Account, Models, account_stream, generation_of, token_stream, until_settled, whole_stream
from chat.events import Erased
from chat.names import BOT_ID, safe_name
from chat.refusals import Malformed, Reason, Refused
from eventstore.erasure import ERASED, MAX_POSITIONS
from eventstore.events import Context, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog

_RANGE = 20_000
# A request of the account's that was let in just before its end is recorded by then.
UNDER_WAY_SECONDS = 1.0
# By which of its events something is named that has a stream of its own.
_NAMING = ("MessageSent", "DirectMessageSent", "DiscordMessageRequested", "DiscordUserSeen")
# What holds ids alone.
_KEPT = frozenset(
    {
        ERASED,
        "DiscordMessageReceived",
        "DiscordMessageDelivered",
        "DiscordMessageFailed",
        "DiscordMessageWithdrawn",
    }
)

# Called with the position up to which the log was looked through, and the one that is to be reached.
Progress = Callable[[int, int], None]


class Trace(msgspec.Struct, frozen=True):
    """An event that somebody left: where it stands, in the course of which request, and whether it is erased."""

    position: int
    correlation_id: str
    is_erased: bool


class Outcome(msgspec.Struct, frozen=True):
    """What was erased: how many events, and the positions of the events that say so.

    `mentions` are the positions of others' events whose words hold the account's name.
    """

    account_id: int | None
    message_id: int | None
    erased: int
    recorded: tuple[int, ...]
    mentions: tuple[int, ...] = ()


class ErasureModels(Models, Protocol):
    """What erasing asks the read models."""

    async def account_by_id(self, account_id: int) -> Account | None:
        """The account of this id, unless it was erased."""

    async def is_known(self, account_id: int) -> bool:
        """Whether there is or was an account of this id."""


class Traces(Protocol):
    """What erasing asks the log, always of the events behind `after` up to `through`."""

    async def of_account(self, account_id: int, after: int, through: int) -> list[Trace]:
        """An account's own events; of those that are erased, what it sent."""

    async def of_bot(self, after: int, through: int) -> list[Trace]:
        """What the bot said and is not erased."""

    async def speaking_of(self, username: str, safe: str, after: int, through: int) -> list[int]:
        """What holds a name in one of two forms."""


class Erasure:
    """The commands that erase. `reason` and `erased_by` are kept for ever, so they must not name who is erased.

    They raise `Refused` and `Malformed`, `LogError` for what the log refuses, and `LogUnavailable`. `under_way` is how
    many seconds after an account's end the last of what it said may be recorded.
    """

    def __init__(
        self, log: EventLog, models: ErasureModels, traces: Traces, *, under_way: float = UNDER_WAY_SECONDS
    ) -> None:
        self._log = log
        self._models = models
        self._traces = traces
        self._under_way = under_way

    async def find(self, username: str) -> Account:
        """The account of this name."""
        account = await self._models.account_by_name(safe_name(username))
        if account is None:
            raise Refused(Reason.USER_NOT_FOUND)
        return account

    async def erase_message(self, message_id: int, reason: str, erased_by: str) -> Outcome:
        """Erases a message of either kind, deleted or not, with its edits and its deletion; or a text to Discord.

        Or what is known of somebody on Discord, named by where they were seen: who have no account need that.
        """
        _check_words(None, reason, erased_by)

        async def attempt() -> Outcome:
            first = await self._log.event_at(message_id)
            if first is None or first.type not in _NAMING:
                raise Refused(Reason.MESSAGE_NOT_FOUND)
            history = await whole_stream(self._log, first.stream)
            positions = tuple(event.position for event in history if event.type not in _KEPT and event.data is not None)
            if not positions:
                raise Refused(Reason.ALREADY_ERASED)
            # It may have been named by the delivery that it is.
            beginning = history[0].position
            erased = Erased(None, beginning, positions, reason, erased_by)
            write = StreamWrite(first.stream, [erased.recorded_form()], expected_version=len(history))
            recorded = await self._log.append(write, context=_context())
            return Outcome(None, beginning, len(positions), (recorded.first_position,))

        return await until_settled(attempt)

    async def erase_account(
        self, account_id: int, reason: str, erased_by: str, progress: Progress | None = None
    ) -> Outcome:
        """Erases an account, or what is left of one whose erasure was interrupted."""
        account = await self._models.account_by_id(account_id)
        if account_id == BOT_ID:
            raise Refused(Reason.NOT_FOR_THE_BOT)
        if account is None and not await self._models.is_known(account_id):
            raise Refused(Reason.USER_NOT_FOUND)
        _check_words(account, reason, erased_by)
        search = _Search(self._traces, account_id, account, progress)
        recorded: list[int] = []
        while positions := await search.go_on(await self._log.head()):
            for chunk in _chunks(positions):
                erased = Erased(account_id, None, chunk, reason, erased_by)
                recorded.append(await self._erase_chunk(erased, revoke=account is not None and not recorded))
            await asyncio.sleep(self._under_way)
        if not recorded:
            raise Refused(Reason.ALREADY_ERASED)
        return Outcome(account_id, None, len(search.found), tuple(recorded), tuple(search.mentions))

    async def _erase_chunk(self, erased: Erased, *, revoke: bool) -> int:
        """Records one event of an account's erasure; the first one goes with the end of its token."""
        assert erased.account_id is not None  # noqa: S101 - it is an account's
        account_id = erased.account_id
        write = StreamWrite(account_stream(account_id), [erased.recorded_form()], expected_version=None)

        async def attempt() -> int:
            writes = [write]
            if revoke:
                # Of one who never had a token too: one that is being issued just now would outlive the account.
                before = await generation_of(self._models, account_id)
                revoked = rules.revoke_token(account_id, before + 1)
                writes.append(StreamWrite(token_stream(account_id), [revoked.recorded_form()], expected_version=before))
            return (await self._log.append(*writes, context=_context())).first_position

        return await until_settled(attempt)


class _Search:
    """Looks the log through for what an account left, from its beginning on and then from where it came to."""

    def __init__(self, traces: Traces, account_id: int, account: Account | None, progress: Progress | None) -> None:
        self.found: set[int] = set()
        self.mentions: list[int] = []
        self._traces = traces
        self._account_id = account_id
        self._account = account
        self._progress = progress
        self._requests: set[str] = set()
        self._after = 0

    async def go_on(self, head: int) -> list[int]:
        """The positions of what belongs to the account up to `head`, ascending: so its name is among the first."""
        fresh: list[int] = []
        while self._after < head:
            through = min(self._after + _RANGE, head)
            fresh += await self._look(self._after, through)
            self._after = through
            if self._progress is not None:
                self._progress(through, head)
        return fresh

    async def _look(self, after: int, through: int) -> list[int]:
        own = await self._traces.of_account(self._account_id, after, through)
        self._requests |= {trace.correlation_id for trace in own}
        # What the bot answers to somebody repeats their name and their words, and is no one else's.
        answers = [trace for trace in await self._traces.of_bot(after, through) if self._is_answer(trace)]
        fresh = {trace.position for trace in (*own, *answers) if not trace.is_erased}
        self.found |= fresh
        if self._account is not None:
            name = self._account.username
            speaking = await self._traces.speaking_of(name, safe_name(name), after, through)
            self.mentions += [each for each in speaking if each not in self.found and each not in self.mentions]
        return sorted(fresh)

    def _is_answer(self, trace: Trace) -> bool:
        return trace.correlation_id in self._requests


def _check_words(account: Account | None, reason: str, erased_by: str) -> None:
    for field, words in (("reason", reason), ("by", erased_by)):
        rules.check_reason(words, field)
        if account is not None and _holds_name(words, account.username):
            raise Malformed(field, "must not hold the account's name, since it is kept for ever")


def _holds_name(words: str, username: str) -> bool:
    """Whether a name stands among words; within a longer word it is none."""
    spoken, name = (safe_name(text).replace("_", " ") for text in (words, username))
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", spoken) is not None


def _chunks(positions: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(positions[start : start + MAX_POSITIONS]) for start in range(0, len(positions), MAX_POSITIONS)]


def _context() -> Context:
    return Context(None, f"erasure-{new_id()}")
