"""Frames: the wire format between nodes.

Owns how each frame looks. It knows nothing of who sends what when. Every frame is one ZeroMQ frame and is packed by
nothing but this module: no pickle, no text.

Grammar
-------
Integers are big-endian; text and bytes16 are a u16 length and as many bytes; a pair is text name, 16 bytes store_id.

    frame      = u8 version (FRAME_VERSION), u8 type, body
    member     = pair, u64 incarnation, u8 state, text address
    members    = u32 count, member*, u32 count, removed pair*
    wish       = u8 flags (1 wanted, 2 persistent), bytes16 topic filter

    HELLO             pair, u64 incarnation, u64 session, u64 loop counter, bytes16 cluster id, text address,
                      u8 oldest, u8 newest mesh version, u8 flags (1 automatic, 2 clustered),
                      u64 interest incarnation, u64 interest version, u64 interest checksum
    WELCOME           bytes16 cluster id, members, u32 count, text name of a running member*
    REFUSED           u8 reason (Refusal), text
    HEARTBEAT         u64 session, u64 loop counter, u64 membership digest,
                      u64 interest incarnation, u64 interest version, u64 interest checksum,
                      u64 version of your interest that I know, u64 your session, u64 position, u8 flags (1 link open)
    MEMBERS           members
    INTEREST_DELTA    u64 incarnation, u64 version, u32 count, wish*
    INTEREST_SNAPSHOT u64 incarnation, u64 version, u32 part, u8 flags (1 last), u32 count, wish*
    INTEREST_REQUEST  nothing
    POSITIONS         u64 your session, u64 position
    LINK_ACK          u64 your session, u64 position
    FORWARDS          u64 session, u64 number of the first, u32 count, u32 age in ms, u8 flags (1 start, 2 gap),
                      message*
    message           u8 flags (0-1 QoS, 4 retain, 8 expires, 16 foreign), u16 topic length, u16 publisher length,
                      u32 properties length, u32 payload length, [u32 remaining ms], [u64 number if QoS > 0],
                      [16 bytes origin if foreign], topic, publisher, properties, payload

A HELLO names the mesh versions that its sender speaks and keeps its layout for ever, so that two nodes too far apart
can say so. A frame of another version than FRAME_VERSION is a FrameError.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
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
from mypy_extensions import i16, i32, i64

from broker.core.message import ORIGIN_BYTES, Message
from cluster.membership import Member, State

FRAME_VERSION: Final = 1

# The mesh versions that this program speaks.
MESH_VERSION_OLDEST: Final = 1
MESH_VERSION_NEWEST: Final = 1

# A frame of several messages or wishes is at most this long; a single larger message has a frame to itself.
FRAME_BYTES_MAX: Final = 256 * 1024

# The largest MQTT packet has 256 MiB; what it says takes little more room here.
ANY_FRAME_BYTES_MAX: Final = 257 * 1024 * 1024

FORWARDS_HEADER_BYTES: Final = 27

_U64_MASK: Final = (1 << 64) - 1
_U64: Final = struct.Struct(">Q")
_HEARTBEAT: Final = struct.Struct(">QQQQQQQQQB")
_FORWARDS: Final = struct.Struct(">BBQQIIB")

_MESSAGE_RETAIN: Final = 4
_MESSAGE_EXPIRES: Final = 8
_MESSAGE_FOREIGN: Final = 16
_MESSAGE_FIXED_BYTES: Final = 13

# Room for a message's frame data beside its texts, for estimates.
MESSAGE_OVERHEAD_BYTES: Final = _MESSAGE_FIXED_BYTES + 4 + 8 + ORIGIN_BYTES


class FrameError(Exception):
    """The peer sent what this module can't read."""


