"""What an outgoing link holds: messages in memory, packed as they travel, and messages that are on disk.

Plain values; `link` says what becomes of them.
"""

from typing import final

from broker.core.effects import Ticket


@final
class Batch:
    """Messages that travel in one frame."""

    __slots__ = ("body", "count", "durable", "first", "packed_at", "stored", "stored_bytes", "tickets")

    def __init__(
        self,
        first: int,
        count: int,
        body: bytes,
        tickets: list[Ticket],
        durable: bool,
        packed_at: float,
        stored: list[int],
        stored_bytes: int,
    ) -> None:
        self.first = first
        self.count = count
        self.body = body
        self.tickets = tickets
        # Whether something is in it that the receiver stores: a message with QoS > 0, or a durable mark.
        self.durable = durable
        self.packed_at = packed_at
        # The numbers of those of its messages that are in the outbox, too, and what they take there.
        self.stored = stored
        self.stored_bytes = stored_bytes

    def last(self) -> int:
        """Return the number of the last message."""
        return self.first + self.count - 1


@final
class Run:
    """Messages that are in the outbox alone. Some numbers may be missing, the first included."""

    __slots__ = ("bytes", "count", "first", "last")

    def __init__(self, first: int, last: int, count: int, size: int) -> None:
        self.first = first
        self.last = last
        self.count = count
        self.bytes = size
