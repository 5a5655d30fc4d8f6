"""Frames: the wire format between nodes.

Owns how each frame looks. It knows nothing of who sends what when. Every frame is one ZeroMQ frame and is packed by
nothing but this module: no pickle, no text.

Grammar
-------
Integers, number, text and bytes16 are as in `wire`; a pair is text name, 16 bytes store_id.

    frame      = u8 version (FRAME_VERSION), u8 type, body
    member     = pair, number incarnation, u8 state, text address
    members    = u32 count, member*, u32 count, removed pair*
    wish       = u8 flags (1 wanted, 2 persistent), bytes16 topic filter

    HELLO             pair, number incarnation, u64 session, u64 loop counter, bytes16 cluster id, text address,
                      u8 oldest, u8 newest mesh version, u8 flags (1 automatic, 2 clustered),
                      u64 interest incarnation, u64 interest version, u64 interest checksum
    WELCOME           bytes16 cluster id, members, u32 count, text name of a running member*
    REFUSED           u8 reason (Refusal), text
    HEARTBEAT         u64 session, u64 loop counter, u64 membership digest,
                      u64 interest incarnation, u64 interest version, u64 interest checksum,
                      u64 version of your interest that I know, u64 your session, u64 position, u8 flags (1 link open)
    MEMBERS           members
    INTEREST_DELTA    u64 incarnation, number version, u32 count, wish*
    INTEREST_SNAPSHOT u64 incarnation, number version, u32 part, u8 flags (1 last), u32 count, wish*
    INTEREST_REQUEST  nothing
    POSITIONS         u64 your session, number position
    LINK_ACK          u64 your session, number position
    STOPPING          nothing
    FORWARDS          see `forwards`, which packs them: they are what is hot
    TURN_REQUEST, TURN_GRANT, TURN_RELEASE, TURN_SURVEY, TURNS_HELD: see `registration_frames`

A name is a node name and an address an address, as `wire` demands of them; a topic filter is what MQTT calls one.

A HELLO names the mesh versions that its sender speaks and keeps its layout for ever, so that two nodes too far apart
can say so. A frame of another version than FRAME_VERSION is a FrameError.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from broker.core.message import ORIGIN_BYTES
from broker.mqtt.reasons import ProtocolError
from broker.mqtt.topics import check_filter, unmounted
from cluster.membership import Member, State
from cluster.wire import FrameError, Reader, pack_bytes16, pack_text, pack_u32, pack_u64

FRAME_VERSION: Final = 1

# The mesh versions that this program speaks.
MESH_VERSION_OLDEST: Final = 1
MESH_VERSION_NEWEST: Final = 1

# A frame of several messages or wishes is at most this long; a single larger message has a frame to itself.
FRAME_BYTES_MAX: Final = 256 * 1024

# The largest MQTT packet has 256 MiB; what it says takes little more room here.
ANY_FRAME_BYTES_MAX: Final = 257 * 1024 * 1024

_HEARTBEAT: Final = struct.Struct(">QQQQQQQQQB")


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
    TURN_REQUEST = 20
    TURN_GRANT = 21
    TURN_RELEASE = 22
    TURN_SURVEY = 23
    TURNS_HELD = 24
    STOPPING = 30


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


def frame_type(frame: bytes) -> int:
    """Return the type of a frame of our version."""
    if len(frame) < 2:
        raise FrameError("short frame")
    if frame[0] != FRAME_VERSION:
        raise FrameError(f"frame version {frame[0]}, this program speaks version {FRAME_VERSION}")
    return frame[1]


def _head(kind: FrameType) -> bytearray:
    return bytearray((FRAME_VERSION, int(kind)))


def _body(frame: bytes, kind: FrameType) -> Reader:
    if frame_type(frame) != kind:
        raise FrameError(f"frame type {frame[1]} where {kind.name} was expected")
    return Reader(frame, 2)


def pack_hello(hello: Hello) -> bytes:
    """Pack a HELLO frame."""
    frame = _head(FrameType.HELLO)
    frame += pack_text(hello.name) + hello.store_id
    frame += pack_u64(hello.incarnation) + pack_u64(hello.session) + pack_u64(hello.counter)
    frame += pack_bytes16(hello.cluster_id) + pack_text(hello.address)
    frame += bytes((hello.oldest, hello.newest, (1 if hello.automatic else 0) | (2 if hello.clustered else 0)))
    frame += pack_u64(hello.interest_incarnation) + pack_u64(hello.interest_version) + pack_u64(hello.interest_checksum)
    return bytes(frame)


def unpack_hello(frame: bytes) -> Hello:
    """Unpack a HELLO frame. Of a sender with a newer version only the layout up to here is read."""
    if len(frame) < 2 or frame[1] != FrameType.HELLO:
        raise FrameError("no HELLO frame")
    reader = Reader(frame, 2)
    name = reader.node_name()
    store_id = reader.take(ORIGIN_BYTES)
    incarnation = reader.number()
    session = reader.u64()
    counter = reader.u64()
    cluster_id = reader.bytes16()
    address = reader.address()
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
        pack_text(member.name)
        + member.store_id
        + pack_u64(member.incarnation)
        + bytes((int(member.state),))
        + pack_text(member.address)
    )


def read_member(reader: Reader) -> Member:
    """Read what `pack_member` packed."""
    name = reader.node_name()
    store_id = reader.take(ORIGIN_BYTES)
    incarnation = reader.number()
    state = reader.u8()
    if state > State.LEFT:
        raise FrameError(f"unknown member state {state}")
    return Member(name, store_id, incarnation, reader.address(), State(state))


def _pack_members(members: list[Member], removed: list[tuple[str, bytes]]) -> bytes:
    packed = bytearray(pack_u32(len(members)))
    for member in members:
        packed += pack_member(member)
    packed += pack_u32(len(removed))
    for name, store_id in removed:
        packed += pack_text(name) + store_id
    return bytes(packed)


def _read_members(reader: Reader) -> tuple[list[Member], list[tuple[str, bytes]]]:
    members = []
    for _ in range(reader.u32()):
        members.append(read_member(reader))
    removed = []
    for _ in range(reader.u32()):
        name = reader.node_name()
        removed.append((name, reader.take(ORIGIN_BYTES)))
    return members, removed


def pack_welcome(welcome: Welcome) -> bytes:
    """Pack a WELCOME frame."""
    frame = _head(FrameType.WELCOME)
    frame += pack_bytes16(welcome.cluster_id) + _pack_members(welcome.members, welcome.removed)
    frame += pack_u32(len(welcome.running))
    for name in welcome.running:
        frame += pack_text(name)
    return bytes(frame)


def unpack_welcome(frame: bytes) -> Welcome:
    """Unpack a WELCOME frame."""
    reader = _body(frame, FrameType.WELCOME)
    cluster_id = reader.bytes16()
    members, removed = _read_members(reader)
    running = []
    for _ in range(reader.u32()):
        running.append(reader.node_name())
    reader.end()
    return Welcome(cluster_id, members, removed, running)


def pack_refused(reason: Refusal, text: str) -> bytes:
    """Pack a REFUSED frame."""
    return bytes(_head(FrameType.REFUSED) + bytes((int(reason),)) + pack_text(text))


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
    return bytes(((1 if wanted else 0) | (2 if persistent else 0),)) + pack_bytes16(topic_filter)


def _read_wishes(reader: Reader) -> list[Wish]:
    wishes = []
    for _ in range(reader.u32()):
        flags = reader.u8()
        wishes.append(Wish(read_filter(reader), flags & 1 != 0, flags & 2 != 0))
    return wishes


def read_filter(reader: Reader) -> bytes:
    """Read a topic filter."""
    topic_filter = reader.bytes16()
    try:
        check_filter(unmounted(topic_filter))
    except ProtocolError as error:
        raise FrameError(f"{topic_filter[:80]!r} is no topic filter: {error}") from None
    return topic_filter


def pack_interest_delta(incarnation: int, version: int, wishes: list[bytes]) -> bytes:
    """Pack an INTEREST_DELTA frame of packed wishes."""
    frame = _head(FrameType.INTEREST_DELTA)
    frame += pack_u64(incarnation) + pack_u64(version) + pack_u32(len(wishes))
    return bytes(frame) + b"".join(wishes)


def unpack_interest_delta(frame: bytes) -> InterestDelta:
    """Unpack an INTEREST_DELTA frame."""
    reader = _body(frame, FrameType.INTEREST_DELTA)
    incarnation = reader.u64()
    version = reader.number()
    wishes = _read_wishes(reader)
    reader.end()
    return InterestDelta(incarnation, version, wishes)


def pack_interest_snapshot(incarnation: int, version: int, part: int, last: bool, wishes: list[bytes]) -> bytes:
    """Pack an INTEREST_SNAPSHOT frame of packed wishes."""
    frame = _head(FrameType.INTEREST_SNAPSHOT)
    frame += (
        pack_u64(incarnation) + pack_u64(version) + pack_u32(part) + bytes((1 if last else 0,)) + pack_u32(len(wishes))
    )
    return bytes(frame) + b"".join(wishes)


def unpack_interest_snapshot(frame: bytes) -> InterestSnapshot:
    """Unpack an INTEREST_SNAPSHOT frame."""
    reader = _body(frame, FrameType.INTEREST_SNAPSHOT)
    incarnation = reader.u64()
    version = reader.number()
    part = reader.u32()
    last = reader.u8() & 1 != 0
    wishes = _read_wishes(reader)
    reader.end()
    return InterestSnapshot(incarnation, version, part, last, wishes)


def pack_interest_request() -> bytes:
    """Pack an INTEREST_REQUEST frame."""
    return bytes(_head(FrameType.INTEREST_REQUEST))


def pack_stopping() -> bytes:
    """Pack a STOPPING frame: I stop as I was told to, and shall be back."""
    return bytes(_head(FrameType.STOPPING))


def pack_positions(session: int, position: int) -> bytes:
    """Pack a POSITIONS frame."""
    return bytes(_head(FrameType.POSITIONS)) + pack_u64(session) + pack_u64(position)


def pack_link_ack(session: int, position: int) -> bytes:
    """Pack a LINK_ACK frame."""
    return bytes(_head(FrameType.LINK_ACK)) + pack_u64(session) + pack_u64(position)


def unpack_position(frame: bytes) -> Position:
    """Unpack a POSITIONS or a LINK_ACK frame."""
    frame_type(frame)
    reader = Reader(frame, 2)
    session = reader.u64()
    position = reader.number()
    reader.end()
    return Position(session, position)
