"""Random logs: valid stories of people, channels and messages, told in batches of appends.

A story is drawn as small numbers, and told by taking each of them modulo what there is to choose from; so hypothesis
can shorten it freely, and whatever it draws is a log that the commands might have written, or nearly so: here a
message may be sent and deleted in one append, which no single command does.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from hypothesis import strategies as st

from chat.events import (
    AccountRegistered,
    ChannelCreated,
    DirectMessageSent,
    Event,
    MemberAdded,
    MessageDeleted,
    MessageSent,
    TokenIssued,
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


KINDS = ("register", "token", "channel", "member", "message", "message", "dm", "delete", "delete")
CHOICES = st.integers(0, 5)
STEPS = st.builds(Step, st.sampled_from(KINDS), CHOICES, CHOICES, TEXTS)
# Batches of appends of steps.
Story = Sequence[Sequence[Sequence[Step]]]
STORIES = st.lists(st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=1, max_size=3), min_size=1, max_size=12)


class Teller:
    """Turns steps into events, at the positions at which a log takes them that nobody else writes to."""

    def __init__(self) -> None:
        self.position = 0
        self._accounts: list[int] = []
        self._generations: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._standing: list[tuple[int, int]] = []
        self._streams = itertools.count()

    async def tell(self, log: EventLog, story: Story) -> None:
        """Appends the story; the appends of a batch are handed in together."""
        for batch in story:
            writes = [self._write(steps) for steps in batch]
            await asyncio.gather(
                *(log.append(write, context=Context(None, "a story")) for write in writes if write.events)
            )

    def _write(self, steps: Sequence[Step]) -> StreamWrite:
        events = [event.recorded_form() for step in steps for event in self._events(step)]
        return StreamWrite(f"story-{next(self._streams)}", events)

    def _events(self, step: Step) -> list[Event]:
        ways: dict[str, Callable[[Step], list[Event]]] = {
            "register": self._register,
            "token": self._token,
            "channel": self._channel,
            "member": self._member,
            "message": self._message,
            "dm": self._dm,
            "delete": self._delete,
        }
        told = ways[step.kind](step) if self._accounts else self._register(step)
        self.position += len(told)
        return told

    def _register(self, step: Step) -> list[Event]:
        account_id = 1000 + len(self._accounts)
        self._accounts.append(account_id)
        name = f"{account_id} {step.words}"
        password_hash = None if step.first == 0 else f"hash of {step.words}"
        return [UsernameClaimed(account_id), AccountRegistered(account_id, name, name.lower(), password_hash)]

    def _token(self, step: Step) -> list[Event]:
        account_id = self._account(step.first)
        generation = self._generations.get(account_id, 0) + 1
        self._generations[account_id] = generation
        return [TokenIssued(account_id, generation, sha256(b"%d:%d" % (account_id, generation)).hexdigest())]

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
        return [MessageSent(channel_id, sender_id, step.words)]

    def _dm(self, step: Step) -> list[Event]:
        sender_id = self._account(step.first)
        self._standing.append((self.position + 1, sender_id))
        return [DirectMessageSent(sender_id, self._account(step.second), step.words)]

    def _delete(self, step: Step) -> list[Event]:
        if not self._standing:
            return []
        # The newest ones first: so that they are deleted within the append or the batch that sent them.
        message_id, sender_id = self._standing.pop(-1 - step.first % len(self._standing))
        return [MessageDeleted(message_id, sender_id)]

    def _account(self, choice: int) -> int:
        return self._accounts[choice % len(self._accounts)]
