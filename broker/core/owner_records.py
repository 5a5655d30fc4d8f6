"""Records of the queue-owner for a listener: packed by the owner, unpacked by the listener.

Grammar
-------
See `records` for what frames of both directions share.

    header: version u8, owner generation u32, generation u32, consumed u32
      CONNACK     2  connection u32, reason u8, session present u8, window u16, text u16, then the text in UTF-8
      DELIVER     3  flags u8 (8 expiry), topic u16, properties u32, payload u32, expiry u32, targets u32,
                     then targets x (connection u32, packet id u16, flags u16 (QoS, 4 retain, 8 DUP)), topic,
                     properties, payload
      PUBACK      4  connection u32, packet id u16, reason u8
      PUBREC      5  as PUBACK
      PUBREL      6  as PUBACK
      PUBCOMP     7  as PUBACK
      SUBACK      9  connection u32, packet id u16, count u32, then count reasons u8
      UNSUBACK    11 as SUBACK
      CLOSE       14 connection u32, reason u8, reference u16, then the reference in UTF-8
"""

from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64, mypyc_attr

from broker.core.message import Message
from broker.core.records import (
    CLOSE,
    CONNACK,
    DELIVER,
    EXPIRY_FLAG,
    PUBACK,
    PUBCOMP,
    RECORD_VERSION,
    SUBACK,
    UNSUBACK,
    put_string,
    put_u8,
    put_u16,
    put_u32,
    string_at,
    u16_at,
    u32_at,
)

FRAME_BYTES_MAX: Final = 256 * 1024
OWNER_HEADER_BYTES: Final = 13
TARGET_BYTES: Final = 8


def pack_target(writer: BytesWriter, connection: i64, packet_id: i64, flags: i64) -> None:
    """Append one target of a DELIVER: the listener's own connection number, packet id, QoS and DUP."""
    put_u32(writer, connection & 0xFFFFFFFF)
    put_u16(writer, packet_id)
    put_u16(writer, flags)


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

    def connack(self, connection: int, reason: int, session_present: bool, window: int = 0, text: str = "") -> None:
        """Append a CONNACK; `window` is how many QoS 1 and 2 deliveries the client may have under way.

        `text` is why it is refused, for a client whose version of MQTT has room for it.
        """
        writer = self._writer
        put_u8(writer, CONNACK)
        put_u32(writer, connection & 0xFFFFFFFF)
        put_u8(writer, reason)
        put_u8(writer, 1 if session_present else 0)
        put_u16(writer, window)
        put_string(writer, text.encode())

    def deliver_head(self, message: Message, identifiers: bytes, expiry_s: i64, targets: i64) -> None:
        """Begin a DELIVER; `targets` calls of `target` and one of `deliver_body` must follow.

        `identifiers` are properties that go in front of the message's own.
        """
        writer = self._writer
        put_u8(writer, DELIVER)
        put_u8(writer, EXPIRY_FLAG if expiry_s >= 0 else 0)
        put_u16(writer, len(message.topic))
        put_u32(writer, len(message.properties) + len(identifiers))
        put_u32(writer, len(message.payload))
        put_u32(writer, expiry_s if expiry_s >= 0 else 0)
        put_u32(writer, targets)

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
        put_u8(writer, kind)
        put_u32(writer, connection & 0xFFFFFFFF)
        put_u16(writer, packet_id)
        put_u8(writer, reason)

    def suback(self, connection: int, packet_id: int, reasons: list[int]) -> None:
        """Append a SUBACK."""
        self._answer(SUBACK, connection, packet_id, reasons)

    def unsuback(self, connection: int, packet_id: int, reasons: list[int]) -> None:
        """Append an UNSUBACK."""
        self._answer(UNSUBACK, connection, packet_id, reasons)

    def _answer(self, kind: int, connection: int, packet_id: int, reasons: list[int]) -> None:
        writer = self._writer
        put_u8(writer, kind)
        put_u32(writer, connection & 0xFFFFFFFF)
        put_u16(writer, packet_id)
        put_u32(writer, len(reasons))
        for reason in reasons:
            put_u8(writer, reason)

    def close(self, connection: int, reason: int, reference: str = "") -> None:
        """Append a CLOSE: the listener says DISCONNECT with the reason where the version has one.

        `reference` is the server that the client is to use instead, where the version has room for it.
        """
        writer = self._writer
        put_u8(writer, CLOSE)
        put_u32(writer, connection & 0xFFFFFFFF)
        put_u8(writer, reason)
        put_string(writer, reference.encode())


