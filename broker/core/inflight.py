"""Inflight: the deliveries that were sent to a client and not yet acknowledged.

It owns the packet ids of one session in the direction to the client, and the window that bounds them. Small deliveries
may run ahead of the client's window as far as the listener, which keeps it (`client_window`); for the owner they are in
flight. It survives connections: what is in flight when one ends is sent again on the next, in the same order and under
the same ids. The window may be smaller then, so what was in flight may have to wait for it once more.
"""

from typing import Final, final

from broker.core.epoch import Epoch
from broker.core.fifo import Fifo
from broker.core.message import Delivery

PACKET_ID_MAX: Final = 65535
# What a listener may hold for a client beside its window: at most so many deliveries together, of so many bytes each.
# 50 KB for a client that stops acknowledging; two processes are woken for this many messages instead of a window's.
AHEAD_MAX: Final = 192
AHEAD_BYTES_MAX: Final = 256


def first_packet_id(epoch: Epoch) -> int:
    """Return the first packet id of a home that does not know those which the client still holds of another one."""
    return 1 + epoch.stamp % PACKET_ID_MAX


@final
class Inflight:
    """Deliveries by packet id, in the order in which they were first sent."""

    __slots__ = ("_outstanding", "_resend", "ahead", "bytes", "deliveries", "next_id", "window")

    def __init__(self, window: int) -> None:
        self.deliveries: dict[int, Delivery] = {}
        self.window = window
        # The sum of their sizes.
        self.bytes: int = 0
        # How many may be under way when the listener holds back those that are over the window; 0 for no running ahead.
        self.ahead: int = 0
        # The packet id to try first for the next delivery.
        self.next_id: int = 1
        # How many were sent on the present connection and are not acknowledged.
        self._outstanding: int = 0
        # Packet ids to send again, oldest first; some may have been acknowledged meanwhile.
        self._resend: Fifo[int] = Fifo()

    def __len__(self) -> int:
        return len(self.deliveries)

    def is_full(self) -> bool:
        """Say whether the client has as many unacknowledged deliveries as it may have [MQTT-3.3.4-9]."""
        return self._outstanding >= self.window

    def ahead_count(self) -> int:
        """Return how many are under way over the window: they wait, if at the listener."""
        return max(0, self._outstanding - self.window)

    def has_room(self, delivery: Delivery) -> bool:
        """Say whether the delivery may be sent, or run ahead. What expires does not: it would grow old there."""
        if self._outstanding < self.window:
            return True
        if self._outstanding >= self.ahead or delivery.size > AHEAD_BYTES_MAX:
            return False
        return delivery.message.expires_at == 0.0

    def add(self, delivery: Delivery, now: float) -> int:
        """Give the delivery a packet id that is not in use and return it; it counts as sent.

        [MQTT-2.2.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT311-2.3.1-4] [MQTT311-4.3.2-1] [MQTT311-4.3.3-1]
        """
        packet_id = self.next_id
        while packet_id in self.deliveries:
            packet_id = packet_id % PACKET_ID_MAX + 1
        self.next_id = packet_id % PACKET_ID_MAX + 1
        delivery.packet_id = packet_id
        delivery.sent = True
        delivery.sent_at = now
        self._outstanding += 1
        self.bytes += delivery.size
        self.deliveries[packet_id] = delivery
        return packet_id

    def restore(self, delivery: Delivery) -> None:
        """Take back a delivery that was in flight under its stored packet id; in the order of their places."""
        self.bytes += delivery.size
        self.deliveries[delivery.packet_id] = delivery
        self.next_id = delivery.packet_id % PACKET_ID_MAX + 1

    def restore_late(self, delivery: Delivery) -> None:
        """Take back a delivery that was in flight elsewhere, and send it again if there is a connection."""
        next_id = self.next_id
        self.restore(delivery)
        self.next_id = next_id
        self._resend.append(delivery.packet_id)

    def get(self, packet_id: int) -> Delivery | None:
        """Return the delivery under this id; None when the id is not in use."""
        return self.deliveries.get(packet_id)

    def pop(self, packet_id: int) -> Delivery | None:
        """End the delivery; None when the id is not in use."""
        delivery = self.deliveries.get(packet_id)
        if delivery is not None:
            del self.deliveries[packet_id]
            self.bytes -= delivery.size
            if delivery.sent:
                self._outstanding -= 1
        return delivery

    def forget_message(self, delivery: Delivery) -> None:
        """The client has the message of a QoS 2 delivery: what is left of it is its packet id."""
        self.bytes -= delivery.size
        delivery.size = 0

    def set_fresh(self, packet_ids: list[int]) -> None:
        """Take note of what was held back: it goes out for the first time on the next connection."""
        for packet_id in packet_ids:
            delivery = self.deliveries.get(packet_id)
            if delivery is not None and not delivery.released:
                delivery.fresh = True

    def begin_resend(self) -> None:
        """A new connection: everything in flight is to be sent again [MQTT-4.4.0-1]."""
        published: list[int] = []
        self._outstanding = 0
        self._resend.clear()
        for packet_id, delivery in self.deliveries.items():
            delivery.sent = False
            if delivery.released:
                self._resend.append(packet_id)
            else:
                published.append(packet_id)
        # A PUBREL does not wait for the window, so none stands behind a PUBLISH that does.
        for packet_id in published:
            self._resend.append(packet_id)

    def is_resending(self) -> bool:
        """Say whether something in flight still waits to be sent again; nothing younger may overtake it."""
        return not self._resend.is_empty()

    def may_resend(self) -> bool:
        """Say whether the next may be sent again now: a PUBLISH when the window has room, a PUBREL in any case.

        [MQTT-3.3.4-10] [MQTT-4.9.0-3]
        """
        if not self.is_full():
            return True
        while not self._resend.is_empty() and self._resend.first() not in self.deliveries:
            self._resend.popleft()
        return self._resend.is_empty() or self.deliveries[self._resend.first()].released

    def begin_retry(self, sent_before: float) -> bool:
        """Have everything that was sent before a time sent again on the same connection; false when there is none."""
        found = False
        for packet_id, delivery in self.deliveries.items():
            if delivery.sent and delivery.sent_at <= sent_before:
                delivery.sent = False
                self._outstanding -= 1
                self._resend.append(packet_id)
                found = True
        return found

    def take_resend(self, now: float) -> Delivery | None:
        """Take the next delivery to send again; None when the last ones were acknowledged meanwhile."""
        while not self._resend.is_empty():
            delivery = self.deliveries.get(self._resend.popleft())
            if delivery is not None and not delivery.sent:
                delivery.sent = True
                delivery.sent_at = now
                self._outstanding += 1
                return delivery
        return None

    def validate(self) -> None:
        """Check what is kept by the way."""
        assert self.bytes == sum(delivery.size for delivery in self.deliveries.values())
        for packet_id, delivery in self.deliveries.items():
            assert delivery.packet_id == packet_id
            assert not delivery.released or not delivery.size
