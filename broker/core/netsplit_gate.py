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
client's. Once the node is ready all of it is handed on, some of it a turn and as fast as the listeners take what comes
of it; when a client says more meanwhile, what was held of it is handed on first.

How much is held is bounded by what a client may have unacknowledged before its listener reads it no more
(`client_publishing`): some hundred messages and a few MiB, and one message more. Beside that there is a limit for all
together, at which whoever says more is closed, and one for the UNSUBSCRIBEs of a connection (and the SUBSCRIBEs behind
them), at which further ones have no answer at all.

Invariants: what is held is of connections that exist; the gate is open if the node is ready and nothing is held.
"""

import math
from collections.abc import Callable
from typing import Final, final

from broker.core.events import Attach, Event, PublishReceived, SubscribeReceived, UnsubscribeReceived
from broker.core.fifo import Fifo
from broker.core.outlet import Outlet
from broker.core.session import Attachment
from broker.core.settings import Counters, OwnerSettings
from broker.mqtt.reasons import Reason

DROP_REASON: Final = "not_ready"
# What all clients together may have held.
HELD_BYTES_MAX: Final = 256 * 1024 * 1024
# What a connection may have held of UNSUBSCRIBEs, and of SUBSCRIBEs behind them.
REQUEST_BYTES_MAX: Final = 64 * 1024
# A turn hands on so many events, so that it does not take long.
EVENTS_PER_TURN: Final = 1024
# How long it takes at most to notice that a listener is not behind any more, but stalls.
BEHIND_S: Final = 0.1
# What an event takes without its topics and payload.
_EVENT_BYTES: Final = 256
_FAILURE: Final = 0x80


@final
class HeldEvents:
    """What is held of one connection, oldest first."""

    __slots__ = ("bytes", "events", "qos2", "request_bytes")

    def __init__(self) -> None:
        self.events: Fifo[Event] = Fifo()
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
        is_behind: Callable[[float], bool],
    ) -> None:
        self.is_open = True
        self.held_count: int = 0
        # The limits are the constants but in tests.
        self.held_bytes_max: int = HELD_BYTES_MAX
        self.events_per_turn: int = EVENTS_PER_TURN
        self._settings = settings
        self._attachments = attachments
        self._outlets = outlets
        self._counters = counters
        self._hand_on = hand_on
        self._close = close
        self._is_behind = is_behind
        self._ready = True
        self._reason = ""
        self._held: dict[int, HeldEvents] = {}
        self._held_bytes: int = 0
        # When what is held is handed on, if the node is ready.
        self._work_at: float = 0.0

    def set_ready(self, ready: bool, reason: str) -> None:
        """Take note that the node is ready, or why not."""
        self._ready = ready
        self._reason = reason
        self._open_if_empty()

    def lets_connect(self) -> bool:
        """Say whether clients that connect are served."""
        return self._ready or self._settings.allow_register_during_netsplit

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
        held = self._held.pop(connection, None)
        if held is not None:
            self._held_bytes -= held.bytes
            self.held_count -= len(held.events)
            self._open_if_empty()

    def is_holding(self, connection: int) -> bool:
        """Say whether what the connection says next has something in front of it."""
        return connection in self._held

    def next_deadline(self) -> float:
        """Return when `work_off` has something to do; infinity when never."""
        return self._work_at if self._ready and self._held else math.inf

    def resume(self) -> None:
        """A listener can take more."""
        self._work_at = 0.0

    def work_off(self, now: float) -> None:
        """Hand on what was held, as far as a turn goes and the listeners keep up."""
        if not self._ready or not self._held:
            return
        left = self.events_per_turn
        for connection in list(self._held):
            while connection in self._held:
                if self._is_behind(now):
                    self._work_at = now + BEHIND_S
                    return
                if left == 0:
                    self._work_at = 0.0
                    return
                left -= 1
                self._hand_on_next(connection, now)

    def validate(self) -> None:
        """Check the invariants."""
        assert self.is_open == (self._ready and not self._held)
        assert self._ready == (not self._reason)
        assert self._held_bytes == sum([held.bytes for held in self._held.values()])
        assert self.held_count == sum([len(held.events) for held in self._held.values()])
        for connection, held in self._held.items():
            assert connection in self._attachments
            assert not held.events.is_empty()
            assert held.bytes == sum([_size(event) for event in held.events])

    def _attach(self, event: Attach) -> bool:
        if self.lets_connect():
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
        if self._held_bytes and self._held_bytes + _size(event) > self.held_bytes_max:
            self._close(attachment, int(Reason.QUOTA_EXCEEDED), now)
            return True
        if event.expiry_s >= 0:
            # [MQTT-3.3.2-6] Its time runs while it waits.
            message.expires_at = now + event.expiry_s
            event.expiry_s = -1
        held = self._hold(connection, event)
        if message.qos == 2:
            held.qos2.add(event.packet_id)
        return True

    def _subscribe(self, event: SubscribeReceived, now: float) -> bool:
        connection = event.connection
        held = self._held.get(connection)
        if self._ready or self._settings.allow_subscribe_during_netsplit:
            if not self._ready and held is not None and held.request_bytes:
                # It may be for what the client has asked to be given up.
                self._hold_request(connection, event)
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
        self._hold_request(connection, event)
        return True

    def _hold_request(self, connection: int, event: Event) -> None:
        size = _size(event)
        held = self._held.get(connection)
        if held is None or held.request_bytes + size <= REQUEST_BYTES_MAX:
            self._hold(connection, event).request_bytes += size

    def _hold(self, connection: int, event: Event) -> HeldEvents:
        held = self._held.get(connection)
        if held is None:
            held = self._held[connection] = HeldEvents()
        size = _size(event)
        held.events.append(event)
        held.bytes += size
        self._held_bytes += size
        self.held_count += 1
        return held

    def _work_off_if_ready(self, connection: int, now: float) -> None:
        """Hand on all that is held of a connection that says more."""
        while self._ready and connection in self._held:
            self._hand_on_next(connection, now)

    def _hand_on_next(self, connection: int, now: float) -> None:
        """Hand on the oldest of what is held of a connection; that may end the connection."""
        held = self._held[connection]
        event = held.events.popleft()
        size = _size(event)
        held.bytes -= size
        self._held_bytes -= size
        self.held_count -= 1
        if isinstance(event, PublishReceived):
            held.qos2.discard(event.packet_id)
        else:
            held.request_bytes -= size
        if held.events.is_empty():
            del self._held[connection]
            self._open_if_empty()
        self._hand_on(event, now)

    def _open_if_empty(self) -> None:
        self.is_open = self._ready and not self._held


def _size(event: Event) -> int:
    """Return about how many bytes an event that is held takes."""
    if isinstance(event, PublishReceived):
        return _EVENT_BYTES + event.message.size()
    if isinstance(event, SubscribeReceived):
        return _EVENT_BYTES + sum([len(topic_filter) for topic_filter, _ in event.requests])
    assert isinstance(event, UnsubscribeReceived)
    return _EVENT_BYTES + sum([len(topic_filter) for topic_filter in event.filters])
