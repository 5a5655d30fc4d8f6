"""Sessions: what the broker remembers of a client between connections.

A session owns its subscriptions, its queue and its deliveries in flight. It knows nothing of
sockets, processes or disks, and it does not decide who gets what: the owner does.

Theory of operation
-------------------
A delivery is queued, then in flight, then gone. `queue` holds what waits, oldest first; `inflight`
what was sent. Every delivery of QoS 1 in the queue is younger than every one in flight. The session
is attached while `attachment` is set; without one, only deliveries of QoS 1 are kept. Its records
are in the store exactly while it is persistent, that is while it outlives its connection.
"""

from collections import deque
from typing import final

from broker.core.delivery_queue import DeliveryQueue
from broker.core.effects import Ticket
from broker.core.inflight import Inflight
from broker.core.outlet import Outlet


@final
class Session:
    """One client id's state. `expires_at` is monotonic seconds, 0.0 while attached or for never."""

    __slots__ = (
        "attachment",
        "client_id",
        "expires_at",
        "expiry_s",
        "inflight",
        "next_seq",
        "number",
        "persistent",
        "queue",
        "scheduled_at",
        "subscriptions",
        "user_name",
    )

    def __init__(self, number: int, client_id: str, user_name: str | None, expiry_s: int, window: int) -> None:
        self.number = number
        self.client_id = client_id
        self.user_name = user_name
        self.expiry_s = expiry_s
        self.expires_at: float = 0.0
        # When the owner looks at it next for that; 0.0 for not at all.
        self.scheduled_at: float = 0.0
        self.persistent = expiry_s > 0
        self.subscriptions: dict[bytes, int] = {}
        self.queue = DeliveryQueue()
        self.inflight = Inflight(window)
        self.next_seq: int = 1
        self.attachment: Attachment | None = None

    def is_caught_up(self) -> bool:
        """Say whether nothing older waits: neither in the queue nor to be sent again."""
        return not len(self.queue) and not self.inflight.is_resending()

    def take_seq(self) -> int:
        """Return the next place in the queue; places only grow, so the store keeps the order."""
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq


@final
class Attachment:
    """A live connection as the owner sees it: which session it serves and what it can take.

    `pending` are the PUBLISHes that may not be acknowledged yet, in the order of their arrival.
    `packet_bytes_max` is the client's Maximum Packet Size, 0 for none.
    """

    __slots__ = ("connection", "outlet", "packet_bytes_max", "paused", "pending", "session", "version")

    def __init__(self, connection: int, outlet: Outlet, session: Session, version: int, packet_bytes_max: int) -> None:
        self.connection = connection
        self.outlet = outlet
        self.session = session
        self.version = version
        self.packet_bytes_max = packet_bytes_max
        self.paused = False
        self.pending: deque[Ticket] = deque()
