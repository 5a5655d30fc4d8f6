"""What a message of vmq-bench carries, and what follows from the stamps that arrive: loss, duplicates, order, latency.

Pure: it is told the time. A stamp is the first 24 bytes of a payload: the run (8 bytes), the publisher's number (4),
the sequence number (4) and the time of sending in ns of the monotonic clock (8), all big-endian. Times compare because
both ends are one process, or at least one machine.
"""

import struct
from dataclasses import dataclass, field

STAMP = struct.Struct(">8sIIQ")
PAYLOAD_BYTES_MIN = STAMP.size


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where and when a message comes from."""

    run: bytes
    publisher: int
    sequence: int
    sent_ns: int

    def payload(self, size: int) -> bytes:
        """A payload of `size` bytes that begins with this stamp."""
        return STAMP.pack(self.run, self.publisher, self.sequence, self.sent_ns).ljust(size, b"x")


def read_stamp(payload: bytes) -> Stamp | None:
    """The stamp of a payload, or None when it is too short to have one."""
    return Stamp(*STAMP.unpack_from(payload)) if len(payload) >= STAMP.size else None


@dataclass
class Tally:
    """What has happened so far, over all clients. Latencies in ns."""

    published: int = 0
    acknowledged: int = 0
    received: int = 0
    duplicated: int = 0
    reordered: int = 0
    latencies_ns: list[int] = field(default_factory=list)


class Arrivals:
    """The messages that have come to one subscriber, or to one group that shares a subscription."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._seen: dict[tuple[bytes, int], set[int]] = {}

    def take(self, stamp: Stamp, highest: dict[tuple[bytes, int], int], now_ns: int) -> bool:
        """Count a message; returns whether it is the first of its kind.

        `highest` belongs to the connection that it came by, also in a group: order holds for each connection.
        """
        source = (stamp.run, stamp.publisher)
        seen = self._seen.setdefault(source, set())
        if stamp.sequence in seen:
            self._tally.duplicated += 1
            return False
        seen.add(stamp.sequence)
        before = highest.get(source, -1)
        if stamp.sequence < before:
            self._tally.reordered += 1
        highest[source] = max(before, stamp.sequence)
        self._tally.received += 1
        self._tally.latencies_ns.append(max(0, now_ns - stamp.sent_ns))
        return True

    def gaps(self) -> int:
        """Messages that are missing between the first and the last of each publisher that have come."""
        return sum(max(seen) - min(seen) + 1 - len(seen) for seen in self._seen.values())


def percentile(ascending: list[int], share: float) -> int:
    """The value below which `share` (0 to 1) of an ascending list lies; 0 of an empty one."""
    return ascending[round(share * (len(ascending) - 1))] if ascending else 0
