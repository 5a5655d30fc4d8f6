"""Packed records between a listener and the queue-owner, both ways.

One ZeroMQ frame is one batch: a header, then records back to back. Numbers are big-endian, strings
are a u16 length and the bytes.

    listener -> owner  header: version u8, listener u8, generation u32, owner generation u32, consumed u32
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

    owner -> listener  header: version u8, owner generation u32, generation u32, consumed u32
      CONNACK     2  connection u32, reason u8, session present u8, window u16
      DELIVER     3  flags u8 (8 expiry), topic u16, properties u32, payload u32, expiry u32, targets u32,
                     then targets x (connection u32, packet id u16, flags u16 (QoS, 4 retain, 8 DUP)), topic,
                     properties, payload
      PUBACK      4  connection u32, packet id u16, reason u8
      PUBREC      5  as PUBACK
      PUBREL      6  as PUBACK
      PUBCOMP     7  as PUBACK
      SUBACK      9  connection u32, packet id u16, count u32, then count reasons u8
      UNSUBACK    11 as SUBACK
      CLOSE       14 connection u32, reason u8

`consumed` returns credit: how many bytes of the other side's frames were worked off since the last
frame. Both generations are stated so that a frame from or for a dead process is recognised and
ignored. The other side of these pipes is our own code, so a malformed record is a fault of ours: unpacking it raises
AssertionError, IndexError or UnicodeDecodeError, after no more work than the frame is long.
"""

from typing import Final, final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, write_i16_be, write_i32_be
from mypy_extensions import i16, i32, i64, mypyc_attr, u8

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
from broker.core.will import Will

RECORD_VERSION: Final = 1
FRAME_BYTES_MAX: Final = 256 * 1024
# What may be under way in each direction: some milliseconds' work, as everything new queues up behind it.
WINDOW_BYTES: Final = 1024 * 1024
# Credit is worth a frame of its own when this much of it waits to be returned.
RETURN_BYTES: Final = 64 * 1024
LISTENER_HEADER_BYTES: Final = 14
OWNER_HEADER_BYTES: Final = 13
TARGET_BYTES: Final = 8
RETAIN_FLAG: Final = 4
EXPIRY_FLAG: Final = 8
DUP_FLAG: Final = 8

ATTACH: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
DELIVER: Final = 3
PUBACK: Final = 4
PUBREC: Final = 5
PUBREL: Final = 6
PUBCOMP: Final = 7
SUBSCRIBE: Final = 8
SUBACK: Final = 9
UNSUBSCRIBE: Final = 10
UNSUBACK: Final = 11
DETACH: Final = 14
CLOSE: Final = 14
PAUSED: Final = 20
RESUMED: Final = 21
COUNTERS: Final = 22


def _put_u8(writer: BytesWriter, number: i64) -> None:
    writer.append(u8(number))


def _put_u16(writer: BytesWriter, number: i64) -> None:
    # The library writes signed numbers; the wrap-around makes the same bytes.
    write_i16_be(writer, i16(number if number < 0x8000 else number - 0x10000))


def _put_u32(writer: BytesWriter, number: i64) -> None:
    write_i32_be(writer, i32(number if number < 0x80000000 else number - 0x100000000))


def _put_string(writer: BytesWriter, value: bytes) -> None:
    _put_u16(writer, len(value))
    writer.write(value)


def _u16(frame: bytes, pos: i64) -> i64:
    return i64(read_i16_be(frame, pos)) & 0xFFFF


def _u32(frame: bytes, pos: i64) -> i64:
    return i64(read_i32_be(frame, pos)) & 0xFFFFFFFF


def pack_target(writer: BytesWriter, connection: i64, packet_id: i64, flags: i64) -> None:
    """Append one target of a DELIVER: the listener's own connection number, packet id, QoS and DUP."""
    _put_u32(writer, connection & 0xFFFFFFFF)
    _put_u16(writer, packet_id)
    _put_u16(writer, flags)


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
        _put_u8(head, RECORD_VERSION)
        _put_u8(head, self._listener)
        _put_u32(head, self._generation)
        _put_u32(head, self._owner_generation)
        _put_u32(head, consumed_bytes)
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
        _put_u8(writer, ATTACH)
        _put_u32(writer, event.connection & 0xFFFFFFFF)
        _put_u8(writer, event.version)
        will = event.will
        flags = (1 if event.clean_start else 0) | (2 if event.user_name is not None else 0)
        _put_u8(writer, flags | (4 if will is not None else 0))
        _put_u32(writer, event.session_expiry_s)
        _put_u16(writer, event.receive_maximum)
        _put_u32(writer, event.packet_bytes_max)
        _put_string(writer, event.client_id.encode())
        _put_string(writer, (event.user_name or "").encode())
        if will is not None:
            _put_u8(writer, will.qos | (RETAIN_FLAG if will.retain else 0) | (EXPIRY_FLAG if will.expiry_s >= 0 else 0))
            _put_u32(writer, will.delay_s)
            _put_u32(writer, max(will.expiry_s, 0))
            _put_string(writer, will.topic)
            _put_u32(writer, len(will.properties))
            _put_u32(writer, len(will.payload))
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
        _put_u8(writer, PUBLISH)
        flags: i64 = qos
        if retain:
            flags |= RETAIN_FLAG
        if expiry_s >= 0:
            flags |= EXPIRY_FLAG
        _put_u8(writer, flags)
        _put_u32(writer, connection)
        _put_u16(writer, packet_id)
        _put_u16(writer, len(topic))
        _put_u32(writer, len(properties))
        _put_u32(writer, len(payload))
        _put_u32(writer, expiry_s if expiry_s >= 0 else 0)
        writer.write(topic)
        if properties:
            writer.write(properties)
        writer.write(payload)

    def acknowledge(self, kind: i64, connection: i64, packet_id: i64, reason: i64, lazy: bool = False) -> None:
        """Append a PUBACK, PUBREC, PUBREL or PUBCOMP; nobody waits for what comes of a lazy one."""
        writer = self._writer
        if not lazy:
            self.urgent = True
        _put_u8(writer, kind)
        _put_u32(writer, connection)
        _put_u16(writer, packet_id)
        _put_u8(writer, reason)

    def subscribe(self, connection: int, packet_id: int, identifier: int, requests: list[tuple[bytes, int]]) -> None:
        """Append a SUBSCRIBE of (filter, options or reason)."""
        writer = self._writer
        self.urgent = True
        _put_u8(writer, SUBSCRIBE)
        _put_u32(writer, connection)
        _put_u16(writer, packet_id)
        _put_u32(writer, len(requests))
        _put_u32(writer, identifier)
        for topic_filter, options in requests:
            _put_string(writer, topic_filter)
            _put_u8(writer, options)

    def unsubscribe(self, connection: int, packet_id: int, filters: list[bytes]) -> None:
        """Append an UNSUBSCRIBE."""
        writer = self._writer
        self.urgent = True
        _put_u8(writer, UNSUBSCRIBE)
        _put_u32(writer, connection)
        _put_u16(writer, packet_id)
        _put_u32(writer, len(filters))
        for topic_filter in filters:
            _put_string(writer, topic_filter)

    def detach(self, connection: int, reason: int, session_expiry_s: int, unsent: list[int]) -> None:
        """Append a DETACH; `session_expiry_s` is -1 when the DISCONNECT did not set one."""
        writer = self._writer
        self.urgent = True
        _put_u8(writer, DETACH)
        _put_u32(writer, connection)
        _put_u8(writer, reason)
        _put_u8(writer, 0 if session_expiry_s < 0 else 1)
        _put_u32(writer, max(session_expiry_s, 0))
        _put_u16(writer, len(unsent))
        for packet_id in unsent:
            _put_u16(writer, packet_id)

    def paused(self, connection: int) -> None:
        """Append a PAUSED."""
        self.urgent = True
        _put_u8(self._writer, PAUSED)
        _put_u32(self._writer, connection)

    def resumed(self, connection: int) -> None:
        """Append a RESUMED."""
        self.urgent = True
        _put_u8(self._writer, RESUMED)
        _put_u32(self._writer, connection)

    def counters(self, packed: bytes) -> None:
        """Append a COUNTERS."""
        self.urgent = True
        _put_u8(self._writer, COUNTERS)
        _put_u32(self._writer, 0)
        _put_string(self._writer, packed)


@final
class ListenerHeader:
    """The header of a listener's frame."""

    __slots__ = ("consumed_bytes", "generation", "listener", "owner_generation")

    def __init__(self, frame: bytes) -> None:
        assert frame[0] == RECORD_VERSION, f"record version {frame[0]}"
        self.listener: int = frame[1]
        self.generation: int = _u32(frame, 2)
        self.owner_generation: int = _u32(frame, 6)
        self.consumed_bytes: int = _u32(frame, 10)


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
            properties: i64 = topic + _u16(frame, pos + 8)
            payload: i64 = properties + _u32(frame, pos + 10)
            payload_end: i64 = payload + _u32(frame, pos + 14)
            expiry_s: i64 = _u32(frame, pos + 18)
            message = Message(
                frame[topic:properties],
                frame[payload:payload_end],
                frame[properties:payload] if payload > properties else b"",
                int(flags & 3),
                flags & RETAIN_FLAG != 0,
            )
            connection: i64 = base | _u32(frame, pos + 2)
            packet_id: i64 = _u16(frame, pos + 6)
            if flags & EXPIRY_FLAG == 0:
                expiry_s = -1
            events.append(PublishReceived(int(connection), int(packet_id), message, int(expiry_s)))
            pos = payload_end
        elif PUBACK <= kind <= PUBCOMP:
            connection = base | _u32(frame, pos + 1)
            packet_id = _u16(frame, pos + 5)
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
    connection: int = base | _u32(frame, pos + 1)
    pos += 5
    if kind == ATTACH:
        return _unpack_attach(frame, connection, pos)
    if kind == DETACH:
        expiry: int = _u32(frame, pos + 2)
        unsent: list[int] = []
        unsent_end: int = pos + 8 + 2 * _u16(frame, pos + 6)
        for at in range(pos + 8, unsent_end, 2):
            unsent.append(int(_u16(frame, at)))
        return Detach(connection, frame[pos], expiry if frame[pos + 1] else -1, unsent), unsent_end
    if kind == PAUSED:
        return ConnectionPaused(connection), pos
    if kind == RESUMED:
        return ConnectionResumed(connection), pos
    if kind == COUNTERS:
        packed, pos = _string(frame, pos)
        generation: int = _u32(frame, 2)
        return ListenerCounted(frame[1], generation, unpack_counters(packed)), pos
    assert kind in (SUBSCRIBE, UNSUBSCRIBE), f"unknown record {kind}"
    packet_id: int = _u16(frame, pos)
    count: int = _u32(frame, pos + 2)
    pos += 6
    if kind == UNSUBSCRIBE:
        filters: list[bytes] = []
        for _ in range(count):
            topic_filter, pos = _string(frame, pos)
            filters.append(topic_filter)
        return UnsubscribeReceived(connection, packet_id, filters), pos
    identifier: int = _u32(frame, pos)
    pos += 4
    requests: list[tuple[bytes, int]] = []
    for _ in range(count):
        topic_filter, pos = _string(frame, pos)
        requests.append((topic_filter, frame[pos]))
        pos += 1
    return SubscribeReceived(connection, packet_id, requests, identifier), pos


def _unpack_attach(frame: bytes, connection: int, pos: int) -> tuple[Event, int]:
    version = frame[pos]
    flags = frame[pos + 1]
    expiry_s: int = _u32(frame, pos + 2)
    receive_maximum: int = _u16(frame, pos + 6)
    packet_bytes_max: int = _u32(frame, pos + 8)
    client_id, pos = _string(frame, pos + 12)
    user_name, pos = _string(frame, pos)
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
    delay_s: int = _u32(frame, pos + 1)
    expiry_s: int = _u32(frame, pos + 5) if flags & EXPIRY_FLAG else -1
    topic, pos = _string(frame, pos + 9)
    payload: int = pos + 8 + _u32(frame, pos)
    end: int = payload + _u32(frame, pos + 4)
    will = Will(
        topic, frame[payload:end], frame[pos + 8 : payload], flags & 3, flags & RETAIN_FLAG != 0, delay_s, expiry_s
    )
    return will, end


def _string(frame: bytes, pos: int) -> tuple[bytes, int]:
    end: int = pos + 2 + _u16(frame, pos)
    return frame[pos + 2 : end], end


@final
class OwnerBatch:
    """Records of the owner for one listener, in order, cut into frames of FRAME_BYTES_MAX or little more."""

    __slots__ = ("_full", "_full_bytes", "_writer")

    def __init__(self) -> None:
        self._writer = BytesWriter()
        self._full: list[bytes] = []
        self._full_bytes: int = 0

    def size(self) -> int:
        """Return the bytes of records in the batch."""
        return self._full_bytes + len(self._writer)

    def records(self) -> list[bytes]:
        """Return the records without headers, a frame's worth each."""
        return [*self._full, self._writer.getvalue()] if len(self._writer) else self._full

    def connack(self, connection: int, reason: int, session_present: bool, window: int = 0) -> None:
        """Append a CONNACK; `window` is how many QoS 1 and 2 deliveries the client may have under way."""
        writer = self._writer
        _put_u8(writer, CONNACK)
        _put_u32(writer, connection & 0xFFFFFFFF)
        _put_u8(writer, reason)
        _put_u8(writer, 1 if session_present else 0)
        _put_u16(writer, window)

    def deliver_head(self, message: Message, identifiers: bytes, expiry_s: i64, targets: i64) -> None:
        """Begin a DELIVER; `targets` calls of `target` and one of `deliver_body` must follow.

        `identifiers` are properties that go in front of the message's own.
        """
        writer = self._writer
        _put_u8(writer, DELIVER)
        _put_u8(writer, EXPIRY_FLAG if expiry_s >= 0 else 0)
        _put_u16(writer, len(message.topic))
        _put_u32(writer, len(message.properties) + len(identifiers))
        _put_u32(writer, len(message.payload))
        _put_u32(writer, expiry_s if expiry_s >= 0 else 0)
        _put_u32(writer, targets)

    def target(self, connection: i64, packet_id: i64, flags: i64) -> None:
        """Append one target of the DELIVER that was begun."""
        pack_target(self._writer, connection, packet_id, flags)

    def targets(self, packed: bytes) -> None:
        """Append many packed targets of the DELIVER that was begun."""
        self._writer.write(packed)

    def deliver_body(self, message: Message, identifiers: bytes) -> None:
        """Finish the DELIVER that was begun."""
        writer = self._writer
        writer.write(message.topic)
        if identifiers:
            writer.write(identifiers)
        if message.properties:
            writer.write(message.properties)
        writer.write(message.payload)
        if len(writer) >= FRAME_BYTES_MAX:
            self._full.append(writer.getvalue())
            self._full_bytes += len(writer)
            self._writer = BytesWriter()

    def acknowledge(self, kind: i64, connection: i64, packet_id: i64, reason: i64) -> None:
        """Append a PUBACK, PUBREC, PUBREL or PUBCOMP."""
        writer = self._writer
        _put_u8(writer, kind)
        _put_u32(writer, connection & 0xFFFFFFFF)
        _put_u16(writer, packet_id)
        _put_u8(writer, reason)

    def suback(self, connection: int, packet_id: int, reasons: list[int]) -> None:
        """Append a SUBACK."""
        self._answer(SUBACK, connection, packet_id, reasons)

    def unsuback(self, connection: int, packet_id: int, reasons: list[int]) -> None:
        """Append an UNSUBACK."""
        self._answer(UNSUBACK, connection, packet_id, reasons)

    def _answer(self, kind: int, connection: int, packet_id: int, reasons: list[int]) -> None:
        writer = self._writer
        _put_u8(writer, kind)
        _put_u32(writer, connection & 0xFFFFFFFF)
        _put_u16(writer, packet_id)
        _put_u32(writer, len(reasons))
        for reason in reasons:
            _put_u8(writer, reason)

    def close(self, connection: int, reason: int) -> None:
        """Append a CLOSE: the listener says DISCONNECT with the reason where the version has one."""
        writer = self._writer
        _put_u8(writer, CLOSE)
        _put_u32(writer, connection & 0xFFFFFFFF)
        _put_u8(writer, reason)


def owner_frame(owner_generation: int, generation: int, consumed_bytes: int, records: bytes) -> bytes:
    """Return a frame of the owner for one listener."""
    writer = BytesWriter()
    _put_u8(writer, RECORD_VERSION)
    _put_u32(writer, owner_generation)
    _put_u32(writer, generation)
    _put_u32(writer, consumed_bytes)
    writer.write(records)
    return writer.getvalue()