class FrameType(IntEnum):
    """The second byte of every frame."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    HEARTBEAT = 4
    MEMBERS = 5
    INTEREST_DELTA = 6
    INTEREST_SNAPSHOT = 7
    INTEREST_REQUEST = 8
    POSITIONS = 9
    LINK_ACK = 10
    FORWARDS = 11


class Refusal(IntEnum):
    """Why a Hello was not answered by a Welcome."""

    # It can't be: the text says why.
    FINAL = 0
    # This node is itself about to join or has somebody about to join it; ask again.
    BUSY = 1
    # This node is alone and leaves founding a cluster to another; ask again.
    ALONE = 2


@dataclass(slots=True, frozen=True)
class Hello:
    """Who I am: the first frame on every control connection, and the only one on a join connection."""

    name: str
    store_id: bytes
    incarnation: int
    session: int
    counter: int
    cluster_id: bytes
    address: str
    oldest: int
    newest: int
    automatic: bool
    clustered: bool
    interest_incarnation: int
    interest_version: int
    interest_checksum: int


@dataclass(slots=True, frozen=True)
class Welcome:
    """You may adopt this cluster; the members that run, by the acceptor's own ears, in `running`."""

    cluster_id: bytes
    members: list[Member]
    removed: list[tuple[str, bytes]]
    running: list[str]


@dataclass(slots=True, frozen=True)
class Refused:
    """You may not, and why."""

    reason: int
    text: str


@dataclass(slots=True, frozen=True)
class Heartbeat:
    """I turn, and this is where I stand. `session` is mine, `your_session` and `position` are of what I received."""

    session: int
    counter: int
    membership_digest: int
    interest_incarnation: int
    interest_version: int
    interest_checksum: int
    known_interest_version: int
    your_session: int
    position: int
    link_open: bool


@dataclass(slots=True, frozen=True)
class Members:
    """Everything I know of the membership."""

    members: list[Member]
    removed: list[tuple[str, bytes]]


@dataclass(slots=True, frozen=True)
class Wish:
    """A node's wish for a filter."""

    topic_filter: bytes
    wanted: bool
    persistent: bool


@dataclass(slots=True, frozen=True)
class InterestDelta:
    """Changes that lead from the version before to `version`."""

    incarnation: int
    version: int
    wishes: list[Wish]


@dataclass(slots=True, frozen=True)
class InterestSnapshot:
    """One part of all wishes at `version`; parts count from 0."""

    incarnation: int
    version: int
    part: int
    last: bool
    wishes: list[Wish]


@dataclass(slots=True, frozen=True)
class Position:
    """What I have of your stream; a POSITIONS frame asks for what follows, a LINK_ACK only acknowledges."""

    session: int
    position: int


@final
class Forwards:
    """The header of a FORWARDS frame; `messages` reads the rest."""

    __slots__ = ("age_ms", "count", "first", "frame", "gap", "session", "start")

    def __init__(self, frame: bytes) -> None:
        if len(frame) < FORWARDS_HEADER_BYTES:
            raise FrameError("short FORWARDS frame")
        self.frame = frame
        _, _, session, first, count, age_ms, flags = _FORWARDS.unpack_from(frame)
        self.session: int = session
        self.first: int = first
        self.count: int = count
        self.age_ms: int = age_ms
        self.start: bool = flags & 1 != 0
        self.gap: bool = flags & 2 != 0

    def messages(self, sender: bytes, now: float) -> list[Message]:
        """Unpack every message; `sender` is the store id that is the origin where none is given."""
        frame = self.frame
        end: i64 = len(frame)
        position: i64 = FORWARDS_HEADER_BYTES
        found: list[Message] = []
        for _ in range(self.count):
            if end - position < _MESSAGE_FIXED_BYTES:
                raise FrameError("short message")
            flags: i64 = frame[position]
            topic_length: i64 = i64(read_i16_be(frame, position + 1)) & 0xFFFF
            publisher_length: i64 = i64(read_i16_be(frame, position + 3)) & 0xFFFF
            properties_length: i64 = i64(read_i32_be(frame, position + 5)) & 0xFFFFFFFF
            payload_length: i64 = i64(read_i32_be(frame, position + 9)) & 0xFFFFFFFF
            position += _MESSAGE_FIXED_BYTES
            texts: i64 = topic_length + publisher_length + properties_length + payload_length
            if end - position < texts:
                raise FrameError("short message")
            expires_at: float = 0.0
            if flags & _MESSAGE_EXPIRES:
                if end - position < 4:
                    raise FrameError("short message")
                remaining_ms: i64 = i64(read_i32_be(frame, position)) & 0xFFFFFFFF
                # 0.0 means never; what has expired on the way expired just now.
                expires_at = max(now + (int(remaining_ms) - self.age_ms) / 1000.0, 1e-6)
                position += 4
            qos: i64 = flags & 3
            number: int = 0
            if qos:
                if end - position < 8:
                    raise FrameError("short message")
                number = int(read_i64_be(frame, position)) & _U64_MASK
                position += 8
            origin = sender
            if flags & _MESSAGE_FOREIGN:
                origin = frame[position : position + ORIGIN_BYTES]
                position += ORIGIN_BYTES
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
            found.append(Message(topic, payload, properties, qos, retain, expires_at, publisher, origin, number))
        if position != end:
            raise FrameError("FORWARDS frame with something behind its messages")
        return found


def pack_message(writer: BytesWriter, message: Message, publisher: bytes, sender: bytes, now: float) -> None:
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
    writer.append(flags)
    size: i64 = len(topic)
    write_i16_be(writer, i16(size - 0x10000 if size >= 0x8000 else size))
    size = len(publisher)
    write_i16_be(writer, i16(size - 0x10000 if size >= 0x8000 else size))
    # MQTT packets end at 256 MiB: these lengths fit a signed 32-bit number.
    write_i32_be(writer, len(properties))
    write_i32_be(writer, len(payload))
    if expires_at != 0.0:
        remaining_ms: i64 = int(min(max(expires_at - now, 0.0) * 1000.0, 4294967295.0))
        write_i32_be(writer, i32(remaining_ms - 0x100000000 if remaining_ms >= 0x80000000 else remaining_ms))
    if qos:
        write_i64_be(writer, message.number)
    if foreign:
        writer.write(message.origin)
    writer.write(topic)
    writer.write(publisher)
    writer.write(properties)
    writer.write(payload)


def pack_forwards(session: int, first: int, count: int, age_ms: int, start: bool, gap: bool, body: bytes) -> bytes:
    """Pack a FORWARDS frame around messages that `pack_message` wrote."""
    flags = (1 if start else 0) | (2 if gap else 0)
    header = _FORWARDS.pack(FRAME_VERSION, int(FrameType.FORWARDS), session, first, count, age_ms, flags)
    return header + body


@final
class Reader:
    """Reads a frame from front to back; a frame that ends too early is a FrameError."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    def take(self, size: int) -> bytes:
        """Read `size` bytes."""
        start = self._position
        if len(self._data) - start < size:
            raise FrameError("short frame")
        self._position = start + size
        return self._data[start : start + size]

    def u8(self) -> int:
        """Read a u8."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Read a u16."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Read a u32."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Read a u64."""
        return int.from_bytes(self.take(8), "big")

    def bytes16(self) -> bytes:
        """Read a u16 length and as many bytes."""
        return self.take(self.u16())

    def text(self) -> str:
        """Read a u16 length and as many bytes of UTF-8."""
        try:
            return self.bytes16().decode()
        except UnicodeDecodeError:
            raise FrameError("text that is not UTF-8") from None

    def end(self) -> None:
        """Refuse anything left."""
        if self._position != len(self._data):
            raise FrameError("frame with something behind its end")


def frame_type(frame: bytes) -> int:
    """Return the type of a frame of our version."""
    if len(frame) < 2:
        raise FrameError("short frame")
    if frame[0] != FRAME_VERSION:
        raise FrameError(f"frame version {frame[0]}, this program speaks version {FRAME_VERSION}")
    return frame[1]


def _head(kind: FrameType) -> bytearray:
    return bytearray((FRAME_VERSION, int(kind)))


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _bytes16(value: bytes) -> bytes:
    return _u16(len(value)) + value


def _text(value: str) -> bytes:
    return _bytes16(value.encode())


def _body(frame: bytes, kind: FrameType) -> Reader:
    if frame_type(frame) != kind:
        raise FrameError(f"frame type {frame[1]} where {kind.name} was expected")
    return Reader(frame, 2)