def owner_frame(owner_generation: int, generation: int, consumed_bytes: int, records: bytes) -> bytes:
    """Return a frame of the owner for one listener."""
    writer = BytesWriter()
    put_u8(writer, RECORD_VERSION)
    put_u32(writer, owner_generation)
    put_u32(writer, generation)
    put_u32(writer, consumed_bytes)
    writer.write(records)
    return writer.getvalue()


@final
class OwnerHeader:
    """The header of an owner's frame."""

    __slots__ = ("consumed_bytes", "generation", "owner_generation")

    def __init__(self, frame: bytes) -> None:
        assert frame[0] == RECORD_VERSION, f"record version {frame[0]}"
        self.owner_generation: int = u32_at(frame, 1)
        self.generation: int = u32_at(frame, 5)
        self.consumed_bytes: int = u32_at(frame, 9)


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
        return u32_at(self.targets, pos), u16_at(self.targets, pos + 4), u16_at(self.targets, pos + 6)


@mypyc_attr(acyclic=True)
@final
class Answer(OwnerRecord):
    """A CONNACK, CLOSE or acknowledgement for one connection, by `kind`."""

    __slots__ = ("connection", "kind", "packet_id", "reason", "reasons", "session_present", "text", "window")

    def __init__(self, kind: int, connection: int, packet_id: int, reason: int) -> None:
        self.kind = kind
        self.connection = connection
        self.packet_id = packet_id
        self.reason = reason
        self.reasons: bytes = b""
        self.session_present = False
        self.text: str = ""
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
            topic: i64 = targets + u32_at(frame, pos + 16) * TARGET_BYTES
            properties: i64 = topic + u16_at(frame, pos + 2)
            payload: i64 = properties + u32_at(frame, pos + 4)
            payload_end: i64 = payload + u32_at(frame, pos + 8)
            flags: i64 = frame[pos + 1]
            expiry_s: i64 = u32_at(frame, pos + 12) if flags & EXPIRY_FLAG else -1
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
            connection: i64 = u32_at(frame, pos + 1)
            packet_id: i64 = u16_at(frame, pos + 5)
            records.append(Answer(int(kind), int(connection), int(packet_id), frame[pos + 7]))
            pos += 8
        else:
            answer, next_pos = _unpack_answer(frame, int(kind), int(pos))
            records.append(answer)
            pos = next_pos
    assert pos == end, "a record runs over the end of its frame"
    return records


def _unpack_answer(frame: bytes, kind: int, pos: int) -> tuple[Answer, int]:
    connection: int = u32_at(frame, pos + 1)
    pos += 5
    if kind == CONNACK:
        answer = Answer(CONNACK, connection, 0, frame[pos])
        answer.session_present = frame[pos + 1] != 0
        answer.window = u16_at(frame, pos + 2)
        text, pos = string_at(frame, pos + 4)
        answer.text = text.decode()
        return answer, pos
    if kind == CLOSE:
        answer = Answer(CLOSE, connection, 0, frame[pos])
        reference, pos = string_at(frame, pos + 1)
        answer.text = reference.decode()
        return answer, pos
    assert kind in (SUBACK, UNSUBACK), f"unknown record {kind}"
    packet_id: int = u16_at(frame, pos)
    count: int = u32_at(frame, pos + 2)
    answer = Answer(kind, connection, packet_id, 0)
    answer.reasons = frame[pos + 6 : pos + 6 + count]
    return answer, pos + 6 + count
