"""The stored form of sessions, subscriptions, queues and messages, and the way back at recovery.

It owns the layout of the families `session`, `queue` and `message`. It writes into a WriteBatch and
reads through Storage; when something is written is the owner's decision.

    session  session u64                  version u8, flags u8 (1 user name), expiry u32, deadline u64,
                                          client id str, user name str
    session  session u64, "/", filter     version u8, granted QoS u8
    queue    session u64, seq u64         version u8, QoS u8, packet id u16 (0: not sent), message id (24 bytes)
    message  origin (16 bytes), u64       version u8, flags u8 (QoS, 4 retain), deadline u64, publisher str,
                                          topic str, properties u32 and bytes, payload

Deadlines are UTC milliseconds, 0 for none; monotonic seconds mean nothing after a restart. A body is
stored once however many queues point to it: references are counted in memory and rebuilt here.
"""

import struct
from typing import Final, final

from broker.core.message import ORIGIN_BYTES, Delivery, Message
from broker.core.session import Session
from broker.core.storage import Storage, StorageError, WriteBatch

VALUE_VERSION: Final = 1
_SUBSCRIPTION: Final = b"/"
_KEY_END: Final = b"\xff" * 9
_SESSION: Final = struct.Struct(">BBIQ")
_QUEUE: Final = struct.Struct(">BBH")
_MESSAGE: Final = struct.Struct(">BBQ")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")


@final
class Clock:
    """Converts between monotonic seconds and UTC milliseconds, from one reading of both."""

    __slots__ = ("_now", "_utc_ms")

    def __init__(self, now: float, utc_ms: int) -> None:
        self._now = now
        self._utc_ms = utc_ms

    def to_utc_ms(self, deadline: float) -> int:
        """Return the UTC deadline in ms of a monotonic one; 0.0 is 0, never."""
        return 0 if deadline == 0.0 else self._utc_ms + int((deadline - self._now) * 1000)

    def to_monotonic(self, deadline_ms: int) -> float:
        """Return the monotonic deadline of a UTC one in ms; 0 is 0.0, never."""
        return 0.0 if deadline_ms == 0 else self._now + (deadline_ms - self._utc_ms) / 1000


def put_session(batch: WriteBatch, session: Session, clock: Clock) -> None:
    """Write the session without its subscriptions and queue [MQTT-3.1.2-23] [MQTT311-4.1.0-1]."""
    head = _SESSION.pack(
        VALUE_VERSION, 0 if session.user_name is None else 1, session.expiry_s, clock.to_utc_ms(session.expires_at)
    )
    batch.put("session", _session_key(session), head + _string(session.client_id) + _string(session.user_name or ""))


def put_subscription(batch: WriteBatch, session: Session, topic_filter: bytes, granted: int) -> None:
    """Write one subscription."""
    key = _session_key(session) + _SUBSCRIPTION + topic_filter
    batch.put("session", key, bytes([VALUE_VERSION, granted]))


def delete_subscription(batch: WriteBatch, session: Session, topic_filter: bytes) -> None:
    """Remove one subscription."""
    batch.delete("session", _session_key(session) + _SUBSCRIPTION + topic_filter)


def put_delivery(batch: WriteBatch, session: Session, delivery: Delivery, clock: Clock) -> None:
    """Write a queue record and, with the first one that points to it, the message."""
    message = delivery.message
    if not delivery.stored:
        delivery.stored = True
        if message.references == 0:
            batch.put("message", message.key(), _pack_message(message, clock))
        message.references += 1
    value = _QUEUE.pack(VALUE_VERSION, delivery.qos, delivery.packet_id) + message.key()
    batch.put("queue", _queue_key(session, delivery), value)


def delete_delivery(batch: WriteBatch, session: Session, delivery: Delivery) -> None:
    """Remove a queue record, and the message with the last one that points to it."""
    assert delivery.stored
    delivery.stored = False
    message = delivery.message
    batch.delete("queue", _queue_key(session, delivery))
    message.references -= 1
    if message.references == 0:
        batch.delete("message", message.key())


