"""Dispatching: from a message and its route to what each session's connection is sent, queues, or loses.

It owns the decision what a session gets now, later or never, with the counters that say so. It knows sessions,
outlets and the turn's writes; who publishes, who is acknowledged and what other nodes want is the owner's business.

Theory of operation
-------------------
A delivery goes out at once when the session is attached, its client reads, its listener has credit, nothing older
waits and, from QoS 1 on, the window has room. Otherwise QoS 1 waits in the queue, and QoS 0 does too while the client
is connected. `drain` sends from the queue whenever one of those reasons ended. A session whose only obstacle is its
listener's credit is in `waiting`, so that returning credit finds it.
"""

from dataclasses import dataclass
from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.core import persistence
from broker.core.events import NEVER_EXPIRES_S
from broker.core.message import Delivery, Message
from broker.core.outlet import Outlet
from broker.core.records import DUP_FLAG, WINDOW_BYTES, pack_target
from broker.core.routes import Route
from broker.core.session import Attachment, Session
from broker.core.storage import WriteBatch
from broker.mqtt.framing import varint_bytes

# A Message Expiry Interval: its identifier and four bytes.
_EXPIRY_PROPERTY_BYTES: Final = 5


@dataclass(slots=True, frozen=True)
class OwnerSettings:
    """What the configuration says to the queue-owner; negative limits are none.

    `listener_window_bytes` is WINDOW_BYTES but in tests: listeners return credit in parts of that.
    """

    max_inflight_messages: int = 20
    max_online_messages: int = 1000
    max_offline_messages: int = 1000
    persistent_client_expiration_s: int = NEVER_EXPIRES_S
    listener_window_bytes: int = WINDOW_BYTES


@final
class Counters:
    """Counts since the start; the names are the metrics'."""

    def __init__(self) -> None:
        self.mqtt_publish_received: int = 0
        self.mqtt_publish_sent: int = 0
        self.queue_message_in: int = 0
        self.queue_message_out: int = 0
        self.router_matches_local: int = 0
        self.router_matches_remote: int = 0
        self.dropped: dict[str, int] = {}

    def drop(self, reason: str, count: int = 1) -> None:
        """Count dropped deliveries by reason."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count


@final
class Dispatcher:
    """Hands messages to sessions. `writes` and `clock` are the owner's, set anew for each turn and at recovery."""

    def __init__(self, settings: OwnerSettings) -> None:
        self.counters = Counters()
        self.notices: list[str] = []
        # Sessions that would have sent something and could not, because their listener has no credit.
        self.waiting: dict[Session, Outlet] = {}
        self.writes = WriteBatch()
        self.clock = persistence.Clock(0.0, 0)
        self._settings = settings

    def deliver(self, message: Message, route: Route, now: float) -> int:
        """Offer the message to each session and send it, once for each listener, to those that can take it.

        Returns how many sessions it was for, whatever became of it there.
        """
        sessions = route.sessions
        granted = route.granted
        if route.no_local and message.publisher in route.no_local:
            # [MQTT-3.8.3-3] No Local: the publisher's own subscription is left out.
            own = sessions.index(route.no_local[message.publisher])
            sessions = sessions[:own] + sessions[own + 1 :]
            granted = granted[:own] + granted[own + 1 :]
        self.counters.router_matches_local += len(sessions)
        if len(sessions) == 1:
            session = sessions[0]
            head = self._offer(session, message, granted[0])
            if head >= 0:
                attachment = session.attachment
                assert attachment is not None
                attachment.outlet.deliver(attachment.connection, head, message, now)
            return 1
        groups: dict[Outlet, BytesWriter] = {}
        for index, session in enumerate(sessions):
            head = self._offer(session, message, granted[index])
            if head >= 0:
                attachment = session.attachment
                assert attachment is not None
                group = groups.get(attachment.outlet)
                if group is None:
                    group = BytesWriter()
                    groups[attachment.outlet] = group
                pack_target(group, attachment.connection, head >> 16, head & 0xFFFF)
        for outlet, group in groups.items():
            outlet.deliver_many(group.getvalue(), message, now)
        return len(sessions)

    def _offer(self, session: Session, message: Message, granted: i64) -> i64:
        """Give the message to a session; the result is packet id << 16 | QoS when it goes out now, else -1."""
        # [MQTT-3.8.4-8] [MQTT311-3.8.4-6] The lower of the two.
        qos: i64 = message.qos
        if granted < qos:
            qos = granted
        attachment = session.attachment
        if attachment is not None and attachment.packet_bytes_max and self._is_too_large(attachment, message, qos):
            # [MQTT-3.1.2-25]
            self.counters.drop("max_packet_size_exceeded")
            return -1
        sendable = attachment is not None and not attachment.paused and attachment.outlet.open
        if qos == 0:
            if sendable and session.queue.qos0 == 0:
                # [MQTT-4.3.1-1] [MQTT311-4.3.1-1]
                self.counters.mqtt_publish_sent += 1
                return 0
            if attachment is None:
                return -1
        delivery = Delivery(session.take_seq(), message, int(qos))
        if qos and sendable and session.is_caught_up() and not session.inflight.is_full():
            # [MQTT-4.3.2-2]
            packet_id: i64 = session.inflight.add(delivery)
            self.counters.mqtt_publish_sent += 1
            if session.persistent:
                persistence.put_delivery(self.writes, session, delivery, self.clock)
            return packet_id << 16 | qos
        # [MQTT-4.5.0-1] [MQTT311-3.1.2-5] [MQTT311-4.5.0-1]
        self._enqueue(session, delivery)
        return -1

    def _is_too_large(self, attachment: Attachment, message: Message, qos: i64) -> bool:
        """Say whether the PUBLISH would be over the client's Maximum Packet Size [MQTT-3.1.2-24]."""
        properties: i64 = len(message.properties)
        if message.expires_at:
            properties += _EXPIRY_PROPERTY_BYTES
        body: i64 = 2 + len(message.topic) + varint_bytes(properties) + properties + len(message.payload)
        if qos:
            body += 2
        return 1 + varint_bytes(body) + body > attachment.packet_bytes_max

    def _enqueue(self, session: Session, delivery: Delivery) -> None:
        settings = self._settings
        attachment = session.attachment
        messages_max = settings.max_offline_messages if attachment is None else settings.max_online_messages
        if not session.queue.has_room(messages_max):
            self.counters.drop("queue_full")
            if not session.queue.dropping:
                session.queue.dropping = True
                self.notices.append(f"queue of {session.client_id!r} is full at {messages_max} messages: dropping")
            return
        session.queue.dropping = False
        session.queue.push(delivery)
        self.counters.queue_message_in += 1
        if delivery.qos and session.persistent:
            persistence.put_delivery(self.writes, session, delivery, self.clock)
        if attachment is not None:
            outlet = attachment.outlet
            if not outlet.open:
                self.waiting[session] = outlet

    def redeliver(self, attachment: Attachment, now: float) -> None:
        """Send again what was in flight when the last connection ended, then what waits.

        [MQTT-4.4.0-1] [MQTT311-4.4.0-1], in the old order [MQTT-4.6.0-1] [MQTT311-4.6.0-1].
        """
        attachment.session.inflight.begin_resend()
        self.drain(attachment, now)

    def drain(self, attachment: Attachment, now: float) -> None:
        """Send what the connection, its window and its listener can take: first again, then from the queue."""
        session = attachment.session
        inflight = session.inflight
        queue = session.queue
        outlet = attachment.outlet
        while not attachment.paused and (inflight.is_resending() or len(queue)):
            if not outlet.open:
                self.waiting[session] = outlet
                return
            if inflight.is_resending():
                if inflight.is_full():
                    return
                delivery = inflight.take_resend()
                if delivery is not None and self._is_deliverable(attachment, delivery, now):
                    # [MQTT-3.3.1-1] [MQTT-3.3.1-3] [MQTT311-3.3.1-1] [MQTT311-3.3.1-3]
                    head = delivery.packet_id << 16 | delivery.qos | DUP_FLAG
                    outlet.deliver(attachment.connection, head, delivery.message, now)
                continue
            # [MQTT-4.9.0-2] [MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT311-4.6.0-5] [MQTT311-4.6.0-6]
            if queue.head().qos and inflight.is_full():
                return
            delivery = queue.pop()
            self.counters.queue_message_out += 1
            if self._is_deliverable(attachment, delivery, now):
                packet_id = inflight.add(delivery) if delivery.qos else 0
                if delivery.stored:
                    # The packet id is part of the session: a resend after a restart has to use it again.
                    persistence.put_delivery(self.writes, session, delivery, self.clock)
                self.counters.mqtt_publish_sent += 1
                outlet.deliver(attachment.connection, packet_id << 16 | delivery.qos, delivery.message, now)

    def _is_deliverable(self, attachment: Attachment, delivery: Delivery, now: float) -> bool:
        """Say whether the delivery may go out; one that may not is dropped here, and counted."""
        message = delivery.message
        if message.expires_at and message.expires_at <= now and not delivery.packet_id:
            # [MQTT-3.3.2-5] A message that expired before its delivery began is not sent.
            self.counters.drop("expired")
        elif attachment.packet_bytes_max and self._is_too_large(attachment, message, delivery.qos):
            self.counters.drop("max_packet_size_exceeded")
        else:
            return True
        session = attachment.session
        if delivery.packet_id:
            session.inflight.pop(delivery.packet_id)
        if delivery.stored:
            persistence.delete_delivery(self.writes, session, delivery)
        return False

    def resume(self, outlet: Outlet, now: float) -> None:
        """Send to the sessions that waited for this outlet's credit, as far as it goes."""
        for session, blocked in list(self.waiting.items()):
            if not outlet.open:
                return
            if blocked is outlet:
                del self.waiting[session]
                assert session.attachment is not None
                self.drain(session.attachment, now)
