"""Frames: the wire format between nodes.

Owns how each frame looks. It knows nothing of who sends what when. Every frame is one ZeroMQ frame and is packed by
nothing but this module: no pickle, no text.

Grammar
-------
Integers, number, text and bytes16 are as in `wire`; a pair is text name, 16 bytes store_id.

    frame      = u8 version (FRAME_VERSION), u8 type, body
    member     = pair, number incarnation, u8 state, text address
    members    = u32 count, member*, u32 count, removed pair*
    position   = u8 table, u64 generation, number version, u64 checksum: how far a table was told (see `tables`),
                 u64 version plus one of yours that I know, 0 when it is not wholly known

    HELLO             pair, number incarnation, u64 session, u64 loop counter, bytes16 cluster id, text address,
                      u8 oldest, u8 newest mesh version, u8 flags (1 automatic, 2 clustered)
    WELCOME           bytes16 cluster id, members, u32 count, text name of a running member*
    REFUSED           u8 reason (Refusal), text
    HEARTBEAT         u64 session, u64 loop counter, u64 membership digest, u64 your session, u64 position,
                      u8 flags (1 link open), u64 version plus one of my LASTING table that all others but you know, 0
                      when that is not so of any, u8 count, position*
    MEMBERS           members
    POSITIONS         u64 your session, number position
    LINK_ACK          u64 your session, number position
    STOPPING          nothing
    STOPS             u32 count, (text name, u64 life, u32 ms since it said so)* of members that stop as planned
    WHO               nothing: who are you? On the join key; the answer is NAME
    NAME              text name
    FORWARDS          see `forwards`, which packs them: they are what is hot
    CHECK, CHECKED    see `check_frames`
    LOOK, STATUS      see `statuses`
    LEAVE_*, ADOPT*   see `leave_frames`
    HAND_OVER, HANDED see `handover`
    DONOR, DONOR_HEARD see `leave_frames`
    TABLE_*           see `table_frames`
    TURN_REQUEST, TURN_GRANT, TURN_RELEASE, TURN_SURVEY, TURNS_HELD: see `registration_frames`

A name is a node name and an address an address, as `wire` demands of them.

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
from cluster.wire import NUMBER_MAX, FrameError, Reader, pack_bytes16, pack_text, pack_u32, pack_u64

FRAME_VERSION: Final = 1

# The mesh versions that this program speaks.
MESH_VERSION_OLDEST: Final = 1
MESH_VERSION_NEWEST: Final = 1

# A frame of several messages or rows is at most this long; a single larger message has a frame to itself.
FRAME_BYTES_MAX: Final = 256 * 1024

# The largest MQTT packet has 256 MiB; what it says takes little more room here.
ANY_FRAME_BYTES_MAX: Final = 257 * 1024 * 1024

_HEARTBEAT: Final = struct.Struct(">QQQQQBQB")
_TABLE: Final = struct.Struct(">BQQQQ")


class FrameType(IntEnum):
    """The second byte of every frame."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    HEARTBEAT = 4
    MEMBERS = 5
    POSITIONS = 9
    LINK_ACK = 10
    FORWARDS = 11
    TABLE_DELTA = 12
    TABLE_REQUEST = 13
    TABLE_ROWS = 14
    TABLE_DONE = 15
    TABLE_POSITION = 16
    TABLE_BULK = 17
    TABLE_COPY = 18
    TURN_REQUEST = 20
    TURN_GRANT = 21
    TURN_RELEASE = 22
    TURN_SURVEY = 23
    TURNS_HELD = 24
    STOPPING = 30
    STOPS = 31
    WHO = 32
    NAME = 33
    CHECK = 34
    CHECKED = 35
    LOOK = 36
    STATUS = 37
    MOVE_TAKE = 40
    MOVE = 41
    MOVE_ACK = 42
    SWITCH = 43
    LEAVE_ORDER = 50
    LEAVE_ANSWER = 51
    LEAVE_REPORT = 52
    LEAVE_HEARD = 53
    ADOPT = 54
    HAND_OVER = 55
    HANDED = 56
    DONOR = 57
    DONOR_HEARD = 58
    ADOPT_LEFT = 59


