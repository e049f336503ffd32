"""How connections come in: registration by a token, and recovery by a pid.

Both end alike: a socket is to get everything behind a position of the log, in order, and then go on live. So its rooms
are held first, what it missed is read from the read models up to where the fan-out stands, and then its rooms go on
from there. While that is much, it is read before the rooms are entered, so that little is ever held.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from heapq import merge
from typing import Any

from chat.bridging import Delivery
from chat.commands import Account, Commands
from chat.connections import ConnectionHistory, Connections
from chat.refusals import Refused
from eventstore.errors import LogUnavailable, WrongVersion
from eventstore.ids import new_id
from handlers.sockets.fanout import (
    DISCORD_DELIVERY,
    EVERYONE,
    NEW_DM,
    Fanout,
    account_room,
    channel_room,
    told_delivery,
    told_direct,
    told_message,
)
from handlers.sockets.pids import Pids, connection_id
from handlers.sockets.registry import Registration, Registry
from projections.dms import DirectMessage
from projections.messages import Message
from projections.models import ReadModels
from realtime.server import Socket

READY = "ready"
# How much is read at a time of what was missed, and how far behind the rooms are held.
_PAGE = 500
_NEAR = 1000
# How many messages are sent before the client must have taken them. They may be long: all of a page would be more than
# what may wait for a client.
_STEP = 16
_ATTEMPTS = 5

Missed = Message | DirectMessage | Delivery


class RecoveryFailed(Exception):
    """A client cannot go on where it was; the message is the reason that it is told."""


class Admission:
    """Registers sockets and recovers them. `recovery_window` is in seconds."""

    def __init__(
        self,
        commands: Commands,
        connections: Connections,
        models: ReadModels,
        registry: Registry,
        fanout: Fanout,
        pids: Pids,
        recovery_window: int,
    ) -> None:
        self._commands = commands
        self._connections = connections
        self._models = models
        self._registry = registry
        self._fanout = fanout
        self._pids = pids
        self._recovery_window = recovery_window

    def new_pid(self) -> str:
        """A pid for a new connection that may want to come back."""
        return self._pids.new()

    async def register(self, socket: Socket, token: str, device: str | None) -> None:
        """Registers a connection that is new; raises `Refused`, `Malformed` and `LogUnavailable`."""
        bearer = await self._commands.bearer(token)
        name = secrets.token_hex(16) if socket.pid is None else connection_id(socket.pid)
        registration = await self._open(bearer.account, bearer.generation, name, 0, device)
        socket.accept()
        await self._go_live(socket, registration, registration.position, token, is_new=True)

    async def register_again(self, socket: Socket, registration: Registration, token: str) -> None:
        """Answers a connection that was recovered and registers nevertheless, as clients do that cannot tell."""
        account = await self._commands.authenticate(token)
        if account.account_id != registration.account.account_id:
            raise RecoveryFailed("the connection belongs to another account")
        registration.is_recovered = False
        self._say_ready(socket, registration, self._fanout.position)

    async def recover(self, socket: Socket, pid: object, offset: object, token: str | None) -> None:
        """Lets a client go on where it was.

        Raises `RecoveryFailed`, and as `register` does; then nothing has happened.
        """
        age = self._pids.age(pid)
        if age is None or not isinstance(pid, str):
            raise RecoveryFailed("the pid is not known")
        for _ in range(_ATTEMPTS):
            history = await self._connections.history(connection_id(pid))
            if history is None:
                self._recover_unregistered(socket, pid, age)
                return
            try:
                await self._recover_registered(socket, pid, offset, token, history)
            except WrongVersion:
                # Its end was recorded just now, or it comes back by two ways at once: look again.
                continue
            return
        raise RecoveryFailed("the connection is used by others")

    def _recover_unregistered(self, socket: Socket, pid: str, age: float) -> None:
        """Nothing was ever meant for this client, so there is nothing that it missed."""
        if age > self._recovery_window:
            raise RecoveryFailed("the recovery window has passed")
        socket.pid = pid

    async def _recover_registered(
        self, socket: Socket, pid: str, offset: object, token: str | None, history: ConnectionHistory
    ) -> None:
        self._check_window(history)
        account = await self._owner(history, token)
        current = await self._models.token_of(account.account_id)
        if current is None or current.token_digest is None:
            raise RecoveryFailed("the token has ended")
        if token is None and current.generation != history.token_generation:
            raise RecoveryFailed("the token has ended")
        after = await self._place(offset, history)
        registration = await self._open(account, current.generation, connection_id(pid), history.version)
        registration.is_recovered = True
        self._replace(connection_id(pid))
        socket.pid = pid
        await self._go_live(socket, registration, max(after, history.began), token, is_new=after < history.began)

    async def _open(
        self, account: Account, generation: int, name: str, version: int, device: str | None = None
    ) -> Registration:
        """Opens the connection `name`, whose stream stands at `version`; raises as `Connections.open` does."""
        registration = Registration(account, generation, name, version + 1, 0)
        try:
            registration.position = await self._connections.open(
                account, generation, name, new_id(), device=device, version=version
            )
        except (LogUnavailable, asyncio.CancelledError):
            # It may stand open in the log nevertheless. If not, there is nothing of this version to close.
            self._registry.record_end(registration, "transport error")
            raise
        return registration

    def _check_window(self, history: ConnectionHistory) -> None:
        if history.closed_at is not None:
            away = (datetime.now(UTC) - history.closed_at).total_seconds()
            if away > self._recovery_window:
                raise RecoveryFailed("the recovery window has passed")

    async def _owner(self, history: ConnectionHistory, token: str | None) -> Account:
        """The account that the connection belongs to, which a token must be of if the client sends one."""
        if token is not None:
            account: Account | None = await self._commands.authenticate(token)
            if account is not None and account.account_id != history.account_id:
                raise RecoveryFailed("the connection belongs to another account")
        else:
            account = await self._models.account_by_id(history.account_id)
        if account is None:
            raise RecoveryFailed("the account is gone")
        return account

    async def _place(self, offset: object, history: ConnectionHistory) -> int:
        """The position up to which the client has got everything; before the connection began if it got nothing."""
        if offset is None:
            return history.began - 1
        if not isinstance(offset, str) or not (offset.isascii() and offset.isdecimal()) or len(offset) > 18:
            raise RecoveryFailed("the offset is none")
        if int(offset) > self._fanout.position and int(offset) > await self._fanout.head():
            raise RecoveryFailed("the offset is behind the end of the log")
        return int(offset)

    def _replace(self, name: str) -> None:
        """A pid is used by one connection at a time: who comes back has lost the one before."""
        before = self._registry.holder(name)
        if before is not None:
            self._registry.forget(before)
            before.close()

    async def _go_live(
        self, socket: Socket, registration: Registration, after: int, token: str | None, *, is_new: bool
    ) -> None:
        """Sends everything behind `after`, and lets the socket go on from there; `ready` first if it is new."""
        account_id = registration.account.account_id
        # At once: an offset must not reach the client ahead of what lies before it, and whatever ends the account's
        # connections, or opens this one elsewhere, must find it.
        socket.hold()
        self._registry.add(socket, registration)
        try:
            if is_new:
                self._say_ready(socket, registration, after)
            # All that was said before the client came is told as missed, though the fan-out may come to it only now.
            await self._fanout.reached(registration.position)
            while socket.is_open and self._fanout.position - after > _NEAR:
                after = await self._replay(socket, account_id, after, self._fanout.position)
            through = await self._enter_rooms(socket, registration)
            if await self._has_lost_its_token(registration, token):
                self._fanout.end(socket, "The token has ended!")
            await self._replay(socket, account_id, after, through)
        except BaseException:
            # The client has no gap this way: it comes back and asks again.
            socket.close()
            self._registry.remove(socket, "transport error")
            raise
        if socket.is_open:
            socket.accept()
        else:
            # It went before it was let in, so nobody else heard of it.
            self._registry.remove(socket, "transport close")
        socket.release(max(after, through))

    async def _enter_rooms(self, socket: Socket, registration: Registration) -> int:
        """Enters all rooms of the account, which are held; returns the position from which on they get everything."""
        account_id = registration.account.account_id
        socket.join(account_room(account_id))
        socket.join(EVERYONE)
        memberships = await self._models.channels.memberships(account_id)
        through = self._fanout.position
        # The account comes to what lies behind with the fan-out, which knows of this socket by now.
        for channel, since in memberships:
            if since <= through:
                socket.join(channel_room(channel.channel_id))
        return through

    async def _has_lost_its_token(self, registration: Registration, token: str | None) -> bool:
        """Whether the token ended before this socket was among the account's, so that its end did not end it."""
        if token is None:
            current = await self._models.token_of(registration.account.account_id)
            return current is None or current.generation > registration.token_generation
        try:
            return (await self._commands.bearer(token)).generation > registration.token_generation
        except Refused:
            return True

    async def _replay(self, socket: Socket, account_id: int, after: int, through: int) -> int:
        """Sends what lies behind `after` up to `through`; returns how far it came: there, if the socket lives."""
        if not self._fanout.may_have_told(after):
            return through
        while after < through and socket.is_open:
            pages = await self._missed(account_id, after, through)
            full = [_offset(page[-1]) for page in pages if len(page) == _PAGE]
            # Behind the end of a full page there may be more of its kind, so the other kinds must not go ahead of it.
            after = min([through, *full])
            due = [each for each in merge(*pages, key=_offset) if _offset(each) <= after]
            for start in range(0, len(due), _STEP):
                for each in due[start : start + _STEP]:
                    self._send(socket, each)
                await socket.drained()
        return after

    async def _missed(self, account_id: int, after: int, through: int) -> tuple[Sequence[Missed], ...]:
        """Of each kind the first page of what an account missed, in order."""
        models = self._models
        return (
            await models.messages.missed(account_id, after, through, _PAGE),
            await models.dms.missed(account_id, after, through, _PAGE),
            await models.deliveries.missed(account_id, after, through, _PAGE),
        )

    def _send(self, socket: Socket, missed: Missed) -> None:
        name, told = self._told(missed)
        socket.replay(name, told, offset=_offset(missed))

    def _told(self, missed: Missed) -> tuple[str, dict[str, Any]]:
        """The event by which a connection is told of something, and its data: the same as if it had been there."""
        match missed:
            case Message(sender=sender, text=text, channel=channel, sent_at=sent_at):
                return self._fanout.channel_event, told_message(sender, text, channel, sent_at)
            case DirectMessage(sender=sender, text=text, recipient=recipient):
                return NEW_DM, told_direct(sender, text, recipient)
        settled_at = missed.settled_at
        assert settled_at is not None, "what is missed is settled"  # noqa: S101
        parts = missed.discord_message_ids or ()
        return DISCORD_DELIVERY, told_delivery(missed.delivery_id, missed.message_id, parts, missed.failed, settled_at)

    def _say_ready(self, socket: Socket, registration: Registration, offset: int) -> None:
        username = registration.account.username
        socket.replay(READY, f"Server has accepted the connection and registered you as : {username}", offset=offset)


def _offset(missed: Missed) -> int:
    """The position by which something is told."""
    if isinstance(missed, Delivery):
        assert missed.settled is not None, "what is missed is settled"  # noqa: S101
        return missed.settled
    return missed.message_id
