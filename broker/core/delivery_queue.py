"""The delivery queue: what waits for one session, oldest first.

It owns the order and the limit. What is in flight is no longer here; what is here has no packet id.
Messages of QoS 0 wait only while their client is connected and doesn't read.
"""

from collections import deque
from typing import final

from broker.core.message import Delivery


@final
class DeliveryQueue:
    """A bounded FIFO. `dropping` says that the last offer found it full, so that a log can say so once."""

    __slots__ = ("_waiting", "dropping", "qos0")

    def __init__(self) -> None:
        self._waiting: deque[Delivery] = deque()
        self.qos0: int = 0
        self.dropping = False

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self, messages_max: int) -> bool:
        """Say whether another delivery fits; a negative limit is none."""
        return messages_max < 0 or len(self._waiting) < messages_max

    def push(self, delivery: Delivery) -> None:
        """Append a delivery; the caller has asked `has_room`."""
        self._waiting.append(delivery)
        if delivery.qos == 0:
            self.qos0 += 1

    def head(self) -> Delivery:
        """Return the oldest delivery without taking it; the queue must not be empty."""
        return self._waiting[0]

    def pop(self) -> Delivery:
        """Take the oldest delivery; the queue must not be empty."""
        delivery = self._waiting.popleft()
        if delivery.qos == 0:
            self.qos0 -= 1
        return delivery

    def drop_qos0(self) -> int:
        """Forget what doesn't outlive the connection and return how many they were."""
        dropped = self.qos0
        if dropped:
            self._waiting = deque([delivery for delivery in self._waiting if delivery.qos])
            self.qos0 = 0
        return dropped

    def deliveries(self) -> list[Delivery]:
        """Return everything that waits, oldest first."""
        return list(self._waiting)