class Refusal(IntEnum):
    """Why a Hello was not answered by a Welcome."""

    # It can't be: the text says why.
    FINAL = 0
    # This node is itself about to join or has somebody about to join it; ask again.
    BUSY = 1
    # This node is alone and leaves founding a cluster to another; ask again.
    ALONE = 2
    # This member was removed from the cluster, and its store never comes back.
    REMOVED = 3


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
class TablePosition:
    """How far I have told a table; `known` is the version plus one of yours that I know wholly, 0 if I don't."""

    table: int
    generation: int
    version: int
    checksum: int
    known: int


@dataclass(slots=True, frozen=True)
class Heartbeat:
    """I turn, and this is where I stand. `session` is mine, `your_session` and `position` are of what I received.

    `lasting_known` is the version plus one of what outlives my starts that all other members know wholly but you.
    """

    session: int
    counter: int
    membership_digest: int
    your_session: int
    position: int
    link_open: bool
    lasting_known: int
    tables: list[TablePosition]


@dataclass(slots=True, frozen=True)
class Members:
    """Everything I know of the membership."""

    members: list[Member]
    removed: list[tuple[str, bytes]]


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


def frame_head(kind: FrameType) -> bytearray:
    """Return the beginning of a frame of ours."""
    return bytearray((FRAME_VERSION, int(kind)))


def frame_body(frame: bytes, kind: FrameType) -> Reader:
    """Return what reads a frame behind its type; FrameError if it is of another one."""
    if frame_type(frame) != kind:
        raise FrameError(f"frame type {frame[1]} where {kind.name} was expected")
    return Reader(frame, 2)


def pack_hello(hello: Hello) -> bytes:
    """Pack a HELLO frame."""
    frame = frame_head(FrameType.HELLO)
    frame += pack_text(hello.name) + hello.store_id
    frame += pack_u64(hello.incarnation) + pack_u64(hello.session) + pack_u64(hello.counter)
    frame += pack_bytes16(hello.cluster_id) + pack_text(hello.address)
    frame += bytes((hello.oldest, hello.newest, (1 if hello.automatic else 0) | (2 if hello.clustered else 0)))
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
    frame = frame_head(FrameType.WELCOME)
    frame += pack_bytes16(welcome.cluster_id) + _pack_members(welcome.members, welcome.removed)
    frame += pack_u32(len(welcome.running))
    for name in welcome.running:
        frame += pack_text(name)
    return bytes(frame)


def unpack_welcome(frame: bytes) -> Welcome:
    """Unpack a WELCOME frame."""
    reader = frame_body(frame, FrameType.WELCOME)
    cluster_id = reader.bytes16()
    members, removed = _read_members(reader)
    running = []
    for _ in range(reader.u32()):
        running.append(reader.node_name())
    reader.end()
    return Welcome(cluster_id, members, removed, running)


def pack_refused(reason: Refusal, text: str) -> bytes:
    """Pack a REFUSED frame."""
    return bytes(frame_head(FrameType.REFUSED) + bytes((int(reason),)) + pack_text(text))


def unpack_refused(frame: bytes) -> Refused:
    """Unpack a REFUSED frame."""
    reader = frame_body(frame, FrameType.REFUSED)
    reason = reader.u8()
    text = reader.text()
    reader.end()
    return Refused(reason, text)


def pack_members(members: list[Member], removed: list[tuple[str, bytes]]) -> bytes:
    """Pack a MEMBERS frame."""
    return bytes(frame_head(FrameType.MEMBERS) + _pack_members(members, removed))


def unpack_members(frame: bytes) -> Members:
    """Unpack a MEMBERS frame."""
    reader = frame_body(frame, FrameType.MEMBERS)
    members, removed = _read_members(reader)
    reader.end()
    return Members(members, removed)


