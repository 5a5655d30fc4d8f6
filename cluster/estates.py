"""Estates: what this node kept for members that are gone, given to their sessions' new homes.

Owns the outboxes for stores that are no members any more, and who of their sessions wanted what. A message there was
acknowledged to its publisher, and is for sessions that have other homes by now: each gets what it had subscribed to by
the way on which sessions move (`broker.core.legacies`), and the message is forgotten here in the same batch. What is
for a group goes to another member, if it has one.

What those sessions wanted is remembered in the store (`MeshStore`), since the tables of a node go with it. Nothing is
given before all members and their tables are known: a session whose new home is not known here would seem to be over.

A new home leaves to the old one what is published here before it has this node's mark (see `broker.core.arrival`). It
may be down or cut off when the old one is removed, or this node may have started since it put the mark into the stream:
then nobody else would have that. So an estate grows by what is published here for its sessions, as what waits for a
member does, until the home of each has the mark in its stream. An estate that grows is not given.

What was sent to a new home as well, that may have taken or left to the old one: it alone knows, and tells the next one.
It forgets from where it gets what no sooner than this node knows that the old one has nothing (see `arrivals`).

A session may have come to the removed node from another one. What was published here before that was known went there
as well, and is for the session nowhere else (see `newcomers`).

Whoever removed a node may not have heard of a session that had begun there while its home was down, and that home goes
on with what it has. To that it is given as what was kept for a rival, of no later epoch.

The store that is gone may come back as a donor's. It hears from which number on what is published here is given from
an estate, if not directly, whether that is given already, or grows yet, and leaves that to it. As it is a member again,
it may have what is older than that and what is newer: whoever had both from it would take all between for given.

What a donor has for members it gives to their sessions in the same way (see `donor`).

Invariant: an estate grows exactly while it has `heirs`.
"""

import math
from collections.abc import Iterable
from typing import Final, final

from broker.core.epoch import NO_EPOCH, Epoch
from broker.core.legacies import is_bare
from broker.core.message import Delivery, Message
from broker.core.owner import QueueOwner
from cluster.mesh import Mesh
from cluster.moving import Moving
from cluster.outbox import Outbox, Stored
from cluster.peers import grows_by
from cluster.wanted import Wanted
from cluster.wire import NUMBER_MAX

# How much of an estate is read in a turn, and how long the next one waits.
CHUNK_BYTES: Final = 256 * 1024
PAUSE_S: Final = 0.02
_OTHER_HOME_S: Final = 0.5
# How long the next look for new homes waits for each session for which an estate grows.
_LOOK_S: Final = 5e-5


@final
class Estate:
    """The outbox for a store that is no member any more, and what its sessions wanted."""

    def __init__(
        self, store_id: bytes, outbox: Outbox, wanted: Wanted, grows: bool, own: bytes, newcomers: dict[str, int]
    ) -> None:
        self.store_id = store_id
        self.outbox = outbox
        self._own: Final = own
        self._newcomers: Final = newcomers
        # It is stored from which of this node's messages on they are given to others.
        self.is_told = False
        # The number of the first of these that is left, or would be the next, NUMBER_MAX for none; 0 until it is looked
        # up, which has come to the message `seen` in the outbox.
        self.first = 0
        self.seen = 0
        self.wanted = wanted
        # The sessions for which it grows: client id -> the home, the generation of its wishes, and the mark of which is
        # awaited that the home has it.
        self.heirs: dict[str, tuple[bytes, int, int]] = {}
        # Client id -> the number of the last message in it for a session for which it grows no more.
        self.last: dict[str, int] = {}
        self.given = 0
        if grows:
            for topic_filter, client_id, subscription in wanted.plain():
                if grows_by(topic_filter, subscription):
                    self.heirs[client_id] = (NO_EPOCH.store_id, 0, 0)

    def growing_by(self) -> list[bytes]:
        """Return the filters of the sessions for which it grows."""
        return [
            topic_filter
            for topic_filter, client_id, subscription in self.wanted.plain()
            if client_id in self.heirs and grows_by(topic_filter, subscription)
        ]

    def wanted_by(self, stored: Stored) -> dict[str, tuple[int, bool, bytes]]:
        """Return (QoS, RETAIN, identifiers) for each session that gets a message."""
        return {
            client_id: wanted
            for client_id, wanted in self.wanted.by(stored.message).items()
            if stored.number <= self.last.get(client_id, stored.number)
            and not _is_older(stored.message, self._own, self._newcomers, client_id)
        }


