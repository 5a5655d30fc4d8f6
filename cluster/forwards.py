"""Forwards: how messages look on their way to another node, the one frame that is hot.

Owns the packing of messages into the body of a FORWARDS frame and back. It knows nothing of who wants them or of the
stream that they are numbered in; what surrounds it is `frames`.

Grammar
-------
    FORWARDS          u64 session, number of the first, u32 count, u32 age in ms, u8 flags (1 start, 2 gap, 4 jump),
                      [number before the first if jump], (message | mark)*
    message           u8 flags (0-1 QoS, 4 retain, 8 expires, 16 foreign, 64 addressed), u16 topic length,
                      u16 publisher length, u32 properties length, u32 payload length, [u64 remaining ms],
                      [number if QoS > 0], [16 bytes origin if foreign], [address], topic, publisher, properties,
                      payload
    mark              u8 flags (32 mark, 64 durable), u32 length, body

An address says for which groups of the receiver a message is, or where it stood before (see `addressing`).
Numbers of a stream may be missing: what had them is gone for good. Within a frame they go on by one; a frame that does
not go on from the one before says by `jump` which number that ended with.

A mark is no message: it says something of the stream at its place between the messages, and this module does not know
what. With `durable` the receiver stores that it has it, as of a message with QoS > 0. One without a body says nothing:
it stands where a message was that is for another node now.
"""

import struct
from typing import Final, final

from librt.strings import (
    BytesWriter,
    read_i16_be,
    read_i32_be,
    read_i64_be,
    write_i16_be,
    write_i32_be,
    write_i64_be,
)
from mypy_extensions import i16, i64

from broker.core.message import ORIGIN_BYTES, Message
from cluster.addressing import NO_ADDRESS, Addressed, unpack_address
from cluster.frames import FRAME_VERSION, FrameType
from cluster.wire import NUMBER_MAX, FrameError

HEADER_BYTES: Final = 27
MARK_BYTES_MAX: Final = 64 * 1024

_START: Final = 1
_GAP: Final = 2
_JUMP: Final = 4
_U64_MASK: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct(">BBQQIIB")

_MESSAGE_RETAIN: Final = 4
_MESSAGE_EXPIRES: Final = 8
_MESSAGE_FOREIGN: Final = 16
_MESSAGE_ADDRESSED: Final = 64
_MARK: Final = 32
_MARK_DURABLE: Final = 64
_MARK_FIXED_BYTES: Final = 5
_MESSAGE_FIXED_BYTES: Final = 13
# An expiry interval has 32 bits of seconds; a message that comes in with the longest has that much left.
_REMAINING_MS_MAX: Final = 0xFFFFFFFF * 1000

_NO_GROUPS: Final[list[bytes]] = []

# Room for a message's frame data beside its texts, for estimates.
MESSAGE_OVERHEAD_BYTES: Final = _MESSAGE_FIXED_BYTES + 8 + 8 + ORIGIN_BYTES


@final
class Mark:
    """What a sender says in line with its messages: at most MARK_BYTES_MAX, and the store id of who says it."""

    __slots__ = ("body", "durable", "sender")

    def __init__(self, body: bytes, durable: bool, sender: bytes) -> None:
        self.body = body
        self.durable = durable
        self.sender = sender


