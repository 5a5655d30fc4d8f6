"""Sending: a message goes out to a connection that can take it, past its session's queue.

It owns what sessions and shared groups have in common on the way out: the QoS that is granted, how large a packet and
how long a queue may be, what is counted, and who waits for a listener's credit. Who is sent what, and when, is the
dispatchers' business.
"""

from typing import Final, final

from mypy_extensions import i64

from broker.core.message import Delivery, Message
from broker.core.outlet import Outlet
from broker.core.records import RETAIN_FLAG
from broker.core.session import Attachment, Session
from broker.core.session_store import SessionStore
from broker.core.settings import Counters, OwnerSettings
from broker.core.subscription import QOS_MASK, RETAIN_AS_PUBLISHED, Subscription
from broker.mqtt.framing import varint_bytes

# A Message Expiry Interval: its identifier and four bytes.
_EXPIRY_PROPERTY_BYTES: Final = 5


@final
class Sender:
    """Sends single messages, and notes for the operator and the metrics what became of others."""

    def __init__(self, settings: OwnerSettings, store: SessionStore) -> None:
        self.counters = Counters()
        self.notices: list[str] = []
        # Sessions that would have sent something and could not, because their listener has no credit.
        self.waiting: dict[Session, Outlet] = {}
        self._settings = settings
        self._store = store
        self._upgrade = settings.upgrade_outgoing_qos

    def take_notices(self) -> list[str]:
        """Return what an operator should read in the log, since the last call."""
        notices, self.notices = self.notices, []
        return notices

    def messages_max(self, online: bool) -> int:
        """Return how many messages may wait for a session or group; negative for any number."""
        settings = self._settings
        if not online:
            return settings.max_offline_messages
        if settings.override_max_online_messages and settings.max_online_messages >= 0:
            if settings.max_offline_messages < 0:
                return -1
            return max(settings.max_online_messages, settings.max_offline_messages)
        return settings.max_online_messages

    def qos(self, message: Message, subscription: Subscription) -> int:
        """Return the QoS that a subscription is sent a message with."""
        granted = subscription.options & QOS_MASK  # [MQTT-4.8.2-3]
        return granted if self._upgrade else min(message.qos, granted)

    def has_room(self, session: Session, message: Message, qos: int) -> bool:
        """Say whether the client's window, and what may be held for it, have room for a message outside its queue."""
        if not qos:
            return True
        bytes_max = self._settings.max_queued_bytes
        return not session.inflight.is_full() and (bytes_max < 0 or session.has_room(bytes_max, message.size()))

    def send(
        self, session: Session, message: Message, subscription: Subscription, retained: bool, shared: bytes, now: float
    ) -> Delivery | None:
        """Send a message to a session that can take it, outside its queue; the result is what is in flight now."""
        attachment = session.attachment
        assert attachment is not None
        qos = self.qos(message, subscription)
        # [MQTT311-3.3.1-8] What a new subscription is sent carries the flag.
        retain = retained or (message.retain and subscription.options & RETAIN_AS_PUBLISHED != 0)
        flags: i64 = qos | (RETAIN_FLAG if retain else 0)
        packet_id: i64 = 0
        delivery: Delivery | None = None
        if qos:
            delivery = Delivery(session.take_seq(), message, qos, retain, subscription.encoded)
            delivery.shared = shared
            packet_id = session.inflight.add(delivery, now)
            if session.persistent:
                self._store.put_delivery(session.number, delivery)
        self.counters.mqtt_publish_sent += 1
        attachment.outlet.deliver(attachment.connection, packet_id << 16 | flags, message, subscription.encoded, now)
        return delivery


def is_too_large(attachment: Attachment, message: Message, qos: i64, identifiers: bytes) -> bool:
    """Say whether the PUBLISH would be over the client's Maximum Packet Size [MQTT-3.1.2-24], if it named one."""
    if not attachment.packet_bytes_max:
        return False
    properties: i64 = len(message.properties) + len(identifiers)
    if message.expires_at:
        properties += _EXPIRY_PROPERTY_BYTES
    body: i64 = 2 + len(message.topic) + varint_bytes(properties) + properties + len(message.payload)
    if qos:
        body += 2
    return 1 + varint_bytes(body) + body > attachment.packet_bytes_max
