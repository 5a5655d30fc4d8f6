"""The gate of a net split: what clients may do while this node does not reach the members that it needs.

Owns what is refused, held and dropped then, by the four switches `allow_..._during_netsplit`. It knows nothing of other
nodes: it is told whether the node is ready, and the sentence that says why not.

Theory of operation
-------------------
While the node is not ready, and the switch of a packet is off,

    CONNECT        is refused: 3 for MQTT 3, 0x88 and the sentence for MQTT 5; who is connected stays so
    SUBSCRIBE      is refused in its SUBACK: 0x80 for MQTT 3, 0x87 for MQTT 5
    UNSUBSCRIBE    is held: it is answered when the node is ready, as it has to be [MQTT-3.10.4-4] [MQTT311-3.10.4-4]
    PUBLISH QoS 0  is dropped, and counted
    PUBLISH else   is held: neither answered nor thrown away, as a client need not send it again on this connection
    anything else  goes on, and so do wills

What is held is held by connection, in order, and forgotten with the connection: it is unacknowledged, and so still the
client's. Once the node is ready all of it is handed on, some of it a turn; what a client says meanwhile is handed on
behind what was held of it.

How much is held is bounded by what a client may have unacknowledged before its listener reads it no more
(`client_publishing`): some hundred messages and a few MiB, and one message more. Beside that there is a limit for all
together, at which whoever says more is closed, and one for the UNSUBSCRIBEs of a connection (and the SUBSCRIBEs behind
them), at which further ones have no answer at all.

Invariants: what is held is of connections that exist; the gate is open if the node is ready and nothing is held.
"""

from collections.abc import Callable
from typing import Final, final

from broker.core.events import Attach, Event, PublishReceived, SubscribeReceived, UnsubscribeReceived
from broker.core.outlet import Outlet
from broker.core.session import Attachment
from broker.core.settings import Counters, OwnerSettings
from broker.mqtt.reasons import Reason

DROP_REASON: Final = "not_ready"
# What all clients together may have held.
HELD_BYTES_MAX: Final = 256 * 1024 * 1024
# What a connection may have held of UNSUBSCRIBEs, and of SUBSCRIBEs behind them.
REQUEST_BYTES_MAX: Final = 64 * 1024
# A turn hands on about so many events, so that it does not take long.
EVENTS_PER_TURN: Final = 1024
# What an event takes without its topics and payload.
_EVENT_BYTES: Final = 256
_FAILURE: Final = 0x80


@final
class HeldEvents:
    """What is held of one connection, oldest first."""

    __slots__ = ("bytes", "events", "qos2", "request_bytes")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.bytes: int = 0
        # Packet ids of QoS 2: one that is sent again is answered with the first.
        self.qos2: set[int] = set()
        self.request_bytes: int = 0


