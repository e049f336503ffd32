"""Random logs: valid stories of people, channels, messages and connections, told in batches of appends.

A story is drawn as small numbers, and told by taking each of them modulo what there is to choose from; so hypothesis
can shorten it freely, and whatever it draws is a log that the commands might have written, or nearly so: here a
message may be sent and deleted in one append, which no single command does. What is erased, edited, settled or
withdrawn was recorded in a batch before, as whoever does that must have seen it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from hypothesis import strategies as st

from chat.events import (
    AccountBanned,
    AccountKicked,
    AccountRegistered,
    AccountReported,
    AccountSilenced,
    AccountVerified,
    BanRemoved,
    ChannelBridged,
    ChannelCreated,
    ChannelUnbridged,
    ConnectionClosed,
    ConnectionOpened,
    DeviceClaimed,
    DirectMessageSent,
    DiscordLinked,
    DiscordMessageDelivered,
    DiscordMessageFailed,
    DiscordMessageReceived,
    DiscordMessageRequested,
    DiscordMessageWithdrawn,
    DiscordUnlinked,
    DiscordUserSeen,
    Erased,
    Event,
    LinkCodeUsed,
    MemberAdded,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    RestartRequested,
    SilenceRemoved,
    TokenIssued,
    TokenRevoked,
    UsernameClaimed,
)
from eventstore.events import Context, StreamWrite
from eventstore.log import EventLog
from tests.test_canonical import TEXTS


class Step(NamedTuple):
    """One thing that happens: of which kind, to which of those there are, and in which words."""

    kind: str
    first: int
    second: int
    words: str


KINDS = (
    *("register", "token", "revoke", "channel", "member", "message", "message", "dm", "delete", "delete"),
    *("open", "open", "close", "close", "moderate", "moderate", "erase", "erase"),
    *("edit", "edit", "relay", "relay", "ask", "settle", "settle", "receive", "withdraw", "bridge", "person", "person"),
)
CHOICES = st.integers(0, 5)
STEPS = st.builds(Step, st.sampled_from(KINDS), CHOICES, CHOICES, TEXTS)


class InStream(NamedTuple):
    """An event that is told by its stream, too."""

    stream: str
    event: Event


class Copied(NamedTuple):
    """A message on Discord: recorded where, in which channel, and of which delivery or message it is a copy."""

    position: int
    discord_channel_id: str
    origins: tuple[int | None, ...]


Told = Event | InStream
# Batches of appends of steps.
Story = Sequence[Sequence[Sequence[Step]]]
STORIES = st.lists(st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=1, max_size=3), min_size=1, max_size=12)


class Teller:
    """Turns steps into events, at the positions at which a log takes them that nobody else writes to."""

    def __init__(self) -> None:
        self.position = 0
        self._ids = itertools.count(1000)
        self._accounts: list[int] = []
        self._generations: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._standing: list[tuple[int, int]] = []
        self._verified: set[int] = set()
        self._devices: set[str] = set()
        self._open: dict[str, int] = {}
        self._owners: dict[str, int] = {}
        # Whose each event is that can be erased, and of which message, by its position.
        self._traces: dict[int, tuple[int, int | None]] = {}
        # Erasures of accounts that are interrupted after their first events.
        self._left: list[tuple[int, tuple[int, ...]]] = []
        self._in_channels: set[int] = set()
        # Not settled yet: by the delivery's id its sender, and of which message it is.
        self._asked: dict[int, tuple[int, int | None]] = {}
        self._copies: dict[str, Copied] = {}
        # Where what was recorded at a position was deleted or erased.
        self._gone: dict[int, int] = {}
        self._bridges: dict[int, str] = {}
        self._seen: dict[int, str] = {}
        self._links: dict[str, int] = {}
        self._discord_ids = itertools.count(10**17)
        self._recorded = 0
        self._streams = itertools.count()

    async def tell(self, log: EventLog, story: Story) -> None:
        """Appends the story; the appends of a batch are handed in together."""
        for batch in story:
            self._recorded = self.position
            appends = [self._writes(steps) for steps in batch]
            await asyncio.gather(
                *(log.append(*writes, context=Context(None, "a story")) for writes in appends if writes)
            )

    def _writes(self, steps: Sequence[Step]) -> list[StreamWrite]:
        story = f"story-{next(self._streams)}"
        told = [event for step in steps for event in self._events(step)]
        # One write for each event, so that they stand in the log in the order in which they happen.
        return [
            StreamWrite(event.stream, [event.event.recorded_form()], expected_version=None)
            if isinstance(event, InStream)
            else StreamWrite(story, [event.recorded_form()], expected_version=None)
            for event in told
        ]

    def _events(self, step: Step) -> list[Told]:
        ways: dict[str, Callable[[Step], Sequence[Told]]] = {
            "register": self._register,
            "token": self._token,
            "revoke": self._revoke,
            "channel": self._channel,
            "member": self._member,
            "message": self._message,
            "dm": self._dm,
            "delete": self._delete,
            "open": self._open_connection,
            "close": self._close_connection,
            "moderate": self._moderate,
            "erase": self._erase,
            "edit": self._edit,
            "relay": self._relay,
            "ask": self._ask,
            "settle": self._settle,
            "receive": self._receive,
            "withdraw": self._withdraw,
            "bridge": self._bridge,
            "person": self._person,
        }
        is_left = step.kind == "erase" and self._left
        told = ways[step.kind](step) if self._accounts or is_left else self._register(step)
        for position, each in enumerate(told, start=self.position + 1):
            self._trace(position, each.event if isinstance(each, InStream) else each)
        self.position += len(told)
        return list(told)

    def _trace(self, position: int, event: Event) -> None:
        match event:
            case UsernameClaimed() | AccountRegistered() | AccountReported() | DiscordLinked() | DiscordUnlinked():
                self._traces[position] = event.account_id, None
            case AccountSilenced() | SilenceRemoved() | AccountBanned() | BanRemoved() | AccountKicked():
                self._traces[position] = event.account_id, None
            case MessageSent() | DirectMessageSent():
                self._traces[position] = event.sender_id, position
            case MessageEdited():
                self._traces[position] = event.edited_by, event.message_id
            case DiscordMessageRequested():
                message_id = position - 1 if event.of_message else None
                self._traces[position] = event.sender_id, message_id or position
                self._asked[position] = event.sender_id, message_id
            case MessageDeleted():
                self._traces[position] = event.deleted_by, event.message_id
        self._trace_going(position, event)

    def _trace_going(self, position: int, event: Event) -> None:
        match event:
            case MessageDeleted():
                self._gone[event.message_id] = position
            case Erased():
                self._gone |= dict.fromkeys(event.positions, position)

    def _register(self, step: Step) -> list[Told]:
        account_id = next(self._ids)
        self._accounts.append(account_id)
        name = f"{account_id} {step.words}"
        password_hash = None if step.first == 0 else f"hash of {step.words}"
        registered = AccountRegistered(account_id, name, name.lower(), password_hash)
        return [UsernameClaimed(account_id), InStream(f"account-{account_id}", registered)]

    def _erase(self, step: Step) -> list[Event]:
        """Erases a message with its deletion, or an account with all that is its own, as far as it was recorded.

        Of an account now and then only a part at first, and the rest the next time.
        """
        if self._left:
            whose, positions = self._left.pop()
            return [Erased(whose, None, positions, step.words, "a story")]
        recorded = {position: trace for position, trace in self._traces.items() if position <= self._recorded}
        ids = sorted({message_id for _, message_id in recorded.values() if message_id})
        message_id = ids[-1 - step.first % len(ids)] if step.second and ids else None
        account_id = self._account(step.first) if message_id is None else None
        gone = tuple(
            position
            for position, (whose, which) in recorded.items()
            if (whose == account_id if message_id is None else which == message_id)
        )
        if not gone:
            return []
        for position in gone:
            del self._traces[position]
        self._standing = [each for each in self._standing if each[0] not in gone]
        if account_id is not None:
            gone = self._part(account_id, (*gone, *self._persons(account_id)), interrupted=bool(step.first % 2))
        return [Erased(account_id, message_id, gone, step.words, "a story")]

    def _persons(self, account_id: int) -> list[int]:
        """Where it was recorded by which names the people on Discord were seen who are an account now."""
        persons = {person for person, linked in self._links.items() if linked == account_id}
        for person in persons:
            del self._links[person]
        found = [each for each, person in self._seen.items() if person in persons and each <= self._recorded]
        for position in found:
            del self._seen[position]
        return found

    def _part(self, account_id: int, gone: tuple[int, ...], *, interrupted: bool) -> tuple[int, ...]:
        """What is erased of an account at first: its name in any case."""
        self._accounts.remove(account_id)
        first = max(2, len(gone) // 2) if interrupted else len(gone)
        ordered = tuple(sorted(gone))
        if ordered[first:]:
            self._left.append((account_id, ordered[first:]))
        return ordered[:first]

    def _token(self, step: Step) -> list[Event]:
        account_id = self._account(step.first)
        generation = self._generations.get(account_id, 0) + 1
        self._generations[account_id] = generation
        return [TokenIssued(account_id, generation, sha256(b"%d:%d" % (account_id, generation)).hexdigest())]

    def _revoke(self, step: Step) -> list[Event]:
        account_id = self._account(step.first)
        self._generations[account_id] = self._generations.get(account_id, 0) + 1
        return [TokenRevoked(account_id, self._generations[account_id])]

    def _channel(self, step: Step) -> list[Event]:
        channel_id = self.position + 1
        creator_id = None if step.second == 0 else self._account(step.first)
        self._members[channel_id] = [] if creator_id is None else [creator_id]
        name = f"{channel_id} {step.words}"
        return [ChannelCreated(name, name.lower(), creator_id)]

    def _member(self, step: Step) -> list[Event]:
        for channel_id, members in self._members.items():
            outside = [account_id for account_id in self._accounts if account_id not in members]
            if members and outside:
                added = outside[step.first % len(outside)]
                event = MemberAdded(channel_id, added, members[step.second % len(members)])
                members.append(added)
                return [event]
        return []

    def _message(self, step: Step) -> list[Event]:
        if not self._members:
            return []
        channel_id = list(self._members)[step.first % len(self._members)]
        sender_id = self._account(step.second)
        self._standing.append((self.position + 1, sender_id))
        self._in_channels.add(self.position + 1)
        return [MessageSent(channel_id, sender_id, step.words)]

    def _edit(self, step: Step) -> list[Event]:
        seen = [each for each in self._standing if each[0] <= self._recorded and each[0] in self._in_channels]
        if not seen:
            return []
        message_id, sender_id = seen[-1 - step.first % len(seen)]
        return [MessageEdited(message_id, f"{step.words} (edited)", sender_id)]

    def _relay(self, step: Step) -> list[Event]:
        """A message that is to go to Discord, too."""
        return [
            each
            for sent in self._message(step)
            if isinstance(sent, MessageSent)
            for each in (sent, DiscordMessageRequested(sent.sender_id, "900", None, sent.text, True))
        ]

    def _ask(self, step: Step) -> list[Event]:
        channel, user = ("901", None) if step.first % 2 else (None, f"{70 + step.second}")
        recipient_id = None if user is None or step.first % 4 else self._account(step.second + 1)
        sender_id = self._account(step.second)
        return [DiscordMessageRequested(sender_id, channel, user, step.words, recipient_id=recipient_id)]

    def _settle(self, step: Step) -> list[Event]:
        seen = [delivery_id for delivery_id in self._asked if delivery_id <= self._recorded]
        if not seen:
            return []
        delivery_id = seen[-1 - step.first % len(seen)]
        sender_id, message_id = self._asked[delivery_id]
        if step.second == 0:
            # Another bridge may have delivered it all the same, and say so later.
            return [DiscordMessageFailed(delivery_id, message_id, sender_id, step.words)]
        del self._asked[delivery_id]
        ids = tuple(self._copy("900", delivery_id, message_id) for _ in range(1 + step.second % 2))
        return [DiscordMessageDelivered(delivery_id, message_id, sender_id, "900", ids)]

    def _receive(self, step: Step) -> list[Event]:
        sent = self._message(step)
        if not sent:
            return []
        channel = f"{900 + step.second % 2}"
        return [*sent, DiscordMessageReceived(channel, self._copy(channel, self.position + 1))]

    def _copy(self, discord_channel_id: str, *origins: int | None) -> str:
        copy_id = str(next(self._discord_ids))
        self._copies[copy_id] = Copied(self.position + 1, discord_channel_id, origins)
        return copy_id

    def _withdraw(self, step: Step) -> list[Event]:
        never = self._recorded + 1
        doomed = [
            copy_id
            for copy_id, copy in self._copies.items()
            if copy.position <= self._recorded
            and any(origin and self._gone.get(origin, never) <= self._recorded for origin in copy.origins)
        ]
        if not doomed:
            return []
        copy_id = doomed[step.first % len(doomed)]
        return [DiscordMessageWithdrawn(self._copies.pop(copy_id).discord_channel_id, (copy_id,))]

    def _bridge(self, step: Step) -> list[Event]:
        if not self._members:
            return []
        channel_id, by = list(self._members)[step.first % len(self._members)], self._account(step.second)
        if channel_id in self._bridges:
            return [ChannelUnbridged(channel_id, self._bridges.pop(channel_id), by)]
        self._bridges[channel_id] = f"{900 + step.second % 2}"
        return [ChannelBridged(channel_id, self._bridges[channel_id], str(10**17 + step.first), by)]

    def _person(self, step: Step) -> list[Told]:
        """Somebody on Discord is seen, linked to an account, or unlinked."""
        number = step.second % 3
        person, user_id, account_id = f"p{number}", str(70 + number), self._account(step.first)
        if step.first in (0, 1):
            self._seen[self.position + 1] = person
            return [InStream(f"discord-user-{person}", DiscordUserSeen(user_id, f"{step.words} of Discord"))]
        if step.first in (2, 3):
            self._links[person] = account_id
            return [InStream(f"discord-user-{person}", DiscordLinked(user_id, account_id)), LinkCodeUsed(account_id)]
        linked = self._links.pop(person, None)
        return [] if linked is None else [InStream(f"discord-user-{person}", DiscordUnlinked(user_id, linked))]

    def _dm(self, step: Step) -> list[Event]:
        sender_id = self._account(step.first)
        self._standing.append((self.position + 1, sender_id))
        return [DirectMessageSent(sender_id, self._account(step.second), step.words)]

    def _delete(self, step: Step) -> list[Event]:
        if not self._standing:
            return []
        # The newest ones first: so that they are deleted within the append or the batch that sent them.
        message_id, sender_id = self._standing.pop(-1 - step.first % len(self._standing))
        deleted = MessageDeleted(message_id, sender_id)
        came = [copy_id for copy_id, copy in self._copies.items() if copy.origins == (message_id,)]
        if step.second and came and message_id <= self._recorded:
            # It was deleted on Discord, so nobody needs to withdraw it there.
            return [deleted, DiscordMessageWithdrawn(self._copies.pop(came[0]).discord_channel_id, tuple(came))]
        return [deleted]

    def _open_connection(self, step: Step) -> list[Told]:
        # Few connections, so that they are opened again, or by their account once more while they are open.
        connection_id = f"c{step.second}"
        account_id = self._owners.setdefault(connection_id, self._account(step.first))
        self._open[connection_id] = account_id
        opened = ConnectionOpened(account_id, f"node-{step.first % 2}", self._generations.get(account_id, 0))
        return [*self._verify(account_id, step.first), InStream(f"connection-{connection_id}", opened)]

    def _verify(self, account_id: int, choice: int) -> list[Told]:
        if account_id in self._verified:
            return []
        self._verified.add(account_id)
        if choice == 0:
            return [AccountVerified(account_id, False, None)]
        digest = f"d{choice % 2}"
        if digest in self._devices:
            return [AccountVerified(account_id, True, digest)]
        self._devices.add(digest)
        verified = AccountVerified(account_id, False, digest)
        return [verified, InStream(f"device-{digest}", DeviceClaimed(account_id))]

    def _close_connection(self, step: Step) -> list[Told]:
        if not self._open:
            return []
        connection_id = list(self._open)[-1 - step.first % len(self._open)]
        closed = ConnectionClosed(self._open.pop(connection_id), step.words)
        return [InStream(f"connection-{connection_id}", closed)]

    def _moderate(self, step: Step) -> list[Event]:
        account_id, by = self._account(step.first), 999
        event: Event = (
            AccountSilenced(account_id, 60 * (1 + len(step.words)), step.words, by),
            SilenceRemoved(account_id, by),
            AccountBanned(account_id, step.words, by),
            BanRemoved(account_id, by),
            AccountKicked(account_id, step.words, by),
            AccountReported(account_id, step.words, by) if step.first else RestartRequested(5),
        )[step.second]
        return [event]

    def _account(self, choice: int) -> int:
        return self._accounts[choice % len(self._accounts)]
