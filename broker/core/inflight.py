"""Inflight: the deliveries that were sent to a client and not yet acknowledged.

It owns the packet ids of one session in the direction to the client, and the window that bounds
them. It survives connections: what is in flight when one ends is sent again on the next.
"""

from typing import Final, final

from broker.core.message import Delivery

PACKET_ID_MAX: Final = 65535


@final
class Inflight:
    """Deliveries by packet id, in the order in which they were first sent."""

    __slots__ = ("_next_id", "deliveries", "window")

    def __init__(self, window: int) -> None:
        self.deliveries: dict[int, Delivery] = {}
        self.window = window
        self._next_id: int = 1

    def __len__(self) -> int:
        return len(self.deliveries)

    def is_full(self) -> bool:
        """Say whether the client has as many unacknowledged deliveries as it may have [MQTT-3.3.4-9]."""
        return len(self.deliveries) >= self.window

    def add(self, delivery: Delivery) -> int:
        """Give the delivery a packet id that is not in use [MQTT-2.2.1-4] and return it."""
        packet_id = self._next_id
        while packet_id in self.deliveries:
            packet_id = packet_id % PACKET_ID_MAX + 1
        self._next_id = packet_id % PACKET_ID_MAX + 1
        delivery.packet_id = packet_id
        self.deliveries[packet_id] = delivery
        return packet_id

    def restore(self, delivery: Delivery) -> None:
        """Take back a delivery that was in flight under its stored packet id."""
        self.deliveries[delivery.packet_id] = delivery
        self._next_id = delivery.packet_id % PACKET_ID_MAX + 1

    def pop(self, packet_id: int) -> Delivery | None:
        """End the delivery; None when the id is not in use."""
        delivery = self.deliveries.get(packet_id)
        if delivery is not None:
            del self.deliveries[packet_id]
        return delivery
