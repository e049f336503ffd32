"""What people read, as values again."""

from __future__ import annotations

import msgspec

from chat.commands import Account, Channel
from projections.dms import DirectMessage
from projections.messages import Message
from projections.models import ReadModels
from projections.reading import Reading

render = msgspec.json.encode


class Decoded:
    """The lists of `Reading`, rendered as they are and decoded again."""

    def __init__(self, models: ReadModels) -> None:
        self._reading = Reading(models)

    async def announcements(self, count: int) -> list[Message]:
        """The newest announcements."""
        return messages(await self._reading.announcements(count, render))

    async def channel(self, account: Account, name: str, count: int) -> list[Message]:
        """The newest messages of a channel."""
        return messages(await self._reading.channel(account, name, count, render))

    async def message(self, account: Account, message_id: int) -> Message | DirectMessage:
        """One message, which is never rendered."""
        return await self._reading.message(account, message_id)

    async def sent_by(self, account: Account, count: int) -> list[Message]:
        """The newest messages that the account sent to channels."""
        return messages(await self._reading.sent_by(account, count, render))

    async def direct_messages(self, account: Account, count: int) -> list[DirectMessage]:
        """The newest direct messages of the account."""
        found = await self._reading.direct_messages(account, count, render)
        return msgspec.json.decode(found, type=list[DirectMessage])

    async def channels(self, account: Account) -> list[Channel]:
        """The channels that the account is a member of."""
        return msgspec.json.decode(await self._reading.channels(account, render), type=list[Channel])


def messages(rendered: bytes) -> list[Message]:
    """The messages that were rendered."""
    return msgspec.json.decode(rendered, type=list[Message])
