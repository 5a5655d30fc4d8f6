"""Shared subscriptions: a group of sessions of which one gets each message (section 4.8.2).

A group owns its members and the queue of what no member could take. It does not send: the dispatcher asks it who is
next and gives what that member takes.

Theory of operation
-------------------
A message goes to a member that can take it at once. When none can, it waits in the group's queue and not in a
member's, so a member that is away or slow never hoards what another could do: whoever is free next takes it from there.
Only what was sent stays with its session: it is in flight there, and is sent again there. When that session ends, what
it had at QoS 1 is another member's, and what it had at QoS 2 is nobody's [MQTT-4.8.2-5].

The queue is stored from when a member outlives its connection until the group ends; a group without members ends with
its queue. While a member outlives its connection the group also keeps in the store what it gave at QoS 1 to those that
don't: their sessions end with the process, and nothing else would know of it then.

Invariant: what is kept is older than everything in the queue. A message is given away from the queue's head, or when
the queue is empty.
"""

from typing import TYPE_CHECKING, final

from broker.core.delivery_queue import DeliveryQueue
from broker.core.message import Delivery
from broker.core.subscription import Subscription
from broker.mqtt.topics import shared_group

if TYPE_CHECKING:
    from broker.core.session import Session


@final
class SharedGroup:
    """The sessions that share one filter under one name. `shared_filter` is all of `$share/name/filter`."""

    __slots__ = (
        "_order",
        "_turn",
        "kept",
        "lasting",
        "members",
        "next_seq",
        "number",
        "queue",
        "shared_filter",
        "stored",
        "topic_filter",
    )

    def __init__(self, number: int, shared_filter: bytes) -> None:
        parts = shared_group(shared_filter)
        assert parts is not None
        self.number = number
        self.shared_filter = shared_filter
        self.topic_filter: bytes = parts[1]
        self.members: dict[Session, Subscription] = {}
        self.queue = DeliveryQueue()
        # What is in flight at members whose sessions are not stored -> the group's own record of it, which is.
        self.kept: dict[Delivery, Delivery] = {}
        self.next_seq: int = 1
        # How many members outlive their connections.
        self.lasting: int = 0
        # Whether the store knows of it.
        self.stored = False
        self._order: list[Session] = []
        self._turn: int = 0

    def set_member(self, session: "Session", subscription: Subscription) -> None:
        """Add a member, or change how it subscribes."""
        if session not in self.members:
            self._order.append(session)
            session.groups.append(self)
            if session.persistent:
                self.lasting += 1
        self.members[session] = subscription

    def remove_member(self, session: "Session") -> None:
        """Remove a member."""
        del self.members[session]
        place = self._order.index(session)
        del self._order[place]
        if place < self._turn:
            self._turn -= 1
        session.groups.remove(self)
        if session.persistent:
            self.lasting -= 1

    def is_persistent(self) -> bool:
        """Say whether a member outlives its connection, so that the queue has to be stored."""
        return self.lasting > 0

    def in_turn(self) -> list["Session"]:
        """Return the members, beginning with the one whose turn it is: who stands first is asked first."""
        return self._order[self._turn :] + self._order[: self._turn]

    def pass_turn(self, members: int) -> None:
        """The turn goes on by so many members: to the one behind who was served, and those who could not be."""
        self._turn = (self._turn + members) % len(self._order)

    def is_online(self) -> bool:
        """Say whether a member is connected."""
        return any(session.attachment is not None for session in self._order)

    def take_seq(self) -> int:
        """Return the next place in the queue."""
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq
