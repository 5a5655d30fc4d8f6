"""Records of a listener for the queue-owner: packed by the listener, unpacked to events by the owner.

Grammar
-------
See `records` for what frames of both directions share.

    header: version u8, listener u8, generation u32, owner generation u32, consumed u32
      ATTACH      1  connection u32, version u8, flags u8 (1 clean start, 2 user name, 4 will), session expiry u32,
                     receive maximum u16, packet bytes max u32, client id str, user name str; with a will: flags u8
                     (QoS, 4 retain, 8 expiry), delay u32, expiry u32, topic str, lengths of properties u32 and
                     payload u32, properties, payload
      PUBLISH     3  flags u8 (QoS, 4 retain, 8 expiry), connection u32, packet id u16, topic u16, properties u32,
                     payload u32, expiry u32 (0 without the flag), then topic, properties, payload
      PUBACK      4  connection u32, packet id u16, reason u8
      PUBREC      5  as PUBACK
      PUBREL      6  as PUBACK
      PUBCOMP     7  as PUBACK
      SUBSCRIBE   8  connection u32, packet id u16, count u32, subscription identifier u32 (0: none), then count x
                     (filter str, options u8 as in MQTT 5's SUBSCRIBE, or a reason of 128 and more)
      UNSUBSCRIBE 10 connection u32, packet id u16, count u32, then count x filter str
      DETACH      14 connection u32, reason u8, expiry given u8, session expiry u32, count u16, then count x packet id
                     u16 that was held back
      PAUSED      20 connection u32
      RESUMED     21 connection u32
      COUNTERS    22 0 u32, length u16, then the listener's counters (see `counters`)
"""

from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.core.counters import unpack_counters
from broker.core.events import (
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    Detach,
    Event,
    ListenerCounted,
    PubackReceived,
    PubcompReceived,
    PublishReceived,
    PubrecReceived,
    PubrelReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.message import Message
from broker.core.records import (
    ATTACH,
    COUNTERS,
    DETACH,
    EXPIRY_FLAG,
    PAUSED,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    RECORD_VERSION,
    RESUMED,
    RETAIN_FLAG,
    SUBSCRIBE,
    UNSUBSCRIBE,
    put_string,
    put_u8,
    put_u16,
    put_u32,
    string_at,
    u16_at,
    u32_at,
)
from broker.core.will import Will

LISTENER_HEADER_BYTES: Final = 14


@final
class ListenerBatch:
    """Records of one listener for the owner, in order. `urgent` says that one of them should leave at once."""

    __slots__ = ("_generation", "_listener", "_owner_generation", "_writer", "urgent")

    def __init__(self, listener: int, generation: int, owner_generation: int) -> None:
        self._listener = listener
        self._generation = generation
        self._owner_generation = owner_generation
        self._writer = BytesWriter()
        self.urgent = False

    def size(self) -> int:
        """Return the bytes of records that wait to be taken."""
        return len(self._writer)

    def take(self, consumed_bytes: int) -> bytes:
        """Return the frame of everything appended so far and begin a new one."""
        head = BytesWriter()
        put_u8(head, RECORD_VERSION)
        put_u8(head, self._listener)
        put_u32(head, self._generation)
        put_u32(head, self._owner_generation)
        put_u32(head, consumed_bytes)
        head.write(self._writer.getvalue())
        self._writer = BytesWriter()
        self.urgent = False
        return head.getvalue()

    def reset(self, owner_generation: int) -> None:
        """Forget what was said to an owner that is gone."""
        self._owner_generation = owner_generation
        self._writer = BytesWriter()
        self.urgent = False

    def attach(self, event: Attach) -> None:
        """Append an ATTACH."""
        writer = self._writer
        self.urgent = True
        put_u8(writer, ATTACH)
        put_u32(writer, event.connection & 0xFFFFFFFF)
        put_u8(writer, event.version)
        will = event.will
        flags = (1 if event.clean_start else 0) | (2 if event.user_name is not None else 0)
        put_u8(writer, flags | (4 if will is not None else 0))
        put_u32(writer, event.session_expiry_s)
        put_u16(writer, event.receive_maximum)
        put_u32(writer, event.packet_bytes_max)
        put_string(writer, event.client_id.encode())
        put_string(writer, (event.user_name or "").encode())
        if will is not None:
            put_u8(writer, will.qos | (RETAIN_FLAG if will.retain else 0) | (EXPIRY_FLAG if will.expiry_s >= 0 else 0))
            put_u32(writer, will.delay_s)
            put_u32(writer, max(will.expiry_s, 0))
            put_string(writer, will.topic)
            put_u32(writer, len(will.properties))
            put_u32(writer, len(will.payload))
            writer.write(will.properties)
            writer.write(will.payload)

    def publish(
        self,
        connection: i64,
        packet_id: i64,
        qos: i64,
        retain: bool,
        topic: bytes,
        properties: bytes,
        payload: bytes,
        expiry_s: i64,
    ) -> None:
        """Append a PUBLISH; `expiry_s` is -1 without a Message Expiry Interval."""
        writer = self._writer
        self.urgent = True
        put_u8(writer, PUBLISH)
        flags: i64 = qos
        if retain:
            flags |= RETAIN_FLAG
        if expiry_s >= 0:
            flags |= EXPIRY_FLAG
        put_u8(writer, flags)
        put_u32(writer, connection)
        put_u16(writer, packet_id)
        put_u16(writer, len(topic))
        put_u32(writer, len(properties))
        put_u32(writer, len(payload))
        put_u32(writer, expiry_s if expiry_s >= 0 else 0)
        writer.write(topic)
        if properties:
            writer.write(properties)
        writer.write(payload)

    def acknowledge(self, kind: i64, connection: i64, packet_id: i64, reason: i64, lazy: bool = False) -> None:
        """Append a PUBACK, PUBREC, PUBREL or PUBCOMP; nobody waits for what comes of a lazy one."""
        writer = self._writer
        if not lazy:
            self.urgent = True
        put_u8(writer, kind)
        put_u32(writer, connection)
        put_u16(writer, packet_id)
        put_u8(writer, reason)

    def subscribe(self, connection: int, packet_id: int, identifier: int, requests: list[tuple[bytes, int]]) -> None:
        """Append a SUBSCRIBE of (filter, options or reason)."""
        writer = self._writer
        self.urgent = True
        put_u8(writer, SUBSCRIBE)
        put_u32(writer, connection)
        put_u16(writer, packet_id)
        put_u32(writer, len(requests))
        put_u32(writer, identifier)
        for topic_filter, options in requests:
            put_string(writer, topic_filter)
            put_u8(writer, options)

    def unsubscribe(self, connection: int, packet_id: int, filters: list[bytes]) -> None:
        """Append an UNSUBSCRIBE."""
        writer = self._writer
        self.urgent = True
        put_u8(writer, UNSUBSCRIBE)
        put_u32(writer, connection)
        put_u16(writer, packet_id)
        put_u32(writer, len(filters))
        for topic_filter in filters:
            put_string(writer, topic_filter)

    def detach(self, connection: int, reason: int, session_expiry_s: int, unsent: list[int]) -> None:
        """Append a DETACH; `session_expiry_s` is -1 when the DISCONNECT did not set one."""
        writer = self._writer
        self.urgent = True
        put_u8(writer, DETACH)
        put_u32(writer, connection)
        put_u8(writer, reason)
        put_u8(writer, 0 if session_expiry_s < 0 else 1)
        put_u32(writer, max(session_expiry_s, 0))
        put_u16(writer, len(unsent))
        for packet_id in unsent:
            put_u16(writer, packet_id)

    def paused(self, connection: int) -> None:
        """Append a PAUSED."""
        self.urgent = True
        put_u8(self._writer, PAUSED)
        put_u32(self._writer, connection)

    def resumed(self, connection: int) -> None:
        """Append a RESUMED."""
        self.urgent = True
        put_u8(self._writer, RESUMED)
        put_u32(self._writer, connection)

    def counters(self, packed: bytes) -> None:
        """Append a COUNTERS."""
        self.urgent = True
        put_u8(self._writer, COUNTERS)
        put_u32(self._writer, 0)
        put_string(self._writer, packed)


@final
class ListenerHeader:
    """The header of a listener's frame."""

    __slots__ = ("consumed_bytes", "generation", "listener", "owner_generation")

    def __init__(self, frame: bytes) -> None:
        assert frame[0] == RECORD_VERSION, f"record version {frame[0]}"
        self.listener: int = frame[1]
        self.generation: int = u32_at(frame, 2)
        self.owner_generation: int = u32_at(frame, 6)
        self.consumed_bytes: int = u32_at(frame, 10)


def unpack_events(frame: bytes) -> list[Event]:
    """Return the events of a listener's frame, in order."""
    events: list[Event] = []
    base: i64 = i64(frame[1]) << 32
    pos: i64 = LISTENER_HEADER_BYTES
    end: i64 = len(frame)
    while pos < end:
        kind: i64 = frame[pos]
        if kind == PUBLISH:
            flags: i64 = frame[pos + 1]
            topic: i64 = pos + 22
            properties: i64 = topic + u16_at(frame, pos + 8)
            payload: i64 = properties + u32_at(frame, pos + 10)
            payload_end: i64 = payload + u32_at(frame, pos + 14)
            expiry_s: i64 = u32_at(frame, pos + 18)
            message = Message(
                frame[topic:properties],
                frame[payload:payload_end],
                frame[properties:payload] if payload > properties else b"",
                int(flags & 3),
                flags & RETAIN_FLAG != 0,
            )
            connection: i64 = base | u32_at(frame, pos + 2)
            packet_id: i64 = u16_at(frame, pos + 6)
            if flags & EXPIRY_FLAG == 0:
                expiry_s = -1
            events.append(PublishReceived(int(connection), int(packet_id), message, int(expiry_s)))
            pos = payload_end
        elif PUBACK <= kind <= PUBCOMP:
            connection = base | u32_at(frame, pos + 1)
            packet_id = u16_at(frame, pos + 5)
            reason = frame[pos + 7]
            if kind == PUBACK:
                events.append(PubackReceived(int(connection), int(packet_id), reason))
            elif kind == PUBREC:
                events.append(PubrecReceived(int(connection), int(packet_id), reason))
            elif kind == PUBREL:
                events.append(PubrelReceived(int(connection), int(packet_id), reason))
            else:
                events.append(PubcompReceived(int(connection), int(packet_id), reason))
            pos += 8
        else:
            event, next_pos = _unpack_rare(frame, int(kind), int(base), int(pos))
            events.append(event)
            pos = next_pos
    assert pos == end, "a record runs over the end of its frame"
    return events


def _unpack_rare(frame: bytes, kind: int, base: int, pos: int) -> tuple[Event, int]:
    connection: int = base | u32_at(frame, pos + 1)
    pos += 5
    if kind == ATTACH:
        return _unpack_attach(frame, connection, pos)
    if kind == DETACH:
        expiry: int = u32_at(frame, pos + 2)
        unsent: list[int] = []
        unsent_end: int = pos + 8 + 2 * u16_at(frame, pos + 6)
        for at in range(pos + 8, unsent_end, 2):
            unsent.append(int(u16_at(frame, at)))
        return Detach(connection, frame[pos], expiry if frame[pos + 1] else -1, unsent), unsent_end
    if kind == PAUSED:
        return ConnectionPaused(connection), pos
    if kind == RESUMED:
        return ConnectionResumed(connection), pos
    if kind == COUNTERS:
        packed, pos = string_at(frame, pos)
        generation: int = u32_at(frame, 2)
        return ListenerCounted(frame[1], generation, unpack_counters(packed)), pos
    assert kind in (SUBSCRIBE, UNSUBSCRIBE), f"unknown record {kind}"
    packet_id: int = u16_at(frame, pos)
    count: int = u32_at(frame, pos + 2)
    pos += 6
    if kind == UNSUBSCRIBE:
        filters: list[bytes] = []
        for _ in range(count):
            topic_filter, pos = string_at(frame, pos)
            filters.append(topic_filter)
        return UnsubscribeReceived(connection, packet_id, filters), pos
    identifier: int = u32_at(frame, pos)
    pos += 4
    requests: list[tuple[bytes, int]] = []
    for _ in range(count):
        topic_filter, pos = string_at(frame, pos)
        requests.append((topic_filter, frame[pos]))
        pos += 1
    return SubscribeReceived(connection, packet_id, requests, identifier), pos


def _unpack_attach(frame: bytes, connection: int, pos: int) -> tuple[Event, int]:
    version = frame[pos]
    flags = frame[pos + 1]
    expiry_s: int = u32_at(frame, pos + 2)
    receive_maximum: int = u16_at(frame, pos + 6)
    packet_bytes_max: int = u32_at(frame, pos + 8)
    client_id, pos = string_at(frame, pos + 12)
    user_name, pos = string_at(frame, pos)
    will: Will | None = None
    if flags & 4:
        will, pos = _unpack_will(frame, pos)
    event = Attach(
        connection,
        client_id.decode(),
        version,
        flags & 1 != 0,
        expiry_s,
        receive_maximum,
        packet_bytes_max,
        user_name.decode() if flags & 2 else None,
        will,
    )
    return event, pos


def _unpack_will(frame: bytes, pos: int) -> tuple[Will, int]:
    flags = frame[pos]
    delay_s: int = u32_at(frame, pos + 1)
    expiry_s: int = u32_at(frame, pos + 5) if flags & EXPIRY_FLAG else -1
    topic, pos = string_at(frame, pos + 9)
    payload: int = pos + 8 + u32_at(frame, pos)
    end: int = payload + u32_at(frame, pos + 4)
    will = Will(
        topic, frame[payload:end], frame[pos + 8 : payload], flags & 3, flags & RETAIN_FLAG != 0, delay_s, expiry_s
    )
    return will, end