def pack_hello(hello: Hello) -> bytes:
    """Pack a HELLO frame."""
    frame = _head(FrameType.HELLO)
    frame += _text(hello.name) + hello.store_id
    frame += _u64(hello.incarnation) + _u64(hello.session) + _u64(hello.counter)
    frame += _bytes16(hello.cluster_id) + _text(hello.address)
    frame += bytes((hello.oldest, hello.newest, (1 if hello.automatic else 0) | (2 if hello.clustered else 0)))
    frame += _u64(hello.interest_incarnation) + _u64(hello.interest_version) + _u64(hello.interest_checksum)
    return bytes(frame)


def unpack_hello(frame: bytes) -> Hello:
    """Unpack a HELLO frame. Of a sender with a newer version only the layout up to here is read."""
    if len(frame) < 2 or frame[1] != FrameType.HELLO:
        raise FrameError("no HELLO frame")
    reader = Reader(frame, 2)
    name = reader.text()
    store_id = reader.take(ORIGIN_BYTES)
    incarnation = reader.u64()
    session = reader.u64()
    counter = reader.u64()
    cluster_id = reader.bytes16()
    address = reader.text()
    oldest = reader.u8()
    newest = reader.u8()
    flags = reader.u8()
    interest_incarnation = reader.u64()
    interest_version = reader.u64()
    interest_checksum = reader.u64()
    if frame[0] == FRAME_VERSION:
        reader.end()
    return Hello(
        name,
        store_id,
        incarnation,
        session,
        counter,
        cluster_id,
        address,
        oldest,
        newest,
        flags & 1 != 0,
        flags & 2 != 0,
        interest_incarnation,
        interest_version,
        interest_checksum,
    )


def pack_member(member: Member) -> bytes:
    """Pack one member, for a frame or for the store."""
    return (
        _text(member.name)
        + member.store_id
        + _u64(member.incarnation)
        + bytes((int(member.state),))
        + _text(member.address)
    )


def read_member(reader: Reader) -> Member:
    """Read what `pack_member` packed."""
    name = reader.text()
    store_id = reader.take(ORIGIN_BYTES)
    incarnation = reader.u64()
    state = reader.u8()
    if state > State.LEFT:
        raise FrameError(f"unknown member state {state}")
    return Member(name, store_id, incarnation, reader.text(), State(state))


def _pack_members(members: list[Member], removed: list[tuple[str, bytes]]) -> bytes:
    packed = bytearray(_u32(len(members)))
    for member in members:
        packed += pack_member(member)
    packed += _u32(len(removed))
    for name, store_id in removed:
        packed += _text(name) + store_id
    return bytes(packed)


def _read_members(reader: Reader) -> tuple[list[Member], list[tuple[str, bytes]]]:
    members = []
    for _ in range(reader.u32()):
        members.append(read_member(reader))
    removed = []
    for _ in range(reader.u32()):
        name = reader.text()
        removed.append((name, reader.take(ORIGIN_BYTES)))
    return members, removed


def pack_welcome(welcome: Welcome) -> bytes:
    """Pack a WELCOME frame."""
    frame = _head(FrameType.WELCOME)
    frame += _bytes16(welcome.cluster_id) + _pack_members(welcome.members, welcome.removed)
    frame += _u32(len(welcome.running))
    for name in welcome.running:
        frame += _text(name)
    return bytes(frame)


def unpack_welcome(frame: bytes) -> Welcome:
    """Unpack a WELCOME frame."""
    reader = _body(frame, FrameType.WELCOME)
    cluster_id = reader.bytes16()
    members, removed = _read_members(reader)
    running = []
    for _ in range(reader.u32()):
        running.append(reader.text())
    reader.end()
    return Welcome(cluster_id, members, removed, running)


def pack_refused(reason: Refusal, text: str) -> bytes:
    """Pack a REFUSED frame."""
    return bytes(_head(FrameType.REFUSED) + bytes((int(reason),)) + _text(text))


def unpack_refused(frame: bytes) -> Refused:
    """Unpack a REFUSED frame."""
    reader = _body(frame, FrameType.REFUSED)
    reason = reader.u8()
    text = reader.text()
    reader.end()
    return Refused(reason, text)


def pack_members(members: list[Member], removed: list[tuple[str, bytes]]) -> bytes:
    """Pack a MEMBERS frame."""
    return bytes(_head(FrameType.MEMBERS) + _pack_members(members, removed))