def pack_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Pack a HEARTBEAT frame."""
    frame = frame_head(FrameType.HEARTBEAT) + _HEARTBEAT.pack(
        heartbeat.session,
        heartbeat.counter,
        heartbeat.membership_digest,
        heartbeat.your_session,
        heartbeat.position,
        1 if heartbeat.link_open else 0,
        heartbeat.lasting_known,
        len(heartbeat.tables),
    )
    for each in heartbeat.tables:
        frame += pack_table_position(each)
    return bytes(frame)


def pack_table_position(position: TablePosition) -> bytes:
    """Pack where a table stands."""
    return _TABLE.pack(position.table, position.generation, position.version, position.checksum, position.known)


def read_table_position(reader: Reader) -> TablePosition:
    """Read where a table stands."""
    table, generation, version, checksum, known = _TABLE.unpack(reader.take(_TABLE.size))
    if version > NUMBER_MAX:
        raise FrameError(f"{version} is out of range")
    return TablePosition(table, generation, version, checksum, known)


def unpack_heartbeat(frame: bytes) -> Heartbeat:
    """Unpack a HEARTBEAT frame."""
    reader = frame_body(frame, FrameType.HEARTBEAT)
    head = _HEARTBEAT.unpack(reader.take(_HEARTBEAT.size))
    session, counter, digest, your_session, position, flags, lasting_known, count = head
    tables = [read_table_position(reader) for _ in range(count)]
    reader.end()
    return Heartbeat(session, counter, digest, your_session, position, flags & 1 != 0, lasting_known, tables)


def read_filter(reader: Reader) -> bytes:
    """Read a topic filter."""
    topic_filter = reader.bytes16()
    try:
        check_filter(unmounted(topic_filter))
    except ProtocolError as error:
        raise FrameError(f"{topic_filter[:80]!r} is no topic filter: {error}") from None
    return topic_filter


def pack_stopping() -> bytes:
    """Pack a STOPPING frame: I stop as I was told to, and shall be back."""
    return bytes(frame_head(FrameType.STOPPING))


def pack_stops(stops: list[tuple[str, int, int]]) -> bytes:
    """Pack a STOPS frame: these (name, life, ms ago) have announced that they stop, as far as I know."""
    parts = [pack_text(name) + pack_u64(life) + pack_u32(ago_ms) for name, life, ago_ms in stops]
    return b"".join((frame_head(FrameType.STOPS), pack_u32(len(parts)), *parts))


def unpack_stops(frame: bytes) -> list[tuple[str, int, int]]:
    """Unpack a STOPS frame."""
    reader = frame_body(frame, FrameType.STOPS)
    stops = [(reader.node_name(), reader.u64(), reader.u32()) for _ in range(reader.u32())]
    reader.end()
    return stops


def pack_who() -> bytes:
    """Pack a WHO frame: who are you?"""
    return bytes(frame_head(FrameType.WHO))


def pack_name(name: str) -> bytes:
    """Pack a NAME frame: this is who I am."""
    return bytes(frame_head(FrameType.NAME) + pack_text(name))


def unpack_name(frame: bytes) -> str:
    """Unpack a NAME frame."""
    reader = frame_body(frame, FrameType.NAME)
    name = reader.node_name()
    reader.end()
    return name


def pack_positions(session: int, position: int) -> bytes:
    """Pack a POSITIONS frame."""
    return bytes(frame_head(FrameType.POSITIONS)) + pack_u64(session) + pack_u64(position)


def pack_link_ack(session: int, position: int) -> bytes:
    """Pack a LINK_ACK frame."""
    return bytes(frame_head(FrameType.LINK_ACK)) + pack_u64(session) + pack_u64(position)


def unpack_position(frame: bytes) -> Position:
    """Unpack a POSITIONS or a LINK_ACK frame."""
    frame_type(frame)
    reader = Reader(frame, 2)
    session = reader.u64()
    position = reader.number()
    reader.end()
    return Position(session, position)