@final
class Forwards:
    """The header of a FORWARDS frame; `messages` reads the rest.

    `after` is the number that stands before the first in the stream.
    """

    __slots__ = ("after", "age_ms", "body", "count", "first", "frame", "gap", "session", "start")

    def __init__(self, frame: bytes) -> None:
        if len(frame) < HEADER_BYTES:
            raise FrameError("short FORWARDS frame")
        self.frame = frame
        _, _, session, first, count, age_ms, flags = _HEADER.unpack_from(frame)
        self.session: int = session
        if first > NUMBER_MAX:
            raise FrameError(f"{first} is out of range")
        self.first: int = first
        self.count: int = count
        self.age_ms: int = age_ms
        self.start: bool = flags & _START != 0
        self.gap: bool = flags & _GAP != 0
        self.after: int = first - 1
        self.body: int = HEADER_BYTES
        if flags & _JUMP:
            if len(frame) < HEADER_BYTES + 8:
                raise FrameError("short FORWARDS frame")
            self.after = int.from_bytes(frame[HEADER_BYTES : HEADER_BYTES + 8], "big")
            if self.after >= first:
                raise FrameError("a FORWARDS frame that jumps back")
            self.body = HEADER_BYTES + 8

    def messages(self, sender: bytes, now: float) -> list[Message | Addressed | Mark]:
        """Unpack every message and mark; `sender` is the store id that is the origin where none is given."""
        frame = self.frame
        end: i64 = len(frame)
        position: i64 = self.body
        found: list[Message | Addressed | Mark] = []
        for _ in range(self.count):
            room: i64 = end - position
            if room < _MESSAGE_FIXED_BYTES and (room < _MARK_FIXED_BYTES or not frame[position] & _MARK):
                raise FrameError("short message")
            flags: i64 = frame[position]
            if flags & _MARK:
                body: i64 = position + _MARK_FIXED_BYTES
                position = body + (i64(read_i32_be(frame, position + 1)) & 0xFFFFFFFF)
                if position > end or position - body > MARK_BYTES_MAX:
                    raise FrameError("malformed mark")
                found.append(Mark(frame[body:position], flags & _MARK_DURABLE != 0, sender))
                continue
            topic_length: i64 = i64(read_i16_be(frame, position + 1)) & 0xFFFF
            publisher_length: i64 = i64(read_i16_be(frame, position + 3)) & 0xFFFF
            properties_length: i64 = i64(read_i32_be(frame, position + 5)) & 0xFFFFFFFF
            payload_length: i64 = i64(read_i32_be(frame, position + 9)) & 0xFFFFFFFF
            position += _MESSAGE_FIXED_BYTES
            texts: i64 = topic_length + publisher_length + properties_length + payload_length
            if end - position < texts:
                raise FrameError("short message")
            if topic_length == 0:
                raise FrameError("message without a topic")
            expires_at: float = 0.0
            if flags & _MESSAGE_EXPIRES:
                if end - position < 8:
                    raise FrameError("short message")
                remaining_ms: i64 = read_i64_be(frame, position)
                if not 0 <= remaining_ms <= _REMAINING_MS_MAX:
                    raise FrameError("a message that stays for longer than MQTT lets it")
                # 0.0 means never; what has expired on the way expired just now.
                expires_at = max(now + (int(remaining_ms) - self.age_ms) / 1000.0, 1e-6)
                position += 8
            qos: i64 = flags & 3
            number: int = 0
            if qos:
                if end - position < 8:
                    raise FrameError("short message")
                number = int(read_i64_be(frame, position)) & _U64_MASK
                if number > NUMBER_MAX:
                    raise FrameError(f"{number} is out of range")
                position += 8
            origin = sender
            if flags & _MESSAGE_FOREIGN:
                origin = frame[position : position + ORIGIN_BYTES]
                position += ORIGIN_BYTES
            groups = _NO_GROUPS
            plain = True
            waited = False
            stood: tuple[bytes, int] | None = None
            if flags & _MESSAGE_ADDRESSED:
                groups, plain, waited, stood, place = unpack_address(frame, int(position))
                position = place
            if end - position < texts or qos == 3:
                raise FrameError("malformed message")
            topic = frame[position : position + topic_length]
            position += topic_length
            try:
                publisher = frame[position : position + publisher_length].decode()
            except UnicodeDecodeError:
                raise FrameError("malformed client id") from None
            position += publisher_length
            properties = frame[position : position + properties_length]
            position += properties_length
            payload = frame[position : position + payload_length]
            position += payload_length
            retain = flags & _MESSAGE_RETAIN != 0
            message = Message(topic, payload, properties, qos, retain, expires_at, publisher, origin, number)
            found.append(Addressed(message, groups, plain, waited, stood) if flags & _MESSAGE_ADDRESSED else message)
        if position != end:
            raise FrameError("FORWARDS frame with something behind its messages")
        return found


def pack_message(
    writer: BytesWriter, message: Message, publisher: bytes, sender: bytes, now: float, address: bytes = NO_ADDRESS
) -> None:
    """Append a message to the body of a FORWARDS frame; `publisher` is its publisher in UTF-8."""
    topic = message.topic
    properties = message.properties
    payload = message.payload
    qos: i64 = message.qos
    flags: i64 = qos
    if message.retain:
        flags |= _MESSAGE_RETAIN
    expires_at = message.expires_at
    if expires_at != 0.0:
        flags |= _MESSAGE_EXPIRES
    foreign = qos != 0 and message.origin != sender
    if foreign:
        flags |= _MESSAGE_FOREIGN
    if address:
        flags |= _MESSAGE_ADDRESSED
    writer.append(flags)
    size: i64 = len(topic)
    write_i16_be(writer, i16(size - 0x10000 if size >= 0x8000 else size))
    size = len(publisher)
    write_i16_be(writer, i16(size - 0x10000 if size >= 0x8000 else size))
    # MQTT packets end at 256 MiB: these lengths fit a signed 32-bit number.
    write_i32_be(writer, len(properties))
    write_i32_be(writer, len(payload))
    if expires_at != 0.0:
        # [MQTT-3.3.2-6] To the millisecond, and all of it: an interval is up to 136 years.
        remaining_ms: i64 = int(min(max(expires_at - now, 0.0) * 1000.0, _REMAINING_MS_MAX))
        write_i64_be(writer, remaining_ms)
    if qos:
        write_i64_be(writer, message.number)
    if foreign:
        writer.write(message.origin)
    if address:
        writer.write(address)
    writer.write(topic)
    writer.write(publisher)
    writer.write(properties)
    writer.write(payload)


def pack_mark(writer: BytesWriter, mark: Mark) -> None:
    """Append a mark to the body of a FORWARDS frame."""
    assert len(mark.body) <= MARK_BYTES_MAX
    writer.append(_MARK | _MARK_DURABLE if mark.durable else _MARK)
    write_i32_be(writer, len(mark.body))
    writer.write(mark.body)


def pack_forwards(
    session: int, first: int, count: int, age_ms: int, start: bool, gap: bool, body: bytes, after: int = -1
) -> bytes:
    """Pack a FORWARDS frame around what `pack_message` and `pack_mark` wrote; `after` < 0 is the number before it."""
    flags = (_START if start else 0) | (_GAP if gap else 0)
    if after < 0 or after == first - 1:
        return _HEADER.pack(FRAME_VERSION, int(FrameType.FORWARDS), session, first, count, age_ms, flags) + body
    header = _HEADER.pack(FRAME_VERSION, int(FrameType.FORWARDS), session, first, count, age_ms, flags | _JUMP)
    return header + after.to_bytes(8, "big") + body
