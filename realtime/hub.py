"""The hub: rooms, and how what is sent reaches many connections.

A parcel is encoded and framed once, however many get it. What an outlet gets within one turn of the loop leaves in one
write, and a whole room is written to by one `map` over an array of descriptors, which is what makes it fast. Under so
much load that one flush follows the other, a little is waited in between, and more leaves in each write.

Invariants:
* Order: an outlet gets parcels in the order in which they were sent and published, whichever rooms they came by.
* A descriptor is closed by `Hub.drop` alone, after it was taken out of all rooms and their arrays. The system gives
  its number to the next connection at once, so an array that still held it would tell a stranger what was meant for
  somebody else. Nothing is dropped while a flush walks over the arrays: faults are noted, and dealt with after it.
* Whoever is among the members when something is published gets it: membership changes flush first.
* An outlet keeps at most `max_backlog` bytes that its client does not take; then it is given up.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import chain, repeat
from operator import itemgetter
from time import monotonic

from realtime.engineio import MESSAGE, Packet
from realtime.links import Link
from realtime.websocket import Opcode, frame, message_frame

_BROKEN = -1
_MESSAGE = MESSAGE.encode()

# A flush that took longer than this, in seconds, is followed by a pause of a quarter of its time, up to the most: when
# one comes after the other, the machine's time goes into writes, and waiting a little makes them fewer.
_LONG_FLUSH = 0.0001
_PAUSE_SHARE = 0.25
_LONGEST_PAUSE = 0.002


class Parcel:
    """Something to send, in the forms that transports need: Engine.IO packets, and all of them as WebSocket frames.

    `offset` is its place in the application's log, if it has one (see `Hub.hold`).
    """

    __slots__ = ("_packets", "_text", "frames", "offset")

    def __init__(
        self, packets: Sequence[Packet] | None, offset: int | None = None, frames: bytes | None = None
    ) -> None:
        self._packets = packets
        self._text = b""
        self.offset = offset
        self.frames = b"".join(map(message_frame, packets or ())) if frames is None else frames

    @classmethod
    def of_message(cls, text: bytes, attachments: Sequence[bytes] = (), offset: int | None = None) -> Parcel:
        """A parcel of an Engine.IO message, whose text comes in UTF-8, and of messages of bytes that follow it."""
        packet = _MESSAGE + text
        frames = frame(Opcode.TEXT, packet)
        if attachments:
            return cls([packet.decode(), *attachments], offset, frames + b"".join(map(message_frame, attachments)))
        parcel = cls(None, offset, frames)
        parcel._text = packet
        return parcel

    @property
    def packets(self) -> Sequence[Packet]:
        """The Engine.IO packets, made once somebody polls for them."""
        if self._packets is None:
            self._packets = (self._text.decode(),)
        return self._packets


class Outlet:
    """The sending side of one connection. Its state says where parcels go:

    `fd` is the descriptor that can be written to at once, or -1: then they wait in `backlog` until the socket takes
    more, in `packets` until the client polls, or in `held` until the application lets go.
    """

    __slots__ = ("_drained", "backlog", "fd", "held", "held_size", "link", "packets", "rooms", "waiting")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.fd = -1
        self.rooms: set[Room] = set()
        self.backlog: deque[bytes | memoryview] | None = None
        self.packets: list[Packet] = []
        self.held: list[Parcel] | None = None
        # Bytes that wait in the backlog or to be polled, and those that are held.
        self.waiting = 0
        self.held_size = 0
        self._drained: list[asyncio.Future[None]] | None = None

    def parcels_wait(self) -> None:
        """Called after a flush that left packets to be polled."""

    def given_up(self, reason: str) -> None:
        """Called after a flush that failed for this outlet: it is to be closed."""
        raise NotImplementedError

    async def drained(self) -> None:
        """Returns when nothing waits any more, or the outlet is dropped."""
        if self.waiting:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drained = [*(self._drained or ()), future]
            await future

    def took(self, size: int) -> None:
        """The client, or whatever is between, has taken so many of the bytes that waited."""
        self.waiting -= size
        if not self.waiting:
            self.settle()

    def settle(self) -> None:
        """Tells those who wait for the outlet to drain."""
        waiters, self._drained = self._drained or (), None
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def go_direct(self) -> None:
        """Lets parcels go straight to the socket if nothing is in their way."""
        is_free = self.link is not None and self.backlog is None and self.held is None
        fd = self.link.descriptor if self.link is not None and is_free else -1
        if fd != self.fd:
            self.fd = fd
            for room in self.rooms:
                room.changed()


class Room:
    """A set of outlets, and the array of their descriptors, made when it is needed."""

    __slots__ = ("_direct", "_fds", "_indirect", "members")

    def __init__(self, members: Iterable[Outlet] = ()) -> None:
        self.members = dict.fromkeys(members)
        self._fds: array[int] | None = None
        self._direct: list[Outlet] = []
        self._indirect: list[Outlet] = []

    def changed(self) -> None:
        """The members changed, or the way to one of them: the array is no longer true."""
        self._fds = None

    def routes(self) -> tuple[array[int], list[Outlet], list[Outlet]]:
        """The descriptors to write to, whose they are, and the members that cannot be written to at once."""
        if self._fds is None:
            self._direct, self._indirect = _divided(self.members)
            self._fds = array("i", [outlet.fd for outlet in self._direct])
        return self._fds, self._direct, self._indirect


def _divided(outlets: Iterable[Outlet]) -> tuple[list[Outlet], list[Outlet]]:
    direct: list[Outlet] = []
    indirect: list[Outlet] = []
    for outlet in outlets:
        (direct if outlet.fd >= 0 else indirect).append(outlet)
    return direct, indirect


@dataclass
class Delivered:
    """What the hub has done so far."""

    parcels: int = 0
    bytes: int = 0


# A parcel's place in the turn, and the parcel.
_Entry = tuple[int, Parcel]


class Hub:
    """Sends parcels to outlets and rooms, once a turn of the loop."""

    def __init__(self, max_backlog: int) -> None:
        self.max_backlog = max_backlog
        self.delivered = Delivered()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entries = 0
        # Until when what is sent is gathered, on the loop's clock.
        self._pause_ends = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._to_outlets: dict[Outlet, list[_Entry]] = {}
        self._to_rooms: dict[Room, list[_Entry]] = {}
        # What a flush found and leaves to its end.
        self._faulty: list[tuple[Outlet, str]] = []
        self._polled: list[Outlet] = []

    def send(self, outlet: Outlet, parcel: Parcel) -> None:
        """Sends to one outlet, at the end of this turn of the loop."""
        self._to_outlets.setdefault(outlet, []).append(self._entry(parcel))

    def publish(self, room: Room, parcel: Parcel, skip: Outlet | None = None) -> None:
        """Sends to all members of a room but `skip`, at the end of this turn of the loop."""
        if skip is not None and skip in room.members:
            room = Room(member for member in room.members if member is not skip)
        self._to_rooms.setdefault(room, []).append(self._entry(parcel))

    def join(self, outlet: Outlet, room: Room) -> None:
        """Makes the outlet a member; nothing happens if it is one.

        Call `flush` before looking for the room: a flush may drop outlets, this one among them, and empty rooms.
        """
        self.flush()
        if outlet not in room.members:
            room.members[outlet] = None
            room.changed()
            outlet.rooms.add(room)

    def leave(self, outlet: Outlet, room: Room) -> None:
        """Ends a membership, if there is one."""
        self.flush()
        if outlet in room.members:
            del room.members[outlet]
            room.changed()
            outlet.rooms.discard(room)

    def hold(self, outlet: Outlet) -> None:
        """Keeps back what is published to the outlet's rooms; what is sent to it alone still goes.

        So an application can first send what a client missed, from its log, and lets rooms go on from there.
        """
        if outlet.held is None:
            self.flush()
            outlet.held = []
            outlet.go_direct()

    def release(self, outlet: Outlet, after: int) -> None:
        """Ends a `hold`: what was kept back goes, without parcels of an offset up to `after`."""
        self.flush()
        held, outlet.held, outlet.held_size = outlet.held or [], None, 0
        outlet.go_direct()
        for parcel in held:
            if parcel.offset is None or parcel.offset > after:
                self.send(outlet, parcel)
        self.flush()

    def drop(self, outlet: Outlet) -> None:
        """Takes the outlet out of everything and closes its descriptor. Nothing is sent to it any more."""
        self.flush()
        for room in outlet.rooms:
            del room.members[outlet]
            room.changed()
        outlet.rooms.clear()
        outlet.backlog, outlet.held, outlet.waiting, outlet.held_size = None, None, 0, 0
        outlet.packets.clear()
        link, outlet.link, outlet.fd = outlet.link, None, -1
        outlet.settle()
        if link is not None:
            link.close()

    def _entry(self, parcel: Parcel) -> _Entry:
        if not self._entries:
            self._schedule()
        self._entries += 1
        return self._entries, parcel

    def _schedule(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._pause_ends > self._loop.time():
            self._timer = self._loop.call_at(self._pause_ends, self.flush)
        else:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what was sent and published since the last flush, and what those who were given up brought about."""
        while self._entries:
            self._flush_once()

    def _flush_once(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        began = monotonic()
        self._entries = 0
        to_outlets, self._to_outlets = self._to_outlets, {}
        to_rooms, self._to_rooms = self._to_rooms, {}
        if len(to_rooms) == 1 and not to_outlets:
            ((room, entries),) = to_rooms.items()
            self._deliver(*room.routes(), [parcel for _, parcel in entries])
        elif to_rooms:
            self._deliver_mixed(to_outlets, to_rooms)
        else:
            for outlet, entries in to_outlets.items():
                self._deliver_to(outlet, [parcel for _, parcel in entries])
        self._settle()
        took = monotonic() - began
        if took > _LONG_FLUSH and self._loop is not None:
            self._pause_ends = self._loop.time() + min(_PAUSE_SHARE * took, _LONGEST_PAUSE)

    def _deliver_mixed(self, to_outlets: dict[Outlet, list[_Entry]], to_rooms: dict[Room, list[_Entry]]) -> None:
        """Several rooms, or rooms and single outlets: those who get the same are written to together."""
        shares: dict[Outlet, tuple[Room, ...]] = {}
        for room in to_rooms:
            for outlet in room.members:
                shares[outlet] = (*shares.get(outlet, ()), room)
        for outlet, entries in to_outlets.items():
            published = [to_rooms[room] for room in shares.pop(outlet, ())]
            if outlet.held is None or not published:
                self._deliver_to(outlet, _in_order([entries, *published]))
            else:
                # What was sent to it alone goes, what was published stays, though both are of one turn.
                self._deliver_to(outlet, _in_order([entries]))
                self._deliver(array("i"), [], [outlet], _in_order(published))
        alike: dict[tuple[Room, ...], list[Outlet]] = {}
        for outlet, rooms in shares.items():
            alike.setdefault(rooms, []).append(outlet)
        for rooms, outlets in alike.items():
            direct, indirect = _divided(outlets)
            fds = array("i", [outlet.fd for outlet in direct])
            self._deliver(fds, direct, indirect, _in_order([to_rooms[room] for room in rooms]))

    def _deliver_to(self, outlet: Outlet, parcels: Sequence[Parcel]) -> None:
        if outlet.fd >= 0:
            self._deliver(array("i", [outlet.fd]), [outlet], [], parcels)
        elif outlet.held is None:
            self._deliver(array("i"), [], [outlet], parcels)
        else:
            self._let_through(outlet, parcels)

    def _let_through(self, outlet: Outlet, parcels: Sequence[Parcel]) -> None:
        """What was sent to a held outlet alone goes past what is held."""
        held, outlet.held = outlet.held, None
        self._deliver(array("i"), [], [outlet], parcels)
        outlet.held = held

    def _deliver(
        self, fds: array[int], direct: list[Outlet], indirect: list[Outlet], parcels: Sequence[Parcel]
    ) -> None:
        data = parcels[0].frames if len(parcels) == 1 else b"".join([parcel.frames for parcel in parcels])
        self.delivered.parcels += len(parcels) * (len(direct) + len(indirect))
        self.delivered.bytes += len(data) * (len(direct) + len(indirect))
        if fds:
            self._write(fds, direct, data)
        for outlet in indirect:
            self._queue(outlet, parcels, data)

    def _write(self, fds: array[int], outlets: list[Outlet], data: bytes) -> None:
        counts: list[int] = []
        writes = map(os.write, fds, repeat(data))
        while len(counts) < len(fds):
            try:
                # An error ends the extension, not the map: it goes on behind the descriptor that failed.
                counts.extend(writes)
            except BlockingIOError:
                counts.append(0)
            except OSError:
                counts.append(_BROKEN)
        if counts.count(len(data)) < len(counts):
            for outlet, count in zip(outlets, counts, strict=True):
                if count == _BROKEN:
                    self._faulty.append((outlet, "transport error"))
                elif count < len(data):
                    self._fall_behind(outlet, memoryview(data)[count:])

    def _fall_behind(self, outlet: Outlet, rest: bytes | memoryview) -> None:
        """The socket takes no more now: from here on everything waits in the backlog, in order."""
        outlet.backlog = deque((rest,))
        outlet.go_direct()
        self._wait(outlet, len(rest))
        assert outlet.link is not None  # noqa: S101 - it was written to just now
        outlet.link.when_writable(lambda: self._catch_up(outlet))

    def _catch_up(self, outlet: Outlet) -> None:
        """Writes more of the backlog once the socket takes some."""
        link, backlog = outlet.link, outlet.backlog
        if link is None or backlog is None:
            return
        try:
            count = link.write(backlog)
        except OSError:
            outlet.given_up("transport error")
            return
        _remove_front(backlog, count)
        if not backlog:
            outlet.backlog = None
            link.stop_writing()
            outlet.go_direct()
        outlet.took(count)

    def _queue(self, outlet: Outlet, parcels: Sequence[Parcel], data: bytes) -> None:
        if outlet.held is not None:
            outlet.held.extend(parcels)
            outlet.held_size += len(data)
            self._check_backlog(outlet)
            return
        if outlet.link is None:
            outlet.packets.extend(chain.from_iterable(parcel.packets for parcel in parcels))
            self._polled.append(outlet)
        elif outlet.backlog is not None:
            outlet.backlog.append(data)
        else:
            # A link without a descriptor: its socket cannot be written to from here.
            self._fall_behind(outlet, data)
            return
        self._wait(outlet, len(data))

    def _wait(self, outlet: Outlet, size: int) -> None:
        outlet.waiting += size
        self._check_backlog(outlet)

    def _check_backlog(self, outlet: Outlet) -> None:
        if outlet.waiting + outlet.held_size > self.max_backlog:
            self._faulty.append((outlet, "backlog"))

    def _settle(self) -> None:
        """Deals with what the flush found, now that no array is being walked over."""
        polled, self._polled = self._polled, []
        for outlet in polled:
            outlet.parcels_wait()
        faulty, self._faulty = self._faulty, []
        for outlet, reason in faulty:
            outlet.given_up(reason)


def _in_order(streams: Sequence[list[_Entry]]) -> list[Parcel]:
    entries = streams[0] if len(streams) == 1 else merge(*streams, key=itemgetter(0))
    return [parcel for _, parcel in entries]


def _remove_front(backlog: deque[bytes | memoryview], count: int) -> None:
    """Takes so many bytes off the front."""
    while count:
        first = backlog.popleft()
        if len(first) > count:
            backlog.appendleft(memoryview(first)[count:])
            return
        count -= len(first)
