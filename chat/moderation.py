"""Moderation: silencing, banning, kicking and reporting people, and taking it back.

What is the case of an account is read from its own stream, `moderation-<account id>`, and decided upon at that
stream's version: so two operators at once do not ban somebody twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from chat import rules
from chat.commands import (
    Account,
    Models,
    Operators,
    generation_of,
    token_stream,
    until_settled,
    utc_now,
    whole_stream,
)
from chat.events import (
    AccountBanned,
    AccountKicked,
    AccountReported,
    AccountSilenced,
    BanRemoved,
    Event,
    SilenceRemoved,
    decode,
)
from chat.names import BOT_ID, safe_name
from chat.refusals import Reason, Refused
from eventstore.events import Context, RecordedEvent, StreamWrite
from eventstore.log import EventLog

# From what is the case of an account to the event that is to be recorded; None: nothing is to happen.
_Decision = Callable[["_Standing"], Event | None]


class Moderation:
    """The commands by which people are moderated, each of which returns the account that it was about.

    `operators` are the usernames of those who may; anybody may report. A repeat of a `command_id` changes nothing and
    is answered as the first time. They raise `Refused`, `Malformed` and `LogUnavailable`.
    """

    def __init__(
        self, log: EventLog, models: Models, operators: Iterable[str] = (), now: Callable[[], datetime] = utc_now
    ) -> None:
        self._log = log
        self._models = models
        self._operators = Operators(operators)
        self._now = now

    def is_operator(self, account: Account) -> bool:
        """Whether the account may moderate others."""
        return account in self._operators

    async def silence(
        self,
        by: Account,
        username: str,
        seconds: int,
        reason: str,
        correlation_id: str,
        command_id: str | None = None,
    ) -> Account:
        """Lets somebody write nothing for so many seconds from now on, 1 second to 365 days."""
        self._check_operator(by)
        rules.check_silence(seconds)
        rules.check_reason(reason)
        target = await self._target(username)
        silenced = rules.silence(target.account_id, seconds, reason, by.account_id)
        await self._settle(by, target, lambda _: silenced, correlation_id, command_id)
        return target

    async def remove_silence(
        self, by: Account, username: str, correlation_id: str, command_id: str | None = None
    ) -> Account:
        """Lets somebody write again before the silence is over."""
        self._check_operator(by)
        target = await self._target(username)

        def decide(standing: _Standing) -> Event:
            silenced_for = rules.silence_left(standing.silenced_until, self._now())
            return rules.remove_silence(target.account_id, by.account_id, silenced_for=silenced_for)

        await self._settle(by, target, decide, correlation_id, command_id)
        return target

    async def ban(
        self, by: Account, username: str, reason: str, correlation_id: str, command_id: str | None = None
    ) -> Account:
        """Keeps somebody out, whose token is revoked with it."""
        self._check_operator(by)
        rules.check_reason(reason)
        target = await self._target(username)

        def decide(standing: _Standing) -> Event | None:
            is_operator = self.is_operator(target)
            return rules.ban(
                target.account_id, reason, by.account_id, is_operator=is_operator, is_banned=standing.is_banned
            )

        await self._settle(by, target, decide, correlation_id, command_id)
        return target

    async def unban(self, by: Account, username: str, correlation_id: str, command_id: str | None = None) -> Account:
        """Lets somebody back in."""
        self._check_operator(by)
        target = await self._target(username)

        def decide(standing: _Standing) -> Event:
            return rules.remove_ban(target.account_id, by.account_id, is_banned=standing.is_banned)

        await self._settle(by, target, decide, correlation_id, command_id)
        return target

    async def kick(
        self, by: Account, username: str, reason: str, correlation_id: str, command_id: str | None = None
    ) -> Account:
        """Ends all connections of somebody, who may come back at once."""
        self._check_operator(by)
        rules.check_reason(reason)
        target = await self._target(username)
        kicked = AccountKicked(target.account_id, reason, by.account_id)
        await self._record(by, target, kicked, correlation_id, command_id)
        return target

    async def report(
        self, by: Account, username: str, reason: str, correlation_id: str, command_id: str | None = None
    ) -> Account:
        """Complains of somebody; anybody may."""
        rules.check_reason(reason)
        target = await self._target(username)
        reported = AccountReported(target.account_id, reason, by.account_id)
        await self._record(by, target, reported, correlation_id, command_id)
        return target

    def _check_operator(self, account: Account) -> None:
        if not self.is_operator(account):
            raise Refused(Reason.NOT_AN_OPERATOR)

    async def _target(self, username: str) -> Account:
        target = await self._models.account_by_name(safe_name(username))
        if target is None:
            raise Refused(Reason.USER_NOT_FOUND)
        if target.account_id == BOT_ID:
            raise Refused(Reason.NOT_FOR_THE_BOT)
        return target

    async def _record(
        self, by: Account, target: Account, event: Event, correlation_id: str, command_id: str | None
    ) -> None:
        """Records what holds whatever is the case."""
        write = StreamWrite(_stream(target), [event.recorded_form()], expected_version=None)
        await self._log.append(write, context=Context(by.account_id, correlation_id), command_id=command_id)

    async def _settle(
        self, by: Account, target: Account, decide: _Decision, correlation_id: str, command_id: str | None
    ) -> None:
        """Records what is decided upon the case, and decides again if that has changed meanwhile."""

        async def attempt() -> None:
            standing = _Standing(await whole_stream(self._log, _stream(target)))
            # What the command brought about is the case by now: the rules would refuse to do it again.
            if command_id is not None and command_id in standing.command_ids:
                return
            event = decide(standing)
            if event is None:
                return
            writes = [StreamWrite(_stream(target), [event.recorded_form()], expected_version=standing.version)]
            if isinstance(event, AccountBanned):
                writes.append(await self._revocation(target))
            await self._log.append(*writes, context=Context(by.account_id, correlation_id), command_id=command_id)

        await until_settled(attempt)

    async def _revocation(self, target: Account) -> StreamWrite:
        # Of one who never had a token too: a token that is being issued just now would outlive the ban.
        before = await generation_of(self._models, target.account_id)
        revoked = rules.revoke_token(target.account_id, before + 1)
        return StreamWrite(token_stream(target.account_id), [revoked.recorded_form()], expected_version=before)


class _Standing:
    """What is the case of an account by the history of its moderation."""

    def __init__(self, history: Sequence[RecordedEvent]) -> None:
        self.version = len(history)
        self.command_ids = {_command_id(event) for event in history}
        self.is_banned = False
        self.silenced_until: datetime | None = None
        for event in history:
            self._tell(event)

    def _tell(self, recorded: RecordedEvent) -> None:
        match decode(recorded):
            case AccountSilenced(seconds=seconds):
                self.silenced_until = recorded.recorded_at + timedelta(seconds=seconds)
            case SilenceRemoved():
                self.silenced_until = None
            case AccountBanned():
                self.is_banned = True
            case BanRemoved():
                self.is_banned = False


def _command_id(event: RecordedEvent) -> str | None:
    metadata: dict[str, Any] = msgspec.json.decode(event.metadata)
    return metadata.get("command_id")


def _stream(target: Account) -> str:
    return f"moderation-{target.account_id}"
