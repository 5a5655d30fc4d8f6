"""The delivery queue: what waits for one session or shared group, its head in memory and the rest in the store.

It owns the order, the limits and the boundary between memory and store. What is in flight is no longer here; what is
here has no packet id. Messages of QoS 0 wait only while somebody is connected who doesn't read, and never in the store.

Theory of operation
-------------------
    seq:   head (in memory, at most HEAD_MAX of what is stored) ... tail (in the store only, from `tail_seq` on)

A stored delivery that comes when there is a tail already, or when the head is full, is only counted: its record is all
there is of it. When the head runs low, `wants_load` says so, and the owner reads the next records, once everything
that was written is committed. What is not stored (QoS 0, and everything of a session that ends with its connection)
stays in memory, ordered by `seq` among itself, whatever is in the tail: order is promised per topic and QoS.

A LIFO queue has its head at the young end: the head holds the youngest deliveries, and the tail the older ones, up to
and with `tail_seq`.

Invariants: every seq of the stored head is smaller than `tail_seq` (FIFO) or greater (LIFO); `bytes` is the sum of the
sizes of all, in memory or not.
"""

from typing import Final, final

from broker.core.fifo import Fifo
from broker.core.message import Delivery

# A delivery in memory costs about 500 bytes beside its payload: a head is what a window and a turn need.
HEAD_MAX: Final = 512
# Below it the next part of the tail is read; a window of acknowledgements does not drain so many in a turn.
HEAD_LOW: Final = 128


