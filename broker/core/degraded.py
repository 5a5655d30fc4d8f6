"""Degraded: what happens to clients' events while the store takes no writes.

Owns the decision which events are dealt with without a write, and in which ways what leaves now may not overtake what
waits for the store. It knows nothing of disks or of how long it lasts; what it does not deal with the caller holds, in
order, and replays afterwards.

Theory of operation
-------------------
A turn whose commit failed waits as a whole (`begin`): its writes and everything that it has to say. Meanwhile

    CONNECT                               refused: the session could not be stored
    PUBLISH QoS 0, not retained           delivered as usual: nothing of it is stored
    PUBLISH QoS 1 or 2 of MQTT 5          refused: Quota exceeded; the client knows that it is its own again
    Paused, Resumed, credit, listeners    as usual
    what follows a CONNECT that is held   held behind it: the store may fail again amid a replay
    everything else                       held: a PUBLISH of MQTT 3.1.1 can't be refused, the rest may change sessions

Two orders are kept. Acknowledgements leave in the order of the PUBLISHes [MQTT-4.6.0-2]: a client whose
acknowledgement waits, or whose PUBLISH is held, gets no refusal that would overtake it; its next PUBLISHes are held as
well. Deliveries of one QoS keep their order [MQTT-4.6.0-5]: a connection for which something waits is treated as one
that does not read, so QoS 0 queues behind it, within the limits of every queue, until `end`.

What is dealt with as usual may still write: credit and a client that reads again send what was queued, and that gets a
packet id. The caller puts such a turn behind those that wait, and tells (`wait`). It comes to an end by itself, since
acknowledgements are held and nothing new with QoS 1 enters a queue.
"""

from collections.abc import Callable
from typing import Final, final

from broker.core.effects import NO_CONNECTION
from broker.core.events import (
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    CreditReturned,
    Event,
    ListenerCounted,
    ListenerGone,
    ListenerStarted,
    PublishReceived,
    connection_key,
)
from broker.core.full_links import FullLinks
from broker.core.netsplit_gate import NetsplitGate
from broker.core.outlet import Outlet
from broker.core.owner_records import Answer, Deliver, OwnerBatch, unpack_owner_records
from broker.core.records import CLOSE, CONNACK, PUBACK, PUBREC
from broker.core.session import Attachment
from broker.core.settings import Counters
from broker.mqtt.reasons import Reason

DROP_REASON: Final = "store_failing"


@final
class Degraded:
    """Takes the owner's events while a commit waits. The tables are the owner's own; `receive_as_usual` is its too."""

    def __init__(
        self,
        attachments: dict[int, Attachment],
        outlets: dict[int, Outlet],
        counters: Counters,
        receive_as_usual: Callable[[Event, float], None],
        netsplit: NetsplitGate,
        full_links: FullLinks,
    ) -> None:
        self._attachments = attachments
        self._outlets = outlets
        self._counters = counters
        self._receive_as_usual = receive_as_usual
        self._netsplit = netsplit
        self._full_links = full_links
        # Connections for which deliveries or the CONNACK wait, and which of them read again at the end.
        self._behind: set[int] = set()
        self._resumed: set[int] = set()
        # Connections whose CONNECT is held: whatever comes of them is held behind it.
        self._arriving: set[int] = set()
        # Connections whose next PUBLISH with an acknowledgement, or without, would overtake one that waits.
        self._unacknowledged: set[int] = set()
        self._unpublished: set[int] = set()

    def wait(self, to_listeners: dict[int, OwnerBatch]) -> None:
        """Take note of what waits for a commit, so that nothing overtakes it."""
        for listener, batch in to_listeners.items():
            for records in batch.records():
                for record in unpack_owner_records(records, 0):
                    if isinstance(record, Deliver):
                        for index in range(record.count):
                            self._hold_back(connection_key(listener, int(record.target(index)[0])))
                        continue
                    assert isinstance(record, Answer)
                    if record.kind == CONNACK:
                        self._hold_back(connection_key(listener, record.connection))
                    elif record.kind != CLOSE:
                        self._unacknowledged.add(connection_key(listener, record.connection))

    def hold(self, event: Event) -> None:
        """Take note of an event that is held since the store failed before."""
        if isinstance(event, PublishReceived):
            (self._unacknowledged if event.message.qos else self._unpublished).add(event.connection)
        elif isinstance(event, Attach):
            self._arriving.add(event.connection)

    def receive(self, event: Event, now: float) -> bool:
        """Deal with an event without waiting for the store; false: hold it and replay it after `end`."""
        connection: int = getattr(event, "connection", NO_CONNECTION)
        if connection in self._arriving:
            return False
        if isinstance(event, PublishReceived):
            return self._publish(event, now)
        if isinstance(event, Attach):
            # [MQTT-3.2.2-7] The listener closes the connection behind it.
            self._outlets[event.connection >> 32].batch.connack(event.connection, Reason.SERVER_UNAVAILABLE, False)
            return True
        if isinstance(event, ConnectionPaused):
            self._resumed.discard(event.connection)
        elif isinstance(event, ConnectionResumed):
            if event.connection in self._behind:
                self._resumed.add(event.connection)
                return True
        elif isinstance(event, (ListenerStarted, ListenerGone)):
            # What was held of its older process is void.
            self._arriving = {held for held in self._arriving if held >> 32 != event.listener}
        elif not isinstance(event, (CreditReturned, ListenerCounted)):
            # Of a connection that was refused there is nothing to hold: refused clients come again and again.
            return connection != NO_CONNECTION and connection not in self._attachments
        self._receive_as_usual(event, now)
        return True

    def end(self, now: float) -> None:
        """The store takes writes again and nothing waits any more; replay what was held after this."""
        resumed = self._resumed
        self._resumed = set()
        self._behind.clear()
        self._arriving.clear()
        self._unacknowledged.clear()
        self._unpublished.clear()
        for connection in sorted(resumed):
            self._receive_as_usual(ConnectionResumed(connection), now)

    def _publish(self, event: PublishReceived, now: float) -> bool:
        connection = event.connection
        attachment = self._attachments.get(connection)
        if attachment is None:
            return True
        message = event.message
        if self._netsplit.is_holding(connection) or (message.qos and self._full_links.is_holding(connection)):
            # Behind what waits until the node is ready, or for room, which nothing may overtake.
            self.hold(event)
            return False
        if message.qos == 0:
            if message.retain or connection in self._unpublished:
                self.hold(event)
                return False
            self._receive_as_usual(event, now)
            return True
        # A PUBLISH with QoS 2 may be a repetition of one that was received, which must not be called refused.
        known = message.qos == 2 and event.packet_id in attachment.session.incoming
        if attachment.version != 5 or known or not attachment.pending.is_empty() or connection in self._unacknowledged:
            self.hold(event)
            return False
        self._counters.mqtt_publish_received += 1
        self._counters.drop(DROP_REASON)
        kind = PUBACK if message.qos == 1 else PUBREC
        attachment.outlet.batch.acknowledge(kind, connection, event.packet_id, Reason.QUOTA_EXCEEDED)
        return True

    def _hold_back(self, connection: int) -> None:
        """Have QoS 0 for the connection queue behind what waits."""
        attachment = self._attachments.get(connection)
        if attachment is None:
            return
        self._behind.add(connection)
        if not attachment.paused:
            attachment.paused = True
            self._resumed.add(connection)