def delete_session(batch: WriteBatch, session: Session) -> None:
    """Remove the session and its subscriptions; its deliveries are removed one by one before."""
    start = _session_key(session)
    batch.delete_range("session", start, start + _KEY_END)


def recover(storage: Storage, clock: Clock, window: int) -> list[Session]:
    """Read every session with its subscriptions and queue, in the order of their numbers."""
    sessions: dict[bytes, Session] = {}
    for key, value in storage.scan("session", b"", b""):
        _check_version(value, "session")
        if len(key) == 8:
            sessions[key] = _unpack_session(key, value, clock, window)
        else:
            sessions[key[:8]].subscriptions[key[9:]] = value[1]
    messages: dict[bytes, Message] = {}
    for key, value in storage.scan("queue", b"", b""):
        _check_version(value, "queue")
        _restore_delivery(storage, sessions[key[:8]], key, value, messages, clock)
    return list(sessions.values())


def _restore_delivery(
    storage: Storage, session: Session, key: bytes, value: bytes, messages: dict[bytes, Message], clock: Clock
) -> None:
    _version, qos, packet_id = _QUEUE.unpack_from(value)
    message_key = value[_QUEUE.size :]
    message = messages.get(message_key)
    if message is None:
        stored = storage.get("message", message_key)
        if stored is None:
            raise StorageError(f"queue record {key.hex()} points to a message that is not there")
        message = _unpack_message(message_key, stored, clock)
        messages[message_key] = message
    message.references += 1
    seq = int.from_bytes(key[8:], "big")
    delivery = Delivery(seq, message, qos)
    delivery.stored = True
    delivery.packet_id = packet_id
    session.next_seq = seq + 1
    if packet_id:
        session.inflight.restore(delivery)
    else:
        session.queue.push(delivery)


def _unpack_session(key: bytes, value: bytes, clock: Clock, window: int) -> Session:
    _version, flags, expiry_s, deadline_ms = _SESSION.unpack_from(value)
    client_id, pos = _unpack_string(value, _SESSION.size)
    user_name, pos = _unpack_string(value, pos)
    session = Session(
        int.from_bytes(key, "big"), client_id.decode(), user_name.decode() if flags & 1 else None, expiry_s, window
    )
    session.expires_at = clock.to_monotonic(deadline_ms)
    return session


def _pack_message(message: Message, clock: Clock) -> bytes:
    return b"".join(
        (
            _MESSAGE.pack(
                VALUE_VERSION, message.qos | (4 if message.retain else 0), clock.to_utc_ms(message.expires_at)
            ),
            _string(message.publisher),
            _U16.pack(len(message.topic)),
            message.topic,
            _U32.pack(len(message.properties)),
            message.properties,
            message.payload,
        )
    )


def _unpack_message(key: bytes, value: bytes, clock: Clock) -> Message:
    _check_version(value, "message")
    _version, flags, deadline_ms = _MESSAGE.unpack_from(value)
    publisher, pos = _unpack_string(value, _MESSAGE.size)
    topic, pos = _unpack_string(value, pos)
    (size,) = _U32.unpack_from(value, pos)
    payload = pos + 4 + size
    return Message(
        topic,
        value[payload:],
        value[pos + 4 : payload],
        flags & 3,
        flags & 4 != 0,
        clock.to_monotonic(deadline_ms),
        publisher.decode(),
        key[:ORIGIN_BYTES],
        int.from_bytes(key[ORIGIN_BYTES:], "big"),
    )


def _check_version(value: bytes, family: str) -> None:
    if value[0] > VALUE_VERSION:
        raise StorageError(f"a {family} record has version {value[0]}; this program reads up to {VALUE_VERSION}")


def _session_key(session: Session) -> bytes:
    return session.number.to_bytes(8, "big")


def _queue_key(session: Session, delivery: Delivery) -> bytes:
    return session.number.to_bytes(8, "big") + delivery.seq.to_bytes(8, "big")


def _string(value: str) -> bytes:
    encoded = value.encode()
    return _U16.pack(len(encoded)) + encoded


def _unpack_string(value: bytes, pos: int) -> tuple[bytes, int]:
    (size,) = _U16.unpack_from(value, pos)
    return value[pos + 2 : pos + 2 + size], pos + 2 + size
