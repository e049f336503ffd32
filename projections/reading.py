"""Reading with rights: the queries that an account may ask, and which of them it is refused."""

from __future__ import annotations

from chat import rules
from chat.commands import Account, Channel
from chat.names import ANNOUNCE, channel_name, safe_name
from chat.refusals import Reason, Refused
from projections.dms import DirectMessage
from projections.lists import Render
from projections.messages import Message
from projections.models import ReadModels


class Reading:
    """What an account can read. Raises `Refused`.

    Lists are oldest first, and come as the bytes that `render` makes of them; `count` takes the newest ones.
    """

    def __init__(self, models: ReadModels) -> None:
        self._models = models

    async def announcements(self, count: int, render: Render[Message]) -> bytes:
        """The newest announcements, which everyone may read."""
        channel = await self._models.channel_by_name(ANNOUNCE)
        return render([]) if channel is None else await self._models.lists.in_channel(channel, count, render)

    async def channel(self, account: Account, name: str, count: int, render: Render[Message]) -> bytes:
        """The newest messages of a channel that the account may read."""
        channel = await self._models.channel_by_name(safe_name(channel_name(name)))
        if channel is None:
            raise Refused(Reason.CHANNEL_NOT_FOUND)
        is_member = await self._models.is_member(channel.channel_id, account.account_id)
        if not rules.may_read(channel.name, is_member=is_member):
            raise Refused(Reason.NOT_A_MEMBER)
        return await self._models.lists.in_channel(channel, count, render)

    async def message(self, account: Account, message_id: int) -> Message | DirectMessage:
        """One message of either kind, for those who may read it: its channel's members, or its two ends."""
        message = await self._models.messages.by_id(message_id)
        if message is not None:
            is_member = await self._models.is_member(message.channel_id, account.account_id)
            if not rules.may_read(message.channel, is_member=is_member):
                raise Refused(Reason.NOT_A_READER)
            return message
        direct = await self._models.dms.by_id(message_id)
        if direct is None:
            raise Refused(Reason.MESSAGE_NOT_FOUND)
        if account.account_id not in (direct.sender_id, direct.recipient_id):
            raise Refused(Reason.NOT_A_READER)
        return direct

    async def sent_by(self, account: Account, count: int, render: Render[Message]) -> bytes:
        """The newest messages that the account sent to channels."""
        return await self._models.lists.sent_by(account.account_id, count, render)

    async def direct_messages(self, account: Account, count: int, render: Render[DirectMessage]) -> bytes:
        """The newest direct messages that the account sent or received."""
        return await self._models.lists.direct_messages(account.account_id, count, render)

    async def channels(self, account: Account, render: Render[Channel]) -> bytes:
        """The channels that the account is a member of."""
        return await self._models.lists.channels_of(account.account_id, render)
