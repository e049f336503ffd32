"""The commands: load, decide, append, and again if somebody else was faster.

Here the rules meet the log, and in `chat.connections` and `chat.moderation`. Every adapter calls these, and nobody
else appends. What a command must know it asks the read models (`Models`), which `projections` provides; the log itself
is the arbiter: a name is claimed by being first in its stream, a token or a deletion by its stream's version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol, TypeVar

import msgspec

from chat import events, rules
from chat.names import ANNOUNCE, BOT_ID, BOT_NAME, NameStreams, channel_name, safe_name
from chat.passwords import PasswordHasher
from chat.refusals import Reason, Refused
from chat.sources import SourceSeal
from chat.tokens import TokenMint, token_digest
from eventstore.errors import LogError, LogUnavailable, WrongVersion
from eventstore.events import Appended, Context, RecordedEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog

_ATTEMPTS = 10
_PAGE = 1000
_T = TypeVar("_T")


class WrongSecret(LogError):
    """The server's secret is not the one by which this log's tokens and names were made."""

    def __init__(self) -> None:
        super().__init__(
            "this log was made with another secret: put its file `secret` back into data_dir, or give it as a setting"
        )


def utc_now() -> datetime:
    """The system's clock."""
    return datetime.now(UTC)


class Account(msgspec.Struct, frozen=True):
    """An account as the commands need it."""

    account_id: int
    username: str


class Channel(msgspec.Struct, frozen=True):
    """A channel: its id, and its name as it was registered, without the `#`."""

    channel_id: int
    name: str


class Credentials(msgspec.Struct, frozen=True):
    """An account with the hash of its password; None: nobody can log in to it."""

    account: Account
    password_hash: str | None


class IssuedToken(msgspec.Struct, frozen=True):
    """The newest token of an account, as far as it is kept: its generation and its digest; None once it is revoked."""

    generation: int
    token_digest: str | None


class Bearer(msgspec.Struct, frozen=True):
    """Whose a token is, and the generation that it has among the account's."""

    account: Account
    generation: int


class Restrictions(msgspec.Struct, frozen=True):
    """What an account may not do: log in while it is banned, write before `silenced_until` (which may be long ago)."""

    is_banned: bool = False
    silenced_until: datetime | None = None


UNRESTRICTED = Restrictions()


class Operators:
    """Who may do what only operators may: the accounts of these usernames, and the bot."""

    def __init__(self, usernames: Iterable[str]) -> None:
        self._names = frozenset(safe_name(name) for name in usernames)

    def __contains__(self, account: Account) -> bool:
        return account.account_id == BOT_ID or safe_name(account.username) in self._names


class Bridged(Protocol):
    """That a channel is bridged to one of Discord."""

    @property
    def discord_channel_id(self) -> int:
        """The channel of Discord."""


class StandingMessage(msgspec.Struct, frozen=True):
    """A message that is neither deleted nor erased: its stream at its version, how it was sent, what it says now."""

    stream: str
    version: int
    sent: events.MessageSent | events.DirectMessageSent
    text: str


class Models(Protocol):
    """What the commands ask the read models."""

    async def account_by_name(self, safe: str) -> Account | None:
        """The account of this safe name."""

    async def credentials(self, safe: str) -> Credentials | None:
        """The account of this safe name with its password's hash."""

    async def next_account_id(self) -> int:
        """The id that the next person to register will have."""

    async def bearer_of_token(self, digest: str) -> Bearer | None:
        """Whose newest token has this digest."""

    async def token_of(self, account_id: int) -> IssuedToken | None:
        """The account's newest token."""

    async def restrictions(self, account_id: int) -> Restrictions:
        """What the account may not do, as far as this process has heard."""

    async def restrictions_now(self, account_id: int) -> Restrictions:
        """What the account may not do, as the log stands now."""

    async def channel_by_name(self, safe: str) -> Channel | None:
        """The channel of this safe name."""

    async def is_member(self, channel_id: int, account_id: int) -> bool:
        """Whether the account is a member of the channel."""

    async def bridge_of(self, channel_id: int) -> Bridged | None:
        """What the channel is bridged to, as far as this process has heard."""