@final
class DeliveryQueue:
    """A bounded queue. `dropping` says that it was full and has not been half empty since: a log says so once."""

    __slots__ = (
        "_head",
        "_head_max",
        "_loose",
        "bytes",
        "dropping",
        "lifo",
        "oldest_seq",
        "qos0",
        "tail_count",
        "tail_seq",
    )

    def __init__(self, lifo: bool = False) -> None:
        self.lifo = lifo
        self._head: Fifo[Delivery] = Fifo()
        self._head_max: int = HEAD_MAX
        # What is not stored, oldest first.
        self._loose: Fifo[Delivery] = Fifo()
        self.tail_count: int = 0
        self.tail_seq: int = 0
        # Nothing in a LIFO queue's tail is older: a search from the beginning would pass over all that was removed.
        self.oldest_seq: int = 0
        self.bytes: int = 0
        # How many of QoS 0 wait.
        self.qos0: int = 0
        self.dropping = False

    def __len__(self) -> int:
        return len(self._head) + len(self._loose) + self.tail_count

    def is_empty(self) -> bool:
        """Say whether nothing waits, in memory or in the store."""
        return self._head.is_empty() and self._loose.is_empty() and not self.tail_count

    def in_memory(self) -> int:
        """Return how many could be taken now."""
        return len(self._head) + len(self._loose)

    def has_room(self, messages_max: int, bytes_max: int, size: int, inflight_bytes: int = 0) -> bool:
        """Say whether another delivery of `size` bytes fits; a negative limit is none.

        The limit in bytes is for what is in flight as well; a single delivery fits, whatever its size.
        """
        if messages_max >= 0 and len(self) >= messages_max:
            return False
        held = self.bytes + inflight_bytes
        return bytes_max < 0 or held + size <= bytes_max or not held

    def note_room(self, messages_max: int, bytes_max: int, inflight_bytes: int = 0) -> None:
        """An offer found room: below half of its limits the queue has come out of its trouble."""
        held = self.bytes + inflight_bytes
        if self.dropping and not (0 <= messages_max < 2 * len(self) or 0 <= bytes_max < 2 * held):
            self.dropping = False

    def is_over(self, messages_max: int, bytes_max: int) -> bool:
        """Say whether a queue of more than one delivery holds more than it may; a negative limit is none."""
        over = 0 <= messages_max < len(self) or 0 <= bytes_max < self.bytes
        return over and len(self) > 1

    def trim(self, seq: int, size: int) -> None:
        """The oldest of the tail was removed from the store."""
        self.oldest_seq = seq + 1
        self.tail_count -= 1
        self.bytes -= size

    def push(self, delivery: Delivery) -> None:
        """Append a delivery; the caller has asked `has_room`, and stored it if it is to be stored."""
        self.bytes += delivery.size
        if not delivery.stored:
            self._loose.append(delivery)
            if delivery.qos == 0:
                self.qos0 += 1
        elif self.lifo:
            self._head.append(delivery)
            if len(self._head) > HEAD_MAX:
                self.tail_seq = self._head.popleft().seq
                self.tail_count += 1
        elif self.tail_count or len(self._head) >= self._head_max:
            if not self.tail_count:
                self.tail_seq = delivery.seq
            self.tail_count += 1
        else:
            self._head.append(delivery)

    def restore(self, seq: int, size: int) -> None:
        """Count a record found in the store at recovery, in ascending order of `seq`; nothing of it is in memory."""
        if not self.tail_count or self.lifo:
            self.tail_seq = seq
        self.tail_count += 1
        self.bytes += size

    def rewind(self) -> None:
        """Leave to the store what is stored: `insert` may put something before what is in memory."""
        if self._head.is_empty():
            return
        self.tail_seq = self._first(self._head).seq
        self.tail_count += len(self._head)
        self._head.clear()

    def insert(self, seq: int, size: int) -> None:
        """Count a record that was put into the store at its place, after `rewind`."""
        if not self.tail_count or (seq < self.tail_seq) != self.lifo:
            self.tail_seq = seq
        self.oldest_seq = min(self.oldest_seq, seq)
        self.tail_count += 1
        self.bytes += size

    def take_out(self, size: int) -> None:
        """A record was removed from the store, wherever it stood there, after `rewind`."""
        self.tail_count -= 1
        self.bytes -= size

    def keep_in_store(self) -> None:
        """From now on nothing that is stored is taken to memory: the queue goes to another node, the oldest first."""
        self.rewind()
        self.lifo = False
        self.tail_seq = 0
        self._head_max = 0

    def keep_in_memory(self, lifo: bool, last_seq: int) -> None:
        """The queue stays here after all; `last_seq` is the last place that was given."""
        self.lifo = lifo
        self._head_max = HEAD_MAX
        if lifo:
            self.tail_seq = last_seq
            self.oldest_seq = 0

    def remove(self, seq: int, size: int) -> None:
        """The oldest of the tail was removed from the store."""
        self.tail_seq = seq + 1
        self.tail_count -= 1
        self.bytes -= size

    def head(self) -> Delivery | None:
        """Return the next delivery without taking it; None when none is in memory."""
        if self._loose.is_empty():
            return None if self._head.is_empty() else self._first(self._head)
        if self._head.is_empty():
            # What is in the tail is older, but of another QoS.
            return self._first(self._loose)
        loose = self._first(self._loose)
        stored = self._first(self._head)
        return loose if (loose.seq < stored.seq) != self.lifo else stored

    def _first(self, deliveries: Fifo[Delivery]) -> Delivery:
        return deliveries.last() if self.lifo else deliveries.first()

    def pop(self) -> Delivery:
        """Take the next delivery, which must be in memory."""
        delivery = self.head()
        assert delivery is not None
        self.take(delivery)
        return delivery

    def take(self, delivery: Delivery) -> None:
        """Take out what `head` returned."""
        source = self._head if delivery.stored else self._loose
        if self.lifo:
            source.pop()
        else:
            source.popleft()
        self._forget(delivery)

    def _forget(self, delivery: Delivery) -> None:
        self.bytes -= delivery.size
        if delivery.qos == 0:
            self.qos0 -= 1

    def pop_oldest(self) -> Delivery | None:
        """Take the oldest delivery, to make room in a LIFO queue; None when there is none in memory."""
        if self.tail_count or not len(self):
            return None
        source = self._head
        if source.is_empty() or (not self._loose.is_empty() and self._loose.first().seq < source.first().seq):
            source = self._loose
        delivery = source.popleft()
        self._forget(delivery)
        return delivery

    def wants_load(self) -> bool:
        """Say whether the next part of the tail should be read."""
        return self.tail_count > 0 and len(self._head) <= HEAD_LOW

    def load(self, deliveries: list[Delivery]) -> None:
        """Take over what was read from the tail: its first records, the oldest first (LIFO: the youngest first)."""
        assert len(deliveries) <= self.tail_count
        self.tail_count -= len(deliveries)
        for delivery in deliveries:
            if self.lifo:
                self._head.appendleft(delivery)
            else:
                self._head.append(delivery)
        if deliveries:
            self.tail_seq = deliveries[-1].seq + (-1 if self.lifo else 1)

    def drop_qos0(self) -> int:
        """Forget what doesn't outlive the connection and return how many they were."""
        dropped = self.qos0
        if dropped:
            kept: Fifo[Delivery] = Fifo()
            for delivery in self._loose:
                if delivery.qos:
                    kept.append(delivery)
                else:
                    self.bytes -= delivery.size
            self._loose = kept
            self.qos0 = 0
        return dropped

    def deliveries(self) -> list[Delivery]:
        """Return everything that waits in memory, in the order of `seq`."""
        return sorted([*self._head, *self._loose], key=_by_seq)

    def validate(self) -> None:
        """Check the invariants that need no store."""
        last = 0
        for delivery in self._head:
            assert delivery.stored and not delivery.packet_id and delivery.seq > last
            last = delivery.seq
        if self.tail_count and not self._head.is_empty():
            assert (self._head.first().seq > self.tail_seq) if self.lifo else (last < self.tail_seq)
        last = 0
        for delivery in self._loose:
            assert not delivery.stored and not delivery.packet_id and delivery.seq > last
            last = delivery.seq
        assert self.qos0 == sum(1 for delivery in self._loose if delivery.qos == 0)
        if not self.tail_count:
            assert self.bytes == sum(delivery.size for delivery in (*self._head, *self._loose))


def _by_seq(delivery: Delivery) -> int:
    return delivery.seq