@final
class NetsplitGate:
    """Takes the owner's events first while `is_open` is false. The tables and calls are the owner's own."""

    def __init__(
        self,
        settings: OwnerSettings,
        attachments: dict[int, Attachment],
        outlets: dict[int, Outlet],
        counters: Counters,
        hand_on: Callable[[Event, float], None],
        close: Callable[[Attachment, int, float], None],
    ) -> None:
        self.is_open = True
        self.held_count: int = 0
        self._settings = settings
        self._attachments = attachments
        self._outlets = outlets
        self._counters = counters
        self._hand_on = hand_on
        self._close = close
        self._ready = True
        self._reason = ""
        self._held: dict[int, HeldEvents] = {}
        self._held_bytes: int = 0

    def set_ready(self, ready: bool, reason: str) -> None:
        """Take note that the node is ready, or why not."""
        self._ready = ready
        self._reason = reason
        self._open_if_empty()

    def receive(self, event: Event, now: float) -> bool:
        """Deal with an event of a client; false: it goes on as usual."""
        if isinstance(event, PublishReceived):
            return self._publish(event, now)
        if isinstance(event, Attach):
            return self._attach(event)
        if isinstance(event, SubscribeReceived):
            return self._subscribe(event, now)
        return isinstance(event, UnsubscribeReceived) and self._unsubscribe(event, now)

    def forget(self, connection: int) -> None:
        """The connection ended: what was held of it is the client's."""
        held = self._take(connection)
        if held is not None:
            self._open_if_empty()

    def is_holding(self, connection: int) -> bool:
        """Say whether what the connection says next has something in front of it."""
        return connection in self._held

    def has_work(self) -> bool:
        """Say whether `work_off` has something to do."""
        return self._ready and bool(self._held)

    def work_off(self, now: float) -> None:
        """Hand on what was held, as far as a turn goes."""
        if not self.has_work():
            return
        left = EVENTS_PER_TURN
        for connection in list(self._held):
            if left <= 0:
                break
            held = self._held.get(connection)
            if held is not None:
                left -= len(held.events)
                self._work_off(connection, now)

    def validate(self) -> None:
        """Check the invariants."""
        assert self.is_open == (self._ready and not self._held)
        assert self._ready == (not self._reason)
        assert self._held_bytes == sum([held.bytes for held in self._held.values()])
        assert self.held_count == sum([len(held.events) for held in self._held.values()])
        for connection, held in self._held.items():
            assert connection in self._attachments
            assert held.events

    def _attach(self, event: Attach) -> bool:
        if self._ready or self._settings.allow_register_during_netsplit:
            return False
        # [MQTT-3.2.2-7] The listener closes the connection behind it.
        outlet = self._outlets[event.connection >> 32]
        outlet.batch.connack(event.connection, Reason.SERVER_UNAVAILABLE, False, text=self._reason)
        return True

    def _publish(self, event: PublishReceived, now: float) -> bool:
        connection = event.connection
        if self._ready or self._settings.allow_publish_during_netsplit:
            self._work_off_if_ready(connection, now)
            return False
        attachment = self._attachments.get(connection)
        if attachment is None:
            return True
        message = event.message
        self._counters.mqtt_publish_error += 1
        if message.qos == 0:
            self._counters.mqtt_publish_received += 1
            self._counters.drop(DROP_REASON)
            return True
        held = self._held.get(connection)
        if message.qos == 2 and held is not None and event.packet_id in held.qos2:
            return True
        size: int = _EVENT_BYTES + message.size()
        if self._held_bytes and self._held_bytes + size > HELD_BYTES_MAX:
            self._close(attachment, int(Reason.QUOTA_EXCEEDED), now)
            return True
        if event.expiry_s >= 0:
            # [MQTT-3.3.2-6] Its time runs while it waits.
            message.expires_at = now + event.expiry_s
            event.expiry_s = -1
        held = self._hold(connection, event, size)
        if message.qos == 2:
            held.qos2.add(event.packet_id)
        return True

    def _subscribe(self, event: SubscribeReceived, now: float) -> bool:
        connection = event.connection
        held = self._held.get(connection)
        if self._ready or self._settings.allow_subscribe_during_netsplit:
            if not self._ready and held is not None and held.request_bytes:
                # It may be for what the client has asked to be given up.
                self._hold_request(connection, event, sum([len(wanted) for wanted, _ in event.requests]))
                return True
            self._work_off_if_ready(connection, now)
            return False
        attachment = self._attachments.get(connection)
        if attachment is not None:
            self._counters.mqtt_subscribe_error += 1
            refused = int(Reason.NOT_AUTHORIZED)
            reasons = [options if options >= _FAILURE else refused for _, options in event.requests]
            attachment.outlet.batch.suback(connection, event.packet_id, reasons)
        return True

    def _unsubscribe(self, event: UnsubscribeReceived, now: float) -> bool:
        connection = event.connection
        if self._ready or self._settings.allow_unsubscribe_during_netsplit:
            self._work_off_if_ready(connection, now)
            return False
        if connection not in self._attachments:
            return True
        self._counters.mqtt_unsubscribe_error += 1
        self._hold_request(connection, event, sum([len(topic_filter) for topic_filter in event.filters]))
        return True

    def _hold_request(self, connection: int, event: Event, filter_bytes: int) -> None:
        size: int = _EVENT_BYTES + filter_bytes
        held = self._held.get(connection)
        if held is None or held.request_bytes + size <= REQUEST_BYTES_MAX:
            self._hold(connection, event, size).request_bytes += size

    def _hold(self, connection: int, event: Event, size: int) -> HeldEvents:
        held = self._held.get(connection)
        if held is None:
            held = self._held[connection] = HeldEvents()
        held.events.append(event)
        held.bytes += size
        self._held_bytes += size
        self.held_count += 1
        return held

    def _take(self, connection: int) -> HeldEvents | None:
        held = self._held.pop(connection, None)
        if held is not None:
            self._held_bytes -= held.bytes
            self.held_count -= len(held.events)
        return held

    def _work_off_if_ready(self, connection: int, now: float) -> None:
        if self._ready and connection in self._held:
            self._work_off(connection, now)

    def _work_off(self, connection: int, now: float) -> None:
        """Hand on all that is held of a connection; if that ends meanwhile, nobody takes the rest."""
        held = self._take(connection)
        self._open_if_empty()
        if held is not None:
            for event in held.events:
                self._hand_on(event, now)

    def _open_if_empty(self) -> None:
        self.is_open = self._ready and not self._held
