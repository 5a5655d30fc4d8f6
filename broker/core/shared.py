"""Shared subscriptions: a group of sessions of which one gets each message (section 4.8.2).

A group owns its members and the queue of what no member could take. It does not send: the dispatcher asks it who is
next and gives what that member takes.

Theory of operation
-------------------
A message goes to a member that can take it at once. When none can, it waits in the group's queue and not in a
member's, so a member that is away or slow never hoards what another could do: whoever is free next takes it from there.
Only what was sent stays with its session: it is in flight there, and is sent again there. When that session ends, what
it had at QoS 1 is another member's, and what it had at QoS 2 is nobody's [MQTT-4.8.2-5].

The group is one of the whole cluster, and this is this node's part of it; `groups` knows the others. The queue is
stored from when a member, here or elsewhere, outlives its connection until the group ends here. While there is such a
member the group also keeps in the store what it gave at QoS 1 to those that don't outlive theirs: their sessions end
with the process, and nothing else would know of it then. A part without members lasts as long as its queue, which other
nodes are to have, and as what it keeps, which they would have to have.

Invariant: what is kept is older than everything in the queue. A message is given away from the queue's head, or when
the queue is empty.
"""

from typing import TYPE_CHECKING, final

from broker.core.delivery_queue import DeliveryQueue
from broker.core.group_choice import GroupParts
from broker.core.message import Delivery
from broker.core.rows import pack_group, unpack_group
from broker.core.subscription import Subscription
from broker.mqtt.topics import shared_group

if TYPE_CHECKING:
    from broker.core.session import Session


@final
class SharedGroup:
    """The sessions that share one filter under one name. `shared_filter` is all of `$share/name/filter`."""

    __slots__ = (
        "_turn",
        "full",
        "kept",
        "lasting",
        "members",
        "next_seq",
        "number",
        "online",
        "others",
        "queue",
        "shared_filter",
        "stored",
        "told",
        "topic_filter",
    )

    def __init__(self, number: int, shared_filter: bytes) -> None:
        parts = shared_group(shared_filter)
        assert parts is not None
        self.number = number
        self.shared_filter = shared_filter
        self.topic_filter: bytes = parts[1]
        # What the other nodes have of it, None for nothing; and the value of its row that they were told, b"" for none.
        self.others: GroupParts | None = None
        self.told: bytes = b""
        self.members: dict[Session, Subscription] = {}
        self.queue = DeliveryQueue()
        # Whether the queue was over half of its limits, and has not come below a quarter since.
        self.full = False
        # What is in flight at members whose sessions are not stored -> the group's own record of it, which is.
        self.kept: dict[Delivery, Delivery] = {}
        self.next_seq: int = 1
        # How many members outlive their connections.
        self.lasting: int = 0
        # Whether the store knows of it.
        self.stored = False
        # The members that are connected: who is away costs a message nothing. Whose turn it is to be asked first is a
        # place among them, 0 when there are none.
        self.online: list[Session] = []
        self._turn: int = 0

    def set_member(self, session: "Session", subscription: Subscription) -> None:
        """Add a member, or change how it subscribes."""
        if session not in self.members:
            session.groups.append(self)
            if session.attachment is not None:
                self.come_online(session)
            if session.persistent:
                self.lasting += 1
        self.members[session] = subscription

    def remove_member(self, session: "Session") -> None:
        """Remove a member."""
        del self.members[session]
        session.groups.remove(self)
        if session.attachment is not None:
            self.go_offline(session)
        if session.persistent:
            self.lasting -= 1

    def come_online(self, session: "Session") -> None:
        """A member is connected: it is asked after all the others."""
        self.online.insert(self._turn, session)
        self._turn = (self._turn + 1) % len(self.online)

    def go_offline(self, session: "Session") -> None:
        """A member's connection ended: the turn stays with whose it is, or is the next one's."""
        place = self.online.index(session)
        del self.online[place]
        if place < self._turn:
            self._turn -= 1
        elif self._turn == len(self.online):
            self._turn = 0

    def is_persistent(self) -> bool:
        """Say whether a member, wherever it is, outlives its connection, so that the queue has to be stored.

        Without members here it is what other nodes are to have.
        """
        return self.lasting > 0 or not self.members or (self.others is not None and self.others.is_persistent())

    def row_value(self) -> bytes:
        """Return what other nodes are to know of it, b"" for nothing.

        They hear of more or fewer connected members when those are twice as many as they know of, or half: a thousand
        that come make ten changes, and the choice among nodes is as good.
        """
        if not self.members:
            return b""
        online = len(self.online)
        if self.told:
            known = unpack_group(self.told)[1]
            if known and known < 2 * online < 4 * known:
                online = known
        return pack_group(self.lasting > 0, online, self.full)

    def in_turn(self, place: int) -> "Session":
        """Return the connected member who is asked at this place: who stands at 0 is asked first."""
        index = self._turn + place
        count = len(self.online)
        return self.online[index if index < count else index - count]

    def pass_turn(self, members: int) -> None:
        """The turn goes on by so many members: to the one behind who was served, and those who could not be."""
        self._turn = (self._turn + members) % len(self.online)

    def take_seq(self) -> int:
        """Return the next place in the queue."""
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq

    def validate(self) -> None:
        """Check that what is counted and kept by the way is what a look at every member would find."""
        online = [session for session in self.members if session.attachment is not None]
        assert len(self.online) == len(online)
        assert set(self.online) == set(online)
        assert 0 <= self._turn < max(1, len(online))
        assert self.lasting == sum(1 for session in self.members if session.persistent)
        assert self.stored or not self.kept
        self.queue.validate()
