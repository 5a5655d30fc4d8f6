"""The client's window: which deliveries a client may be sent, and which wait at the listener until it acknowledges.

It owns the packet ids that are outstanding on one connection and the packets that the owner has handed over ahead of
them. It is bounded by the owner, which hands over no more than AHEAD_MAX small ones (see `inflight`).

Theory of operation
-------------------
A client with a window of twenty would have everybody wait for everybody: the client for the owner's next twenty, the
owner for the acknowledgements, and two processes would be woken for every twenty messages. So the owner runs ahead, and
the listener keeps the window [MQTT-3.3.4-9]: what does not fit is held here, encoded, and goes out with the
acknowledgement that makes room. What a connection leaves unsent is told to the owner, which sends it for the first time
on the next one.
"""

from typing import Final, final

from broker.core.fifo import Fifo
from broker.core.inflight import AHEAD_MAX

# With more than this held, the owner need not hear of an acknowledgement at once: it has nothing to do for it.
HELD_LOW: Final = AHEAD_MAX // 2


@final
class ClientWindow:
    """At most `size` QoS 1 and 2 deliveries under way to a client."""

    __slots__ = ("_held", "_outstanding", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._outstanding: set[int] = set()
        self._held: Fifo[tuple[int, bytes, int]] = Fifo()

    def is_full(self) -> bool:
        """Say whether the next PUBLISH would be held."""
        return not self._held.is_empty() or len(self._outstanding) >= self._size

    def admit(self, packet_id: int, packet: bytes, payload_bytes: int) -> bool:
        """Say whether the PUBLISH may go out now; else it is held."""
        # What is under way already is sent again.
        if self.is_full() and packet_id not in self._outstanding:
            self._held.append((packet_id, packet, payload_bytes))
            return False
        self._outstanding.add(packet_id)
        return True

    def released(self, packet_id: int) -> None:
        """A PUBREL goes out: its exchange is under way on this connection, whether or not the PUBLISH was."""
        self._outstanding.add(packet_id)

    def finished(self, packet_id: int) -> list[tuple[bytes, int]]:
        """An exchange ended: return the packets that may go out now, each with the bytes of its payload."""
        self._outstanding.discard(packet_id)
        packets: list[tuple[bytes, int]] = []
        while not self._held.is_empty() and len(self._outstanding) < self._size:
            held_id, packet, payload_bytes = self._held.popleft()
            self._outstanding.add(held_id)
            packets.append((packet, payload_bytes))
        return packets

    def is_well_supplied(self) -> bool:
        """Say whether so much is held that the owner may hear of acknowledgements later, many together."""
        return len(self._held) > HELD_LOW

    def unsent(self) -> list[int]:
        """Return the packet ids of what is held."""
        return [packet_id for packet_id, _packet, _payload_bytes in self._held]