def unpack_members(frame: bytes) -> Members:
    """Unpack a MEMBERS frame."""
    reader = _body(frame, FrameType.MEMBERS)
    members, removed = _read_members(reader)
    reader.end()
    return Members(members, removed)


def pack_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Pack a HEARTBEAT frame."""
    return bytes(_head(FrameType.HEARTBEAT)) + _HEARTBEAT.pack(
        heartbeat.session,
        heartbeat.counter,
        heartbeat.membership_digest,
        heartbeat.interest_incarnation,
        heartbeat.interest_version,
        heartbeat.interest_checksum,
        heartbeat.known_interest_version,
        heartbeat.your_session,
        heartbeat.position,
        1 if heartbeat.link_open else 0,
    )


def unpack_heartbeat(frame: bytes) -> Heartbeat:
    """Unpack a HEARTBEAT frame."""
    reader = _body(frame, FrameType.HEARTBEAT)
    fields = _HEARTBEAT.unpack(reader.take(_HEARTBEAT.size))
    reader.end()
    return Heartbeat(
        fields[0],
        fields[1],
        fields[2],
        fields[3],
        fields[4],
        fields[5],
        fields[6],
        fields[7],
        fields[8],
        fields[9] & 1 != 0,
    )


def pack_wish(topic_filter: bytes, wanted: bool, persistent: bool) -> bytes:
    """Pack one wish."""
    return bytes(((1 if wanted else 0) | (2 if persistent else 0),)) + _bytes16(topic_filter)


def _read_wishes(reader: Reader) -> list[Wish]:
    wishes = []
    for _ in range(reader.u32()):
        flags = reader.u8()
        wishes.append(Wish(reader.bytes16(), flags & 1 != 0, flags & 2 != 0))
    return wishes


def pack_interest_delta(incarnation: int, version: int, wishes: list[bytes]) -> bytes:
    """Pack an INTEREST_DELTA frame of packed wishes."""
    frame = _head(FrameType.INTEREST_DELTA)
    frame += _u64(incarnation) + _u64(version) + _u32(len(wishes))
    return bytes(frame) + b"".join(wishes)


def unpack_interest_delta(frame: bytes) -> InterestDelta:
    """Unpack an INTEREST_DELTA frame."""
    reader = _body(frame, FrameType.INTEREST_DELTA)
    incarnation = reader.u64()
    version = reader.u64()
    wishes = _read_wishes(reader)
    reader.end()
    return InterestDelta(incarnation, version, wishes)


def pack_interest_snapshot(incarnation: int, version: int, part: int, last: bool, wishes: list[bytes]) -> bytes:
    """Pack an INTEREST_SNAPSHOT frame of packed wishes."""
    frame = _head(FrameType.INTEREST_SNAPSHOT)
    frame += _u64(incarnation) + _u64(version) + _u32(part) + bytes((1 if last else 0,)) + _u32(len(wishes))
    return bytes(frame) + b"".join(wishes)


def unpack_interest_snapshot(frame: bytes) -> InterestSnapshot:
    """Unpack an INTEREST_SNAPSHOT frame."""
    reader = _body(frame, FrameType.INTEREST_SNAPSHOT)
    incarnation = reader.u64()
    version = reader.u64()
    part = reader.u32()
    last = reader.u8() & 1 != 0
    wishes = _read_wishes(reader)
    reader.end()
    return InterestSnapshot(incarnation, version, part, last, wishes)


def pack_interest_request() -> bytes:
    """Pack an INTEREST_REQUEST frame."""
    return bytes(_head(FrameType.INTEREST_REQUEST))


def pack_positions(session: int, position: int) -> bytes:
    """Pack a POSITIONS frame."""
    return bytes(_head(FrameType.POSITIONS)) + _u64(session) + _u64(position)


def pack_link_ack(session: int, position: int) -> bytes:
    """Pack a LINK_ACK frame."""
    return bytes(_head(FrameType.LINK_ACK)) + _u64(session) + _u64(position)


def unpack_position(frame: bytes) -> Position:
    """Unpack a POSITIONS or a LINK_ACK frame."""
    frame_type(frame)
    reader = Reader(frame, 2)
    session = reader.u64()
    position = reader.u64()
    reader.end()
    return Position(session, position)