@final
class OwnerHeader:
    """The header of an owner's frame."""

    __slots__ = ("consumed_bytes", "generation", "owner_generation")

    def __init__(self, frame: bytes) -> None:
        assert frame[0] == RECORD_VERSION, f"record version {frame[0]}"
        self.owner_generation: int = _u32(frame, 1)
        self.generation: int = _u32(frame, 5)
        self.consumed_bytes: int = _u32(frame, 9)


@mypyc_attr(acyclic=True)
class OwnerRecord:
    """Base of what a listener is told about its connections."""

    __slots__ = ()


@mypyc_attr(acyclic=True)
@final
class Deliver(OwnerRecord):
    """One message for many connections; `target(i)` says which. `expiry_s` is -1 for never."""

    __slots__ = ("count", "expiry_s", "payload", "properties", "targets", "topic")

    def __init__(self, topic: bytes, properties: bytes, payload: bytes, expiry_s: int, targets: bytes) -> None:
        self.topic = topic
        self.properties = properties
        self.payload = payload
        self.expiry_s = expiry_s
        self.targets = targets
        self.count: int = len(targets) // TARGET_BYTES

    def target(self, index: i64) -> tuple[i64, i64, i64]:
        """Return (connection, packet id, flags) of the target at `index`."""
        pos = index * TARGET_BYTES
        return _u32(self.targets, pos), _u16(self.targets, pos + 4), _u16(self.targets, pos + 6)


@mypyc_attr(acyclic=True)
@final
class Answer(OwnerRecord):
    """A CONNACK, CLOSE or acknowledgement for one connection, by `kind`."""

    __slots__ = ("connection", "kind", "packet_id", "reason", "reasons", "session_present", "window")

    def __init__(self, kind: int, connection: int, packet_id: int, reason: int) -> None:
        self.kind = kind
        self.connection = connection
        self.packet_id = packet_id
        self.reason = reason
        self.reasons: bytes = b""
        self.session_present = False
        self.window: int = 0


def unpack_owner_records(frame: bytes, start: int = OWNER_HEADER_BYTES) -> list[OwnerRecord]:
    """Return the records of an owner's frame, in order."""
    records: list[OwnerRecord] = []
    pos: i64 = start
    end: i64 = len(frame)
    while pos < end:
        kind: i64 = frame[pos]
        if kind == DELIVER:
            targets: i64 = pos + 20
            topic: i64 = targets + _u32(frame, pos + 16) * TARGET_BYTES
            properties: i64 = topic + _u16(frame, pos + 2)
            payload: i64 = properties + _u32(frame, pos + 4)
            payload_end: i64 = payload + _u32(frame, pos + 8)
            flags: i64 = frame[pos + 1]
            expiry_s: i64 = _u32(frame, pos + 12) if flags & EXPIRY_FLAG else -1
            records.append(
                Deliver(
                    frame[topic:properties],
                    frame[properties:payload] if payload > properties else b"",
                    frame[payload:payload_end],
                    int(expiry_s),
                    frame[targets:topic],
                )
            )
            pos = payload_end
        elif PUBACK <= kind <= PUBCOMP:
            connection: i64 = _u32(frame, pos + 1)
            packet_id: i64 = _u16(frame, pos + 5)
            records.append(Answer(int(kind), int(connection), int(packet_id), frame[pos + 7]))
            pos += 8
        else:
            answer, next_pos = _unpack_answer(frame, int(kind), int(pos))
            records.append(answer)
            pos = next_pos
    assert pos == end, "a record runs over the end of its frame"
    return records


def _unpack_answer(frame: bytes, kind: int, pos: int) -> tuple[Answer, int]:
    connection: int = _u32(frame, pos + 1)
    pos += 5
    if kind == CONNACK:
        answer = Answer(CONNACK, connection, 0, frame[pos])
        answer.session_present = frame[pos + 1] != 0
        answer.window = _u16(frame, pos + 2)
        return answer, pos + 4
    if kind == CLOSE:
        return Answer(CLOSE, connection, 0, frame[pos]), pos + 1
    assert kind in (SUBACK, UNSUBACK), f"unknown record {kind}"
    packet_id: int = _u16(frame, pos)
    count: int = _u32(frame, pos + 2)
    answer = Answer(kind, connection, packet_id, 0)
    answer.reasons = frame[pos + 6 : pos + 6 + count]
    return answer, pos + 6 + count
