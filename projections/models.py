"""The read models as the rest of the house asks them: their queries, and small caches on the hot path.

Channels, memberships and verifications never change once they are, so a kept answer stays true; a name goes when its
account is erased. A token ends when the next one is issued or it is revoked, restrictions come and go: the log that
this process follows tells the caches, its own commits before anybody hears of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chat.bridging import Bridge, Copy, DiscordUser
from chat.commands import UNRESTRICTED, Account, Bearer, Channel, Credentials, IssuedToken, Restrictions
from chat.connections import OpenConnection
from chat.names import BOT_ID
from eventstore.erasure import ERASED
from eventstore.events import RecordedEvent
from eventstore.log import EventLog
from projections.accounts import Accounts
from projections.bridges import BRIDGING, Bridges
from projections.cache import Cache
from projections.channels import Channels
from projections.deliveries import Deliveries
from projections.discord_users import DiscordUsers
from projections.dms import DirectMessages
from projections.lists import Lists
from projections.messages import Messages
from projections.moderation import RESTRICTING, Moderations
from projections.presence import Presence
from projections.tokens import Tokens
from projections.verification import NOT_VERIFIED, Verification

CACHED = 20_000
_ENDING_TOKENS = frozenset({"TokenIssued", "TokenRevoked"})


class ReadModels:
    """All read models of a log; implements `chat.commands.Models`, and what `chat`'s other commands ask."""

    def __init__(self, log: EventLog, *, cached: int = CACHED) -> None:
        self._log = log
        self.accounts = Accounts(log.reader)
        self.tokens = Tokens(log.reader)
        self.channels = Channels(log.reader)
        self.messages = Messages(log.reader)
        self.dms = DirectMessages(log.reader)
        self.presence = Presence(log.reader)
        self.verification = Verification(log.reader)
        self.moderation = Moderations(log.reader)
        self.deliveries = Deliveries(log.reader)
        self.bridges = Bridges(log.reader)
        self.discord_users = DiscordUsers(log.reader)
        self.lists = Lists(log, self.channels, self.messages, self.dms)
        self._accounts_by_id: Cache[int, Account] = Cache(cached, _id_of)
        self._accounts_by_name: Cache[str, Account] = Cache(cached, _id_of)
        self._bearers: Cache[str, Bearer] = Cache(cached, lambda bearer: bearer.account.account_id)
        self._channels_by_name: Cache[str, Channel] = Cache(cached)
        self._channels_by_id: Cache[int, Channel] = Cache(cached)
        self._memberships: Cache[tuple[int, int], bool] = Cache(cached)
        self._verified: Cache[int, bool] = Cache(cached)
        self._restrictions: Cache[int, Restrictions] = Cache(cached)
        # All of them under one key: they are few, and most channels have none.
        self._bridges: Cache[str, Mapping[int, Bridge]] = Cache(1)
        log.subscribe(self._forget)

    async def account_by_name(self, safe: str) -> Account | None:
        """The account of this safe name."""
        return await self._accounts_by_name.get(safe, lambda: self.accounts.by_name(safe))

    async def account_by_id(self, account_id: int) -> Account | None:
        """The account of this id, unless it was erased."""
        return await self._accounts_by_id.get(account_id, lambda: self.accounts.by_id(account_id))

    async def is_known(self, account_id: int) -> bool:
        """Whether there is or was an account of this id."""
        return await self.accounts.is_known(account_id)

    async def credentials(self, safe: str) -> Credentials | None:
        """The account of this safe name with its password's hash."""
        return await self.accounts.credentials(safe)

    async def next_account_id(self) -> int:
        """The id that the next person to register will have."""
        return await self.accounts.next_id()

    async def bearer_of_token(self, digest: str) -> Bearer | None:
        """Whose newest token has this digest."""
        if not self._log.ready:
            # Another process may have ended the token without our hearing of it.
            return await self.tokens.bearer(digest)
        kept = self._bearers.kept(digest)
        return kept if kept is not None else await self._bearers.get(digest, lambda: self.tokens.bearer(digest))

    async def token_of(self, account_id: int) -> IssuedToken | None:
        """The account's newest token."""
        return await self.tokens.of_account(account_id)

    async def restrictions(self, account_id: int) -> Restrictions:
        """What the account may not do, as far as this process has heard; the bot may do everything."""
        if account_id == BOT_ID:
            return UNRESTRICTED
        if not self._log.ready:
            return await self.restrictions_now(account_id)
        found = self._restrictions.kept(account_id)
        if found is None:
            found = await self._restrictions.get(account_id, lambda: self.moderation.restrictions(account_id))
        return found or UNRESTRICTED

    async def restrictions_now(self, account_id: int) -> Restrictions:
        """What the account may not do, as the log stands now."""
        return await self.moderation.restrictions(account_id)

    async def channel_by_name(self, safe: str) -> Channel | None:
        """The channel of this safe name."""
        kept = self._channels_by_name.kept(safe)
        return kept if kept is not None else await self._channels_by_name.get(safe, lambda: self.channels.by_name(safe))

    async def channel_by_id(self, channel_id: int) -> Channel | None:
        """The channel of this id."""
        return await self._channels_by_id.get(channel_id, lambda: self.channels.by_id(channel_id))

    async def is_member(self, channel_id: int, account_id: int) -> bool:
        """Whether the account is a member of the channel."""
        key = channel_id, account_id
        if self._memberships.kept(key):
            return True

        async def query() -> bool | None:
            return await self.channels.is_member(channel_id, account_id) or None

        return await self._memberships.get(key, query) or False

    async def is_verified(self, account_id: int) -> bool:
        """Whether the account has registered a connection before."""

        async def query() -> bool | None:
            return await self.verification.status(account_id) != NOT_VERIFIED or None

        return await self._verified.get(account_id, query) or False

    async def account_of_device(self, digest: str) -> int | None:
        """The first account that this device verified."""
        return await self.verification.account_of_device(digest)

    async def open_connections(self, node_id: str) -> list[OpenConnection]:
        """The connections that a node has open."""
        return await self.presence.open_of_node(node_id)

    async def bridge_of(self, channel_id: int) -> Bridge | None:
        """The bridge of a channel, as far as this process has heard; its `read_through` may be an older one."""
        # Another process may have made or undone one without our hearing of it, while the log is not ready.
        kept = self._bridges.kept("all") if self._log.ready else None
        return (kept if kept is not None else await self._bridges_heard_of()).get(channel_id)

    async def bridge_to(self, discord_channel_id: int) -> Bridge | None:
        """The bridge to a channel of Discord, likewise."""
        found = (await self._bridges_heard_of()).values()
        return next((bridge for bridge in found if bridge.discord_channel_id == discord_channel_id), None)

    async def bridges_now(self) -> list[Bridge]:
        """All bridges, as the log stands now."""
        return await self.bridges.all()

    async def discord_user_by_name(self, username: str) -> DiscordUser | None:
        """Who was seen last under this name on Discord, whatever its case."""
        return await self.discord_users.by_username(username)

    async def discord_user_of(self, account_id: int) -> DiscordUser | None:
        """Who on Discord is this account, the one who was linked last."""
        return await self.discord_users.by_account(account_id)

    async def discord_username(self, discord_user_id: int) -> str | None:
        """The name under which somebody on Discord was seen last; None: they never wrote to the bot."""
        return await self.discord_users.username_of(discord_user_id)

    async def account_of_discord_user(self, discord_user_id: int) -> Account | None:
        """Which account somebody on Discord is."""
        return await self.discord_users.account_of(discord_user_id)

    async def discord_copy(self, discord_message_id: int) -> Copy | None:
        """What a message on Discord stands for here, unless that is gone."""
        return await self.deliveries.copy(discord_message_id)

    async def _bridges_heard_of(self) -> Mapping[int, Bridge]:
        async def query() -> Mapping[int, Bridge]:
            return {bridge.channel_id: bridge for bridge in await self.bridges.all()}

        if not self._log.ready:
            # Another process may have made or undone one without our hearing of it.
            return await query()
        return await self._bridges.get("all", query) or {}

    def _forget(self, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if event.type in _ENDING_TOKENS and event.data is not None:
                self._bearers.forget(event.body()["account_id"])
            elif event.type in RESTRICTING:
                # They are rare, so it does no harm that everybody's are asked for again.
                self._restrictions.clear()
                if event.type == ERASED:
                    self._erase(event.body()["account_id"])
            elif event.type in BRIDGING:
                self._bridges.clear()

    def _erase(self, account_id: int | None) -> None:
        if account_id is not None:
            self._bearers.forget(account_id)
            self._accounts_by_id.forget(account_id)
            self._accounts_by_name.forget(account_id)


def _id_of(account: Account) -> int:
    return account.account_id
