"""Sessions: what the broker remembers of a client between connections.

A session owns its subscriptions, its queue and its deliveries in flight. It knows nothing of
sockets, processes or disks, and it does not decide who gets what: the owner does.

Theory of operation
-------------------
A delivery is queued, then in flight, then gone. `queue` holds what waits, oldest first; `inflight` what was sent. Every
delivery of QoS 1 or 2 in the queue is younger than every one in flight. `incoming` holds the packet ids of the client's
own QoS 2 PUBLISHes that it has not released, each with the fingerprint of its message: another home may have taken the
PUBREL while this one was away, and then the same id means another message. The session is attached while `attachment`
is set; without one, only deliveries of QoS 1 and 2 are kept. Its records are in the store from the moment at which it
is to outlive its connection until it ends.
"""

from typing import final

from broker.core.arrival import Arrival
from broker.core.delivery_queue import DeliveryQueue
from broker.core.effects import Ticket
from broker.core.epoch import FIRST_EPOCH, NO_EPOCH
from broker.core.fifo import Fifo
from broker.core.inflight import Inflight
from broker.core.outlet import Outlet
from broker.core.retained import RetainedWalk
from broker.core.shared import SharedGroup
from broker.core.subscription import Subscription


@final
class Replay:
    """Retained messages that a new subscription has yet to be sent: those up to a revision of the retained store."""

    __slots__ = ("revision", "topic_filter", "walk")

    def __init__(self, topic_filter: bytes, walk: RetainedWalk, revision: int) -> None:
        self.topic_filter = topic_filter
        self.walk = walk
        self.revision = revision


@final
class Session:
    """One client id's state. `expires_at` is monotonic seconds, 0.0 while attached or for never."""

    __slots__ = (
        "arrival",
        "attachment",
        "awake_from",
        "client_id",
        "departing",
        "dormant",
        "epoch",
        "expires_at",
        "expiry_s",
        "gate",
        "groups",
        "incoming",
        "inflight",
        "left_to",
        "live_since",
        "next_seq",
        "number",
        "persistent",
        "queue",
        "replay",
        "replay_due",
        "replays",
        "scheduled_at",
        "subscriptions",
        "switched",
        "switched_home",
        "told",
        "unheard",
        "user_name",
    )

    def __init__(
        self, number: int, client_id: str, user_name: str | None, expiry_s: int, window: int, lifo: bool = False
    ) -> None:
        self.number = number
        self.client_id = client_id
        self.user_name = user_name
        self.expiry_s = expiry_s
        # When it came to this node, and the value of its row that the other nodes were told, b"" before the first.
        self.epoch = FIRST_EPOCH
        self.told: bytes = b""
        self.expires_at: float = 0.0
        # When the owner looks at it next for that; 0.0 for not at all.
        self.scheduled_at: float = 0.0
        self.persistent = False
        # Whether its client may not have heard that it began here: the connection with which it did has brought no word
        # of what the client wants. A later one is told that there is a session, which the client may take for an older
        # one that it knows. So it stays until the session ends, unless that first connection brings such a word.
        self.unheard = False
        self.subscriptions: dict[bytes, Subscription] = {}
        self.groups: list[SharedGroup] = []
        self.queue = DeliveryQueue(lifo)
        self.inflight = Inflight(window)
        # The packet ids of QoS 2 PUBLISHes that the client has not released, with their fingerprints.
        self.incoming: dict[int, int] = {}
        # What is replayed now, and by filter what is to be replayed after it.
        self.replay: Replay | None = None
        self.replays: dict[bytes, Replay] = {}
        # Whether the dispatcher has noted that it is this session's turn to be replayed to.
        self.replay_due = False
        # The revision of the retained store when the present connection began.
        self.live_since: int = 0
        self.next_seq: int = 1
        # Of a session that came from another node, what may still come from there; nothing from the place `gate` on
        # goes out yet, unless it is 0.
        self.arrival: Arrival | None = None
        self.gate: int = 0
        # Whether it goes to another node, or has gone: then it is nobody's session here.
        self.departing = False
        # Whether nothing that is published comes to it, but through its groups: a donor has it, and others may go on.
        self.dormant = False
        # From which place on nobody else has what came, since it was dormant till then; 0 if it never was.
        self.awake_from: int = 0
        # Up to which place another node has what was here.
        self.left_to: int = 0
        # Origin -> from which number on what it sends comes to the home after this one as well, so far as that is
        # known; what is published here, to the home of this store id.
        self.switched: dict[bytes, int] | None = None
        self.switched_home: bytes = NO_EPOCH.store_id
        self.attachment: Attachment | None = None

    def attach(self, attachment: "Attachment") -> None:
        """A connection begins, and its groups count on it."""
        self.attachment = attachment
        for group in self.groups:
            group.come_online(self)

    def detach(self) -> None:
        """The connection ended, and its groups ask it no more."""
        self.attachment = None
        for group in self.groups:
            group.go_offline(self)

    def is_caught_up(self) -> bool:
        """Say whether nothing older waits: in the queue, to be sent again, or elsewhere."""
        return self.queue.is_empty() and not self.inflight.is_resending() and not self.gate

    def has_room(self, bytes_max: int, size: int) -> bool:
        """Say whether another delivery of `size` bytes may be held for the client; a negative limit is none."""
        return bytes_max < 0 or self.queue.has_room(-1, bytes_max, size, self.inflight.bytes)

    def begin_replay(self, replay: Replay) -> None:
        """Have the retained messages of a subscription sent, from the beginning if some were already."""
        self.end_replay(replay.topic_filter)
        self.replays[replay.topic_filter] = replay

    def end_replay(self, topic_filter: bytes) -> None:
        """Send no more of what was retained for this subscription when it was made."""
        self.replays.pop(topic_filter, None)
        if self.replay is not None and self.replay.topic_filter == topic_filter:
            self.replay = None

    def has_replays(self) -> bool:
        """Say whether a subscription is owed retained messages."""
        return self.replay is not None or bool(self.replays)

    def next_replay(self) -> Replay | None:
        """Return the replay that goes on; None when there is none."""
        if self.replay is None and self.replays:
            # The last one: taking the first of a long dict out, again and again, is slow.
            self.replay = self.replays.popitem()[1]
        return self.replay

    def take_seq(self) -> int:
        """Return the next place in the queue; places only grow, so the store keeps the order."""
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq


@final
class Attachment:
    """A live connection as the owner sees it: which session it serves and what it can take.

    `pending` are the PUBLISHes that may not be acknowledged yet, in the order of their arrival.
    `repeated` are the packet ids of those that the client sent again meanwhile: they wait once more, not as often as
    they were sent. `packet_bytes_max` is the client's Maximum Packet Size, 0 for none. `is_first` says that its CONNACK
    tells that there was no session.
    """

    __slots__ = (
        "connection",
        "is_first",
        "outlet",
        "packet_bytes_max",
        "paused",
        "pending",
        "repeated",
        "session",
        "version",
    )

    def __init__(self, connection: int, outlet: Outlet, session: Session, version: int, packet_bytes_max: int) -> None:
        self.connection = connection
        self.outlet = outlet
        self.session = session
        self.version = version
        self.packet_bytes_max = packet_bytes_max
        self.is_first = False
        self.paused = False
        self.pending: Fifo[Ticket] = Fifo()
        self.repeated: set[int] = set()