class Commands:
    """Everything that can be asked of Minutebook that changes something.

    `operators` are the usernames that may write to the announcements; `now` is the clock by which silences end. A
    `source_address` is recorded sealed. All commands raise `Refused` for a reason of the rules, `Malformed` for a value
    that cannot be, and `LogUnavailable` when nothing can be recorded now.
    """

    def __init__(
        self,
        log: EventLog,
        models: Models,
        passwords: PasswordHasher,
        secret: bytes,
        operators: Iterable[str] = (),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._log = log
        self._models = models
        self._passwords = passwords
        self._mint = TokenMint(secret)
        self._streams = NameStreams(secret)
        self._seal = SourceSeal(secret)
        self._operators = Operators(operators)
        self._now = now
        self._registering = asyncio.Lock()

    async def prepare(self) -> None:
        """Makes what exists from the start, the bot's account and the announcements, if they are not there yet.

        Raises `WrongSecret` if the log began under another secret.
        """
        claimed, registered = rules.register(BOT_ID, BOT_NAME, None, taken=False)
        bot_stream = self._streams.account(safe_name(BOT_NAME))
        genesis = await self._log.append(
            StreamWrite(bot_stream, [claimed.recorded_form()]),
            StreamWrite(account_stream(BOT_ID), [registered.recorded_form()]),
            StreamWrite(
                self._streams.channel(ANNOUNCE), [rules.make_channel(ANNOUNCE, None, taken=False).recorded_form()]
            ),
            context=Context(actor=None, correlation_id="genesis"),
            command_id="genesis",
        )
        first = await self._log.event_at(genesis.first_position)
        if first is None or first.stream != bot_stream:
            raise WrongSecret

    async def register(self, username: str, password: str, correlation_id: str) -> Account:
        """Makes an account; people are numbered in the order of registration."""
        rules.check_password(password)
        rules.check_new_username(username)
        safe = safe_name(username)
        if await self._models.account_by_name(safe):
            raise Refused(Reason.USERNAME_TAKEN)
        password_hash = await self._passwords.hash(password)

        claim = self._streams.account(safe)

        async def attempt() -> Account:
            taken = await self._models.account_by_name(safe) is not None
            account_id = await self._models.next_account_id()
            claimed, registered = rules.register(account_id, username, password_hash, taken=taken)
            try:
                await self._log.append(
                    StreamWrite(claim, [claimed.recorded_form()]),
                    StreamWrite(account_stream(account_id), [registered.recorded_form()]),
                    context=Context(account_id, correlation_id),
                )
            except WrongVersion as error:
                # A name is never given twice, also when no read model knows of its account any more.
                if error.stream == claim:
                    raise Refused(Reason.USERNAME_TAKEN) from None
                raise
            return Account(account_id, username)

        # Two at once would take the same number, and one of them would have to try again.
        async with self._registering:
            return await until_settled(attempt)

    async def log_in(self, username: str, password: str) -> Account:
        """The account of these credentials. Changes nothing."""
        rules.check_password(password)
        rules.check_username(username)
        found = await self._models.credentials(safe_name(username))
        matches = await self._passwords.verify(password, found.password_hash if found else None)
        if found is None or not matches:
            raise Refused(Reason.WRONG_CREDENTIALS)
        await self.check_not_banned(found.account)
        return found.account

    async def generate_token(self, account: Account, correlation_id: str) -> tuple[str, int]:
        """A new token for the account, which ends the one before; and its generation, 1 for the first."""

        async def attempt() -> tuple[str, int]:
            before = await generation_of(self._models, account.account_id)
            # After the generation: a ban that comes in between revokes the token, and so takes the next generation.
            await self.check_not_banned(account)
            token = self._mint.token(account.account_id, before + 1)
            issued = rules.issue_token(account.account_id, before + 1, token_digest(token))
            await self._log.append(
                StreamWrite(token_stream(account.account_id), [issued.recorded_form()], expected_version=before),
                context=Context(account.account_id, correlation_id),
            )
            return token, before + 1

        return await until_settled(attempt)

    async def current_token(self, account: Account) -> str:
        """The account's newest token, made again from the server's secret. Changes nothing.

        It is refused when the server's secret is not the one by which the token was made.
        """
        current = await self._models.token_of(account.account_id)
        if current is not None:
            token = self._mint.token(account.account_id, current.generation)
            if token_digest(token) == current.token_digest:
                return token
        raise Refused(Reason.NO_TOKEN)

    async def authenticate(self, token: str) -> Account:
        """The account that this token stands for. Changes nothing."""
        return (await self.bearer(token)).account

    async def bearer(self, token: str) -> Bearer:
        """As `authenticate`, with the token's generation."""
        bearer = await self._models.bearer_of_token(token_digest(token))
        if bearer is None:
            raise Refused(Reason.INVALID_TOKEN)
        return bearer

    async def make_channel(self, account: Account, name: str, correlation_id: str) -> Channel:
        """Makes a channel, with the account as its first member."""
        name = channel_name(name)
        rules.check_channel_name(name)
        safe = safe_name(name)

        async def attempt() -> Channel:
            taken = await self._models.channel_by_name(safe) is not None
            created = rules.make_channel(name, account.account_id, taken=taken)
            appended = await self._log.append(
                StreamWrite(self._streams.channel(safe), [created.recorded_form()]),
                context=Context(account.account_id, correlation_id),
            )
            return Channel(appended.first_position, name)

        return await until_settled(attempt)

    async def add_member(
        self, account: Account, channel: str, username: str, correlation_id: str
    ) -> tuple[Channel, Account]:
        """Brings somebody into a channel; nothing happens if they are in already."""
        found = await self._channel(channel)
        added = await self._account(username)

        async def attempt() -> tuple[Channel, Account]:
            event = rules.add_member(
                found.channel_id,
                added.account_id,
                account.account_id,
                adder_is_member=await self._models.is_member(found.channel_id, account.account_id),
                is_member=await self._models.is_member(found.channel_id, added.account_id),
            )
            if event is not None:
                await self._log.append(
                    StreamWrite(f"member-{found.channel_id}-{added.account_id}", [event.recorded_form()]),
                    context=Context(account.account_id, correlation_id),
                )
            return found, added

        return await until_settled(attempt)

    async def send_message(
        self,
        account: Account,
        channel: str,
        text: str,
        correlation_id: str,
        idempotency_key: str | None = None,
        *,
        source_address: str | None = None,
    ) -> Appended:
        """Sends a text to a channel, and to Discord if it is bridged; the first position is the message's id."""
        rules.check_text("message", text)
        found = await self._channel(channel)
        await self.check_may_speak(account)
        may_write = await self.may_write(account, found)
        source = self._sealed(source_address)
        sent = rules.send_message(found.channel_id, account.account_id, text, may_write=may_write, source=source)
        bridged = await self._models.bridge_of(found.channel_id)
        if bridged is None:
            return await self._record_message(account, correlation_id, idempotency_key, sent)
        to_discord = rules.request_delivery(
            account.account_id, text, discord_channel_id=bridged.discord_channel_id, of_message=True
        )
        return await self._record_message(account, correlation_id, idempotency_key, sent, to_discord)

    async def send_direct_message(
        self,
        account: Account,
        username: str,
        text: str,
        correlation_id: str,
        idempotency_key: str | None = None,
        *,
        source_address: str | None = None,
    ) -> Appended:
        """Sends a text to somebody; its position is the message's id."""
        rules.check_text("message", text)
        recipient = await self._account(username)
        await self.check_may_speak(account)
        source = self._sealed(source_address)
        sent = rules.send_direct_message(account.account_id, recipient.account_id, text, source=source)
        return await self._record_message(account, correlation_id, idempotency_key, sent)

    async def delete_message(
        self, account: Account, message_id: int, correlation_id: str, *, source_address: str | None = None
    ) -> None:
        """Deletes one of the account's own messages, of either kind."""
        context = Context(account.account_id, correlation_id)
        source = self._sealed(source_address)

        async def attempt() -> None:
            standing = await standing_message(self._log, message_id)
            deleted = rules.delete_message(message_id, standing.sent.sender_id, account.account_id, source=source)
            write = StreamWrite(standing.stream, [deleted.recorded_form()], expected_version=standing.version)
            await self._log.append(write, context=context)

        await until_settled(attempt)

    async def check_may_speak(self, account: Account, at: datetime | None = None) -> None:
        """Refuses what somebody says who is banned or silenced, or was silenced still at another time than now."""
        found = await self._models.restrictions(account.account_id)
        until = found.silenced_until
        silenced_for = 0 if until is None else rules.silence_left(until, self._now() if at is None else at)
        rules.check_may_speak(is_banned=found.is_banned, silenced_for=silenced_for)

    async def check_not_banned(self, account: Account) -> None:
        """Refuses what only somebody may do who may log in."""
        if (await self._models.restrictions_now(account.account_id)).is_banned:
            raise Refused(Reason.BANNED)

    async def may_write(self, account: Account, channel: Channel) -> bool:
        """Whether the account may write to the channel, silenced or not."""
        if account.account_id == BOT_ID or (channel.name == ANNOUNCE and account in self._operators):
            return True
        return await self._models.is_member(channel.channel_id, account.account_id)

    def _record_message(
        self,
        account: Account,
        correlation_id: str,
        idempotency_key: str | None,
        sent: events.MessageSent | events.DirectMessageSent,
        *more: events.Event,
    ) -> Awaitable[Appended]:
        # A stream for each message: no two writers ever meet in one, and its whole life stands there together.
        write = StreamWrite(new_message_stream(), [event.recorded_form() for event in (sent, *more)])
        command_id = command_id_of(account, type(sent).__name__, idempotency_key)
        return self._log.append(write, context=Context(account.account_id, correlation_id), command_id=command_id)

    def _sealed(self, address: str | None) -> str | None:
        return None if address is None else self._seal.seal(address)

    async def _channel(self, name: str) -> Channel:
        channel = await self._models.channel_by_name(safe_name(channel_name(name)))
        if channel is None:
            raise Refused(Reason.CHANNEL_NOT_FOUND)
        return channel

    async def _account(self, username: str) -> Account:
        account = await self._models.account_by_name(safe_name(username))
        if account is None:
            raise Refused(Reason.USER_NOT_FOUND)
        return account


def token_stream(account_id: int) -> str:
    """The stream of an account's tokens; its version is the newest generation."""
    return f"token-{account_id}"


async def generation_of(models: Models, account_id: int) -> int:
    """The generation of the account's newest token, be it revoked; 0 if it never had one."""
    current = await models.token_of(account_id)
    return current.generation if current else 0


def account_stream(account_id: int) -> str:
    """The stream of an account itself."""
    return f"account-{account_id}"


def new_message_stream() -> str:
    """A name for the stream of a message, or of a text to Discord, that nobody has had."""
    return f"message-{new_id()}"


def command_id_of(account: Account, what: str, key: str | None) -> str | None:
    """A command id that no other account and no other kind of command can have; None without a key."""
    if key is None:
        return None
    return sha256(f"{account.account_id}:{what}:{key}".encode()).hexdigest()


async def standing_message(log: EventLog, message_id: int) -> StandingMessage:
    """A message as it stands now; refused if none of this id was sent, or if it is gone."""
    first = await log.event_at(message_id)
    if first is None or first.type not in ("MessageSent", "DirectMessageSent"):
        raise Refused(Reason.MESSAGE_NOT_FOUND)
    history = await whole_stream(log, first.stream)
    sent = events.decode(first)
    is_deleted = any(event.type == "MessageDeleted" for event in history)
    if is_deleted or not isinstance(sent, events.MessageSent | events.DirectMessageSent):
        raise Refused(Reason.MESSAGE_NOT_FOUND)
    edits = [edit.text for event in history if isinstance(edit := events.decode(event), events.MessageEdited)]
    return StandingMessage(first.stream, len(history), sent, edits[-1] if edits else sent.text)


async def whole_stream(log: EventLog, stream: str) -> list[RecordedEvent]:
    """All events of a stream, in order."""
    found = page = await log.read_stream(stream, limit=_PAGE)
    while len(page) == _PAGE:
        page = await log.read_stream(stream, after=len(found), limit=_PAGE)
        found = found + page
    return found


async def until_settled(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Tries again while somebody else's write comes between what was read and what is appended."""
    for _ in range(_ATTEMPTS):
        try:
            return await attempt()
        except WrongVersion:
            continue
    raise LogUnavailable("too many others change the same thing")
