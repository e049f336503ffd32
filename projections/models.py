"""The read models as the rest of the house asks them: their queries, and small caches on the hot path.

Names, channels and memberships never change once they are, so a kept answer stays true. A token ends when the next
one is issued: the log that this process follows tells the cache, its own commits before anybody hears of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from chat.commands import Account, Channel, Credentials, IssuedToken
from chat.events import TokenIssued
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from projections.accounts import Accounts
from projections.cache import Cache
from projections.channels import Channels
from projections.dms import DirectMessages
from projections.messages import Messages
from projections.tokens import Tokens

CACHED = 20_000


class ReadModels:
    """All read models of a log; implements `chat.commands.Models`."""

    def __init__(self, log: EventLog, *, cached: int = CACHED) -> None:
        self._log = log
        self.accounts = Accounts(log.reader)
        self.tokens = Tokens(log.reader)
        self.channels = Channels(log.reader)
        self.messages = Messages(log.reader)
        self.dms = DirectMessages(log.reader)
        self._accounts_by_name: Cache[str, Account] = Cache(cached)
        self._accounts_by_token: Cache[str, Account] = Cache(cached)
        self._channels_by_name: Cache[str, Channel] = Cache(cached)
        self._memberships: Cache[tuple[int, int], bool] = Cache(cached)
        log.subscribe(self._forget)

    async def account_by_name(self, safe: str) -> Account | None:
        """The account of this safe name."""
        return await self._accounts_by_name.get(safe, lambda: self.accounts.by_name(safe))

    async def credentials(self, safe: str) -> Credentials | None:
        """The account of this safe name with its password's hash."""
        return await self.accounts.credentials(safe)

    async def next_account_id(self) -> int:
        """The id that the next person to register will have."""
        return await self.accounts.next_id()

    async def account_of_token(self, digest: str) -> Account | None:
        """The account whose newest token has this digest."""
        if not self._log.ready:
            # Another process may have ended the token without our hearing of it.
            return await self.tokens.account(digest)
        return await self._accounts_by_token.get(digest, lambda: self.tokens.account(digest))

    async def token_of(self, account_id: int) -> IssuedToken | None:
        """The account's newest token."""
        return await self.tokens.of_account(account_id)

    async def channel_by_name(self, safe: str) -> Channel | None:
        """The channel of this safe name."""
        return await self._channels_by_name.get(safe, lambda: self.channels.by_name(safe))

    async def is_member(self, channel_id: int, account_id: int) -> bool:
        """Whether the account is a member of the channel."""

        async def query() -> bool | None:
            return await self.channels.is_member(channel_id, account_id) or None

        return await self._memberships.get((channel_id, account_id), query) or False

    def _forget(self, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if event.type == TokenIssued.__name__ and event.data is not None:
                self._end_tokens(msgspec.json.decode(event.data, type=TokenIssued).account_id)

    def _end_tokens(self, account_id: int) -> None:
        self._accounts_by_token.forget(lambda account: account.account_id == account_id)
