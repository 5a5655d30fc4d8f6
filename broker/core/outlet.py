"""The outlet: what the owner has to say to one listener, and how much of it that listener can take.

It owns the batch of the turn and the credit in bytes. Deliveries stop when the credit is used up;
answers never do, because a client waits for them and there are no more of them than requests.

A listener that is behind is a reason not to ask more of it: while it works, the owner leaves what clients
publish where it is (`is_behind`), and back-pressure reaches the publishers. One that does nothing for
STALL_S is no reason to stop the others: then deliveries to it wait or drop.
"""

import math
from typing import Final, final

from mypy_extensions import i64

from broker.core.message import Message
from broker.core.owner_records import OwnerBatch

STALL_S: Final = 1.0
# What the four bytes of a Message Expiry Interval hold.
EXPIRY_S_MAX: Final = 0xFFFFFFFF
# Sums of seconds are not exact: a whole interval must not become one second more.
_ROUNDING_S: Final = 0.001


@final
class Outlet:
    """One listener of one generation. `open` says whether it may be sent deliveries."""

    __slots__ = ("batch", "credit_bytes", "generation", "listener", "open", "progress_at", "window_bytes")

    def __init__(self, listener: int, generation: int, window_bytes: int) -> None:
        self.listener = listener
        self.generation = generation
        self.window_bytes = window_bytes
        self.credit_bytes: int = window_bytes
        self.open = True
        # When it last gave credit back, or was found without any.
        self.progress_at: float = 0.0
        self.batch = OwnerBatch()

    def is_behind(self, now: float) -> bool:
        """Say whether the listener has all that it may have, and is working on it."""
        return not self.open and now - self.progress_at < STALL_S

    def deliver(self, connection: i64, head: i64, message: Message, identifiers: bytes, now: float) -> None:
        """Send a message to one connection; `head` is packet id << 16 | flags (see DELIVER)."""
        batch = self.batch
        batch.deliver_head(message, identifiers, remaining_s(message, now), 1)
        batch.target(connection, head >> 16, head & 0xFFFF)
        batch.deliver_body(message, identifiers)
        if self.open and batch.size() >= self.credit_bytes:
            self.open = False
            self.progress_at = now

    def deliver_many(self, targets: bytes, message: Message, identifiers: bytes, now: float) -> None:
        """Send a message to the packed targets, which have the same subscription identifiers."""
        batch = self.batch
        batch.deliver_head(message, identifiers, remaining_s(message, now), len(targets) // 8)
        batch.targets(targets)
        batch.deliver_body(message, identifiers)
        if self.open and batch.size() >= self.credit_bytes:
            self.open = False
            self.progress_at = now

    def take_batch(self) -> OwnerBatch:
        """Return the turn's records and take their bytes off the credit."""
        batch = self.batch
        self.batch = OwnerBatch()
        self.credit_bytes -= batch.size()
        if self.credit_bytes <= 0:
            self.open = False
        return batch

    def return_credit(self, credit_bytes: int, now: float) -> bool:
        """Take credit back; true when the outlet opens again."""
        self.progress_at = now
        was_open = self.open
        self.credit_bytes = min(self.credit_bytes + credit_bytes, self.window_bytes)
        # Opening at the first byte would make a turn of every few messages: half a window is worth one.
        if not was_open and (self.credit_bytes - self.batch.size()) * 2 >= self.window_bytes:
            self.open = True
        return self.open and not was_open


def remaining_s(message: Message, now: float) -> i64:
    """Return the Message Expiry Interval to send, -1 for none [MQTT-3.3.2-6]."""
    if message.expires_at == 0.0:
        return -1
    return min(max(math.ceil(message.expires_at - now - _ROUNDING_S), 0), EXPIRY_S_MAX)