@final
class Kept:
    """What a donor kept for a member: who of that wanted what, and from which number on, if not all."""

    def __init__(self, mesh: Mesh, store_id: bytes) -> None:
        self.wanted = Wanted(mesh.kept(store_id))
        self._former = mesh.former_store()
        self._newcomers = mesh.newcomers(store_id)
        self._first = mesh.kept_from(store_id)

    def stubs(self) -> Iterable[str]:
        """Return the client ids of the sessions whose stubs give what is older."""
        return self._first

    def wanted_by(self, message: Message) -> dict[str, tuple[int, bool, bytes]]:
        """Return (QoS, RETAIN, identifiers) for each session that gets a message."""
        return {
            client_id: wanted
            for client_id, wanted in self.wanted.by(message).items()
            if (
                client_id not in self._first
                or (message.origin == self._former and message.number >= self._first[client_id])
            )
            and not _is_older(message, self._former, self._newcomers, client_id)
        }


@final
class Estates:
    """All estates of this node."""

    def __init__(self, owner: QueueOwner, mesh: Mesh, moving: Moving) -> None:
        self._owner = owner
        self._mesh = mesh
        self._moving = moving
        self._open: dict[bytes, Estate] = {}
        # By store id, of a donor.
        self._kept: dict[bytes, Kept] = {}
        self._work_at = 0.0
        owner.legacies.restore(mesh.started_at)

    def begin(self, now: float) -> None:
        """Begin a turn: go on, if everything that was written is committed."""
        for store_id in self._mesh.take_estates():
            wanted = Wanted(self._mesh.estate_wishes(store_id))
            grows = self._mesh.is_growing(store_id)
            own = self._mesh.membership.own().store_id
            newcomers = self._mesh.newcomers(store_id)
            self._open[store_id] = Estate(store_id, self._mesh.estate_outbox(store_id), wanted, grows, own, newcomers)
            self._work_at = 0.0
        if not self._open or now < self._work_at:
            return
        self._work_at = now + PAUSE_S
        for estate in self._open.values():
            if not estate.first:
                self._look_up(estate)
        growing = [estate for estate in self._open.values() if estate.heirs]
        if growing:
            # What is added last has to be committed before it is read.
            self._work_at = 0.0
            for estate in growing:
                self._grow(estate, now)
                if estate.heirs:
                    self._work_at = max(self._work_at, now + PAUSE_S + len(estate.heirs) * _LOOK_S)
            return
        if not self._mesh.is_complete():
            return
        for store_id, estate in list(self._open.items()):
            if not self._settle(estate, now):
                self._work_at = now + _OTHER_HOME_S
            if not estate.outbox.messages:
                del self._open[store_id]
                self._mesh.end_estate(store_id)
                if not self._open:
                    self._moving.arrivals.end_own(now)
                if estate.given:
                    self._mesh.note(f"{estate.given} messages for a node that is gone go to its sessions' new homes")

    def give_kept(self, node: str, now: float) -> bool:
        """Give a part of what a donor kept for a member to its sessions; true when all is given.

        Call it when everything that was written is committed.
        """
        peer = self._mesh.peers[node]
        left = self._mesh.kept_left(peer.store_id)
        if not left:
            return True
        kept = self._kept.get(peer.store_id)
        if kept is None:
            kept = Kept(self._mesh, peer.store_id)
            self._kept[peer.store_id] = kept
        departures = self._owner.transfers.departures
        if any(client_id in departures and not is_bare(departures[client_id]) for client_id in kept.stubs()):
            # What those stubs have is older, and of another home.
            return False
        messages = peer.outgoing.withdraw() if self._mesh.is_complete() else None
        if messages is None:
            return False
        for stored in messages:
            # Not by how many are in the outbox: others may be added.
            left -= 1
            self._give_to_all(kept.wanted, kept.wanted_by(stored.message), stored, left, peer.store_id, now)
        if messages:
            self._mesh.put_kept_left(peer.store_id, left)
        return not messages

    def next_deadline(self) -> float:
        """Return when `begin` has something to do."""
        return self._work_at if self._open else math.inf

    def rerouted(self, store_id: bytes) -> int:
        """Return from which number on this node's messages for a store went to others, or will; NUMBER_MAX for none.

        0: that is not known yet.
        """
        if self._mesh.has_fresh_estate(store_id):
            return 0
        estate = self._open.get(store_id)
        stored = self._mesh.rerouted(store_id)
        return stored if estate is None else min(stored, estate.first)

    def messages(self) -> int:
        """Return how many messages are not given to anybody yet."""
        return sum(estate.outbox.messages for estate in self._open.values())

    def _look_up(self, estate: Estate) -> None:
        """See which of this node's messages is the first for sessions in an estate, or look at a part of it."""
        outbox = estate.outbox
        own = self._mesh.membership.own().store_id
        found = outbox.read(max(outbox.first, estate.seen + 1), outbox.last, CHUNK_BYTES)
        for stored in found:
            estate.seen = stored.number
            if stored.plain and stored.message.origin == own:
                estate.first = stored.message.number
                return
        if not found:
            estate.first = self._owner.next_number() if estate.heirs else NUMBER_MAX

    def _grow(self, estate: Estate, now: float) -> None:
        """See for which sessions an estate need not grow any more."""
        marks = self._mesh.marks()
        own = self._mesh.membership.own().store_id
        done = []
        for client_id, awaited in estate.heirs.items():
            home = self._mesh.registry.find(client_id)
            store_id = NO_EPOCH.store_id if home is None else home.epoch.store_id
            stream = marks.get(store_id)
            if stream is not None:
                if awaited[:2] != (store_id, stream.generation):
                    awaited = (store_id, stream.generation, stream.last)
                    estate.heirs[client_id] = awaited
                if stream.acked >= awaited[2]:
                    done.append(client_id)
            elif store_id == own or (home is None and len(marks) == len(self._mesh.peers)):
                # It is here, or nobody has it.
                done.append(client_id)
        if done:
            for client_id in done:
                del estate.heirs[client_id]
            self._mesh.grow_less(estate.store_id, estate.growing_by(), now)
            estate.last.update(dict.fromkeys(done, estate.outbox.last))

    def _settle(self, estate: Estate, now: float) -> bool:
        """Give a part of an estate away; false if the next message has to wait."""
        outbox = estate.outbox
        own = self._mesh.membership.own().store_id
        for stored in outbox.read(outbox.first, outbox.last, CHUNK_BYTES):
            wanted = estate.wanted_by(stored) if stored.plain else {}
            if any(self._is_busy(client_id) for client_id in wanted):
                return False
            if not estate.is_told and stored.plain and stored.message.origin == own:
                # If the store comes back, what it has of this and later messages is not to be given once more. One that
                # is for groups alone says nothing: it may be an older one, which was taken back from another member.
                estate.is_told = True
                first = min(self._mesh.rerouted(estate.store_id), stored.message.number)
                self._mesh.put_rerouted(estate.store_id, first)
            # Not by their numbers: a restart of this node leaves a gap in these, wider than a range of places.
            self._give_to_all(estate.wanted, wanted, stored, outbox.messages - 1, NO_EPOCH.store_id, now)
            self._give_to_groups(stored, now)
            estate.given += 1
            outbox.delete([stored.number], stored.size)
            outbox.first = stored.number + 1
        return True

    def _give_to_groups(self, stored: Stored, now: float) -> None:
        """Give to other members what is for groups, as if it were taken back from a member that died."""
        groups = [each for each in stored.groups if self._mesh.can_move(each, stored.message)]
        if groups:
            self._owner.receive_for_groups(stored.message, groups, now, stored.waited)
        if len(groups) < len(stored.groups):
            self._owner.counters.drop("group_ended", len(stored.groups) - len(groups))

    def _is_busy(self, client_id: str) -> bool:
        """Say whether a stub here has deliveries of a session that are not to be mixed with those of an estate.

        That is so of a session that has been here and leaves. What was kept for one that has come or begun here since
        goes in front of what is given to that itself.
        """
        transfers = self._owner.transfers
        departure = transfers.departures.get(client_id)
        if departure is None:
            return False
        if is_bare(departure):
            return self._owner.session(client_id) is not None and not transfers.is_drained(departure)
        return True

    def _give_to_all(
        self,
        wanted: Wanted,
        clients: dict[str, tuple[int, bool, bytes]],
        stored: Stored,
        behind: int,
        home: bytes,
        now: float,
    ) -> None:
        """Give a message to the sessions of these clients, as their old home would have.

        That is named if it is a member: the session of one that is there still is to take it as from nowhere else.
        """
        for client_id, (qos, retain, identifiers) in clients.items():
            if qos:
                old_epoch = Epoch(wanted.counters[client_id], 0, home)
                delivery = Delivery(0, stored.message, qos, retain, identifiers)
                self._give(client_id, old_epoch, delivery, behind, now)

    def _give(self, client_id: str, old_epoch: Epoch, delivery: Delivery, behind: int, now: float) -> None:
        home = self._mesh.registry.find(client_id)
        if home is None or not home.persistent or self._mesh.registry.is_over(client_id, old_epoch.counter):
            # Or its client has begun anew since.
            self._owner.counters.drop("session_ended")
            return
        # Where a stub of a later epoch than the home's is, that would seem to have the session.
        old_epoch = min(old_epoch, Epoch(home.epoch.counter, 0, old_epoch.store_id))
        place = self._owner.legacies.place(old_epoch, behind)
        session = self._owner.session(client_id)
        if session is not None:
            self._owner.legacies.give(session, old_epoch, place, delivery, now)
            self._moving.arrivals.watch_on(client_id)
            return
        known = client_id in self._owner.transfers.departures
        departure = self._owner.legacies.stub(client_id, old_epoch, place)
        self._owner.legacies.leave(departure, delivery)
        self._moving.departures.bequeath(departure, old_epoch, home.epoch, known)


def _is_older(message: Message, origin: bytes, newcomers: dict[str, int], client_id: str) -> bool:
    """Say whether a message of this origin was published before it was known that a session is where that waits for."""
    return message.origin == origin and message.number < newcomers.get(client_id, 0)
