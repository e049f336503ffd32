"""What people and channels are called, for tools that show the ids that the log has."""

from __future__ import annotations

from chat.names import ERASED_NAME
from eventstore.reader import Reader
from projections.accounts import Accounts
from projections.cache import Cache
from projections.channels import Channels

KEPT = 10_000
_ACCOUNTS = frozenset({"account_id", "sender_id", "recipient_id", "creator_id", "reporter_id"})


def erased(account_id: int) -> str:
    """What stands for the name of an account that was erased, as in the answers of the API."""
    return str(account_id).join(ERASED_NAME)


class Names:
    """The names that the read models behind a reader have; the newest `KEPT` are remembered."""

    def __init__(self, reader: Reader) -> None:
        self._accounts = Accounts(reader)
        self._channels = Channels(reader)
        self._known: Cache[tuple[str, int], str] = Cache(KEPT)

    async def account(self, account_id: int) -> str:
        """The name of an account, or what stands for one that was erased or is not known."""

        async def query() -> str | None:
            found = await self._accounts.by_id(account_id)
            if found is not None:
                return found.username
            return erased(account_id) if await self._accounts.is_known(account_id) else None

        return await self._known.get(("account", account_id), query) or f"(account {account_id})"

    async def channel(self, channel_id: int) -> str:
        """The name of a channel as Bancho writes it, `#den`, or what stands for one that is not known."""

        async def query() -> str | None:
            found = await self._channels.by_id(channel_id)
            return None if found is None else f"#{found.name}"

        return await self._known.get(("channel", channel_id), query) or f"(channel {channel_id})"

    async def of(self, key: str, value: object) -> str | None:
        """What the value at this key of an event's data, or in this column of a read model, is the id of, by name."""
        if not isinstance(value, int):
            return None
        if key in _ACCOUNTS or key.endswith("_by"):
            return await self.account(value)
        return await self.channel(value) if key == "channel_id" else None

    def forget(self) -> None:
        """Asks for every name anew, since somebody's was erased."""
        self._known.clear()
