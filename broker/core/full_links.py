"""Full links: PUBLISHes that wait until another node can be sent them, for a while.

Owns which they are, and until when they wait. It knows nothing of links: whether there is room, whoever publishes says
(`publish` returns WAITS), and is asked again when a turn begins.

Theory of operation
-------------------
A PUBLISH of QoS 1 or 2 that a node has to have whose outbox is full is neither answered nor thrown away for PATIENCE_S:
a full outbox is emptied by a peer that is back, and a client that is refused can do no better than to send again. What
the client says next with QoS 1 or 2 waits behind it, since acknowledgements have an order; clients whose topics do not
match at that node notice nothing. In the end it is refused.

How much a client may have waiting is bounded by what its listener lets it have unacknowledged. All together may have
HELD_BYTES_MAX: at that nobody begins to wait, and what waits already ends, each client's oldest first, until what is
left is below it. So one turn's events at most are held past the limit.

Invariants: what waits is of connections that exist, and something waits of each that is known here.
"""

import math
from collections.abc import Callable
from typing import Final, final

from broker.core.events import PublishReceived
from broker.core.fifo import Fifo
from broker.core.publishing import WAITS
from broker.core.session import Attachment

PATIENCE_S: Final = 5.0
# What all clients together may have waiting, in bytes.
HELD_BYTES_MAX: Final = 64 * 1024 * 1024
# How often it is seen whether there is room.
POLL_S: Final = 0.05
_EVENT_BYTES: Final = 256


@final
class HeldPublish:
    """A PUBLISH that waits, and until when it does."""

    __slots__ = ("deadline", "event")

    def __init__(self, event: PublishReceived, deadline: float) -> None:
        self.event = event
        self.deadline = deadline

    def size(self) -> int:
        """Return about how many bytes it takes."""
        return _EVENT_BYTES + self.event.message.size()


@final
class FullLinks:
    """What waits for room. `publish` is the owner's: it takes (attachment, event, may wait, now) and may say WAITS."""

    def __init__(
        self,
        attachments: dict[int, Attachment],
        publish: Callable[[Attachment, PublishReceived, bool, float], int],
    ) -> None:
        # Whether what waits is not too much already.
        self.has_patience = True
        # The limit is the constant but in tests.
        self.held_bytes_max: int = HELD_BYTES_MAX
        self._attachments = attachments
        self._publish = publish
        self._held: dict[int, Fifo[HeldPublish]] = {}
        self._held_bytes: int = 0
        self._poll_at: float = 0.0

    def hold(self, event: PublishReceived, now: float) -> None:
        """Have a PUBLISH wait for room, or behind what waits."""
        connection = event.connection
        if event.expiry_s >= 0:
            # [MQTT-3.3.2-6] Its time runs while it waits.
            event.message.expires_at = now + event.expiry_s
            event.expiry_s = -1
        held = self._held.get(connection)
        if held is None:
            held = self._held[connection] = Fifo()
        each = HeldPublish(event, now + PATIENCE_S)
        held.append(each)
        self._count(each.size())
        if not self.has_patience:
            # What is too much is refused in the next turn and not when there is next a look for room.
            self._poll_at = now

    def is_holding(self, connection: int) -> bool:
        """Say whether what the connection says next has something in front of it."""
        return connection in self._held

    def held_bytes(self) -> int:
        """Return about how many bytes all that waits takes."""
        return self._held_bytes

    def forget(self, connection: int) -> None:
        """The connection ended: what waited of it is the client's."""
        held = self._held.pop(connection, None)
        if held is not None:
            self._count(-sum([each.size() for each in held]))

    def next_deadline(self) -> float:
        """Return when `work_off` has something to do; infinity when never."""
        return self._poll_at if self._held else math.inf

    def work_off(self, now: float) -> None:
        """Publish what there is room for, and refuse what has waited for too long."""
        if not self._held or now < self._poll_at:
            return
        self._poll_at = now + POLL_S
        for connection in list(self._held):
            while connection in self._held and self._work_off_next(connection, now):
                pass

    def validate(self) -> None:
        """Check the invariants."""
        assert self._held_bytes == sum([each.size() for held in self._held.values() for each in held])
        for connection, held in self._held.items():
            assert connection in self._attachments
            assert not held.is_empty()

    def _count(self, size: int) -> None:
        self._held_bytes += size
        self.has_patience = self._held_bytes <= self.held_bytes_max

    def _work_off_next(self, connection: int, now: float) -> bool:
        """Publish or refuse the oldest of what waits of a connection, which that may end; false: it goes on waiting."""
        held = self._held[connection]
        each = held.first()
        may_wait = self.has_patience and now < each.deadline
        if self._publish(self._attachments[connection], each.event, may_wait, now) == WAITS:
            return False
        if self._held.get(connection) is held:
            held.popleft()
            self._count(-each.size())
            if held.is_empty():
                del self._held[connection]
        return True
