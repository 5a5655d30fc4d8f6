"""Frames of moves: how sessions look on their way from one home to another.

Owns the packing of what `departures` and `arrivals` say to each other. It knows nothing of who says what when.

Grammar
-------
Integers, text and bytes16 are as in `wire`; an epoch is as in `broker.core.epoch`. An item begins with the client id
(bytes16) and the epoch of the new home, which together name the move.

    MOVE_TAKE     u32 count, (client id, epoch, u8 flags: 1 clean start, 2 user name, 4 nobody has connected,
                  bytes16 user name)*                                            control, to the old home
    MOVE          (u8 kind, client id, epoch, body)*                            bulk, to the new home
      HEAD        1  epoch of the old home, u32 length, head
      DELIVERIES  2  u64 last place before, u32 count, delivery*
      STATE       3  u8 flags (1 ended, from bit 3 on its number), u16 count, (16 bytes origin, u64 number)*
      NOTHING     4
      REFUSED     5  the session is another user's
      MOVED       6  epoch of the home that has it
    MOVE_ACK      (client id, epoch, u8 flags: 1 head taken, 2 over, 4 discarded, none of these if the session is not
                  there, from bit 3 on the number of the STATE that was taken last, u64 watermark, u64 generation,
                  u64 version,
                  u16 count, 16 bytes origin that is not passed*)*              control, to the old home
    SWITCH        u32 count, (16 bytes store_id of the home, u64 generation, u64 version)*       control, to any member
    mark          u8 kind, 16 bytes store_id of the home, u64 generation, u64 version, u64 number   in a stream
      CONFIRMED   1  to the home itself, whenever a version of its wishes is applied
      SWITCHED    2  to who asked by a SWITCH

    head      u8 flags (1 user name, 2 will, 4 filters made or ended there, 8 fingerprints, 16 homes, 32 filters made or
              ended at homes),
              bytes16 user name, u32 expiry, u64 deadline, u16 next packet id, u64 last place in flight, u32 count,
              (bytes16 filter, u8 options, u32 identifier)*, u16 count, u16 packet id*,
              u16 count, (16 bytes store_id, u64 last place taken)*, u16 count, (16 bytes origin, u64 cut)*,
              [u32 count, (bytes16 filter made or ended, [u32 epoch counter of the home])*],
              [u32 fingerprint of each packet id],
              [u32 count, (u32 epoch counter of a home, 16 bytes origin, u64 first number that it had directly)*],
              [u32 length, will record as in `left_will`]
    delivery  u64 place, u8 flags (0-1 QoS, 4 retain, 8 released), u16 packet id, u32 size, bytes16 identifiers,
              bytes16 shared filter, [24 bytes message id, u32 length, body as in `stored_message` if not released]

Deadlines, those in bodies and wills included, are in ms of a clock whose time is DEADLINE_BASE_MS when the frame is
packed, and again when it is read: clocks of two nodes need not agree.
"""

import struct
from typing import Final, final

from broker.core.epoch import Epoch, pack_epoch
from broker.core.left_will import pack_left_will, unpack_left_will
from broker.core.message import NO_MESSAGE, UNKNOWN, Delivery
from broker.core.stored_message import MESSAGE_KEY_BYTES, UNREADABLE, Clock, pack_message, unpack_message
from broker.core.transfer import SessionHead
from cluster.epoch import read_epoch
from cluster.frames import FRAME_BYTES_MAX, FRAME_VERSION, read_filter
from cluster.wire import NUMBER_MAX, FrameError, Reader, pack_bytes16, pack_u16, pack_u32, pack_u64

# Later than any deadline is long: 2**50 ms are 35,000 years.
DEADLINE_BASE_MS: Final = 1 << 50

HEAD: Final = 1
DELIVERIES: Final = 2
STATE: Final = 3
NOTHING: Final = 4
REFUSED: Final = 5
MOVED: Final = 6
CLEAN_START: Final = 1
NAMED: Final = 2
ADOPTED: Final = 4
HEAD_TAKEN: Final = 1
OVER: Final = 2
DISCARDED: Final = 4
ENDED: Final = 1
# A STATE has a number of 1 to this, so that it is known which one was answered; 0 is none, or one of an older program.
STATES_MAX: Final = 31
CONFIRMED: Final = 1
SWITCHED: Final = 2

_STATE_SHIFT: Final = 3
_FLAGS_MASK: Final = (1 << _STATE_SHIFT) - 1
_QOS_MASK: Final = 3
_RETAIN: Final = 4
_RELEASED: Final = 8
_USER_NAME: Final = 1
_WILL: Final = 2
_TOUCHED: Final = 4
_FINGERPRINTS: Final = 8
_DIRECT: Final = 16
_TOUCHED_AT: Final = 32
_DELIVERY: Final = struct.Struct(">QBHI")
_HEAD: Final = struct.Struct(">IQHQI")
_ACK: Final = struct.Struct(">BQQQH")
_MARK: Final = struct.Struct(">B16sQQQ")
_STORE_ID_BYTES: Final = 16
# What a frame has beside its items.
_HEAD_BYTES: Final = 64


def relative_clock(now: float) -> Clock:
    """Return the clock by which deadlines are packed and read at `now`."""
    return Clock(now, DEADLINE_BASE_MS)


@final
class Take:
    """Give me this client's session: I am to be its home. `is_adoption`: its client has not connected to me."""

    __slots__ = ("clean_start", "client_id", "epoch", "is_adoption", "user_name")

    def __init__(
        self, client_id: str, epoch: Epoch, clean_start: bool, user_name: str | None, is_adoption: bool = False
    ) -> None:
        self.client_id = client_id
        self.epoch = epoch
        self.clean_start = clean_start
        self.user_name = user_name
        self.is_adoption = is_adoption


@final
class Item:
    """One item of a MOVE; which fields mean something depends on `kind`."""

    __slots__ = ("after", "client_id", "deliveries", "ended", "epoch", "head", "kind", "old_epoch", "passed", "state")

    def __init__(self, kind: int, client_id: str, epoch: Epoch) -> None:
        self.kind = kind
        self.client_id = client_id
        self.epoch = epoch
        self.old_epoch = epoch
        self.head: SessionHead | None = None
        self.after: int = 0
        self.deliveries: list[Delivery] = []
        self.state: int = 0
        self.passed: list[tuple[bytes, int]] = []
        self.ended = False


@final
class MoveAck:
    """How far the new home is, and the version of its table that has the session's subscriptions.

    `state` is the number of the STATE that is answered, 0 for none; `missing`, if that says ended, are the origins of
    which not everything was passed on.
    """

    __slots__ = ("client_id", "epoch", "flags", "generation", "missing", "state", "version", "watermark")

    def __init__(self, client_id: str, epoch: Epoch, flags: int, watermark: int) -> None:
        self.client_id = client_id
        self.epoch = epoch
        self.flags = flags
        self.watermark = watermark
        self.generation: int = 0
        self.version: int = 0
        self.state: int = 0
        self.missing: list[bytes] = []


@final
class Switch:
    """From `number` on `member` routes with the wishes of `home` up to a version of its table, or a later one."""

    __slots__ = ("generation", "home", "kind", "member", "number", "version")

    def __init__(self, kind: int, member: bytes, home: bytes, generation: int, version: int, number: int) -> None:
        self.kind = kind
        self.member = member
        self.home = home
        self.generation = generation
        self.version = version
        self.number = number


def frame(kind: int, items: list[bytes], counted: bool = False) -> bytes:
    """Return one frame of items."""
    count = pack_u32(len(items)) if counted else b""
    return bytes((FRAME_VERSION, kind)) + count + b"".join(items)


def frames(kind: int, items: list[bytes], counted: bool = False) -> list[bytes]:
    """Return the frames that some items take, one item at least in each; `counted`: their number comes first."""
    found: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for item in items:
        if size and size + len(item) > FRAME_BYTES_MAX - _HEAD_BYTES:
            found.append(frame(kind, batch, counted))
            batch = []
            size = 0
        batch.append(item)
        size += len(item)
    if batch:
        found.append(frame(kind, batch, counted))
    return found


def _name(client_id: str, epoch: Epoch) -> bytes:
    return pack_bytes16(client_id.encode()) + pack_epoch(epoch)


def _read_name(reader: Reader) -> tuple[str, Epoch]:
    client_id = reader.text()
    return client_id, read_epoch(reader)


def pack_take(take: Take) -> bytes:
    """Pack one item of a MOVE_TAKE."""
    flags = (CLEAN_START if take.clean_start else 0) | (0 if take.user_name is None else NAMED)
    flags |= ADOPTED if take.is_adoption else 0
    return _name(take.client_id, take.epoch) + bytes((flags,)) + pack_bytes16((take.user_name or "").encode())


def unpack_takes(data: bytes) -> list[Take]:
    """Read a MOVE_TAKE."""
    reader = Reader(data, 2)
    takes = []
    for _ in range(reader.u32()):
        client_id, epoch = _read_name(reader)
        flags = reader.u8()
        user_name = reader.text()
        name = user_name if flags & NAMED else None
        takes.append(Take(client_id, epoch, flags & CLEAN_START != 0, name, flags & ADOPTED != 0))
    reader.end()
    return takes


def pack_head(client_id: str, epoch: Epoch, old_epoch: Epoch, head: SessionHead, now: float) -> bytes:
    """Pack a HEAD."""
    clock = relative_clock(now)
    flags = (0 if head.user_name is None else _USER_NAME) | (0 if head.will is None else _WILL)
    has_fingerprints = any(head.incoming.values())
    flags |= (_TOUCHED_AT if head.touched else 0) | (_FINGERPRINTS if has_fingerprints else 0)
    flags |= _DIRECT if head.direct else 0
    parts = [
        bytes((flags,)),
        pack_bytes16((head.user_name or "").encode()),
        _HEAD.pack(
            head.expiry_s,
            clock.to_utc_ms(head.expires_at),
            head.next_packet_id,
            head.inflight_seq,
            len(head.subscriptions),
        ),
    ]
    for topic_filter, options, identifier in head.subscriptions:
        parts.append(pack_bytes16(topic_filter) + bytes((options,)) + pack_u32(identifier))
    parts.append(pack_u16(len(head.incoming)))
    parts.extend([pack_u16(packet_id) for packet_id in head.incoming])
    parts.append(pack_u16(len(head.taken)))
    parts.extend([store_id + pack_u64(place) for store_id, place in head.taken])
    parts.append(pack_u16(len(head.cuts)))
    parts.extend([origin + pack_u64(number) for origin, number in head.cuts])
    if head.touched:
        parts.append(pack_u32(len(head.touched)))
        parts.extend([pack_bytes16(topic_filter) + pack_u32(counter) for topic_filter, counter in head.touched.items()])
    if has_fingerprints:
        parts.extend([pack_u32(fingerprint) for fingerprint in head.incoming.values()])
    if head.direct:
        parts.append(pack_u32(len(head.direct)))
        parts.extend([pack_u32(counter) + origin + pack_u64(number) for counter, origin, number in head.direct])
    if head.will is not None:
        will = pack_left_will(head.will, clock)
        parts.append(pack_u32(len(will)) + will)
    body = b"".join(parts)
    return b"".join((bytes((HEAD,)), _name(client_id, epoch), pack_epoch(old_epoch), pack_u32(len(body)), body))


def _read_head(client_id: str, data: bytes, now: float) -> SessionHead:
    clock = relative_clock(now)
    reader = Reader(data, 0)
    flags = reader.u8()
    user_name = reader.text()
    expiry_s, deadline_ms, next_packet_id, inflight_seq, count = _HEAD.unpack(reader.take(_HEAD.size))
    head = SessionHead(client_id, user_name if flags & _USER_NAME else None, expiry_s)
    head.expires_at = clock.to_monotonic(deadline_ms)
    head.next_packet_id = max(1, next_packet_id)
    head.inflight_seq = inflight_seq
    for _ in range(count):
        topic_filter = read_filter(reader)
        options = reader.u8()
        if options & _QOS_MASK == _QOS_MASK:
            raise FrameError("a subscription of no QoS")
        head.subscriptions.append((topic_filter, options, reader.u32()))
    head.incoming = dict.fromkeys([reader.u16() for _ in range(reader.u16())], UNKNOWN)
    head.taken = [(reader.take(_STORE_ID_BYTES), reader.u64()) for _ in range(reader.u16())]
    head.cuts = [(reader.take(_STORE_ID_BYTES), reader.u64()) for _ in range(reader.u16())]
    if flags & (_TOUCHED | _TOUCHED_AT):
        for _ in range(reader.u32()):
            topic_filter = read_filter(reader)
            head.touched[topic_filter] = reader.u32() if flags & _TOUCHED_AT else 0
    if flags & _FINGERPRINTS:
        head.incoming = {packet_id: reader.u32() for packet_id in head.incoming}
    if flags & _DIRECT:
        head.direct = [(reader.u32(), reader.take(_STORE_ID_BYTES), reader.u64()) for _ in range(reader.u32())]
    if flags & _WILL:
        head.will, deadline_ms = unpack_left_will(client_id.encode(), reader.take(reader.u32()))
        head.will.due = clock.to_monotonic(deadline_ms)
    reader.end()
    return head


def pack_deliveries(client_id: str, epoch: Epoch, after: int, deliveries: list[Delivery], now: float) -> bytes:
    """Pack DELIVERIES that follow the place `after`."""
    clock = relative_clock(now)
    parts = [bytes((DELIVERIES,)), _name(client_id, epoch), pack_u64(after), pack_u32(len(deliveries))]
    for delivery in deliveries:
        flags = delivery.qos | (_RETAIN if delivery.retain else 0) | (_RELEASED if delivery.released else 0)
        parts.append(_DELIVERY.pack(delivery.seq, flags, delivery.packet_id, delivery.size))
        parts.append(pack_bytes16(delivery.identifiers) + pack_bytes16(delivery.shared))
        if not delivery.released:
            body = pack_message(delivery.message, clock)
            parts.append(delivery.message.key() + pack_u32(len(body)) + body)
    return b"".join(parts)


def _read_delivery(reader: Reader, clock: Clock) -> Delivery:
    seq, flags, packet_id, size = _DELIVERY.unpack(reader.take(_DELIVERY.size))
    identifiers = reader.bytes16()
    shared = reader.bytes16()
    message = NO_MESSAGE
    if not flags & _RELEASED:
        key = reader.take(MESSAGE_KEY_BYTES)
        message = unpack_message(key, reader.take(reader.u32()), 0, clock)
    if flags & _QOS_MASK not in (1, 2) or (not message.topic and not flags & _RELEASED):
        raise FrameError("a delivery of no QoS, or of no topic")
    delivery = Delivery(seq, message, flags & _QOS_MASK, flags & _RETAIN != 0, identifiers)
    delivery.packet_id = packet_id
    delivery.size = size
    delivery.shared = shared
    delivery.released = flags & _RELEASED != 0
    return delivery


def pack_state(client_id: str, epoch: Epoch, state: int, passed: list[tuple[bytes, int]], ended: bool) -> bytes:
    """Pack a STATE, of the number `state`: below which number of which origin everything was passed on."""
    flags = state << _STATE_SHIFT | (ENDED if ended else 0)
    parts = [bytes((STATE,)), _name(client_id, epoch), bytes((flags,)), pack_u16(len(passed))]
    parts.extend([origin + pack_u64(number) for origin, number in passed])
    return b"".join(parts)


def pack_no(kind: int, client_id: str, epoch: Epoch) -> bytes:
    """Pack a NOTHING or REFUSED."""
    return bytes((kind,)) + _name(client_id, epoch)


def pack_moved(client_id: str, epoch: Epoch, home: Epoch) -> bytes:
    """Pack a MOVED: the session has a home of this epoch already."""
    return bytes((MOVED,)) + _name(client_id, epoch) + pack_epoch(home)


def unpack_move(data: bytes, now: float) -> list[Item]:
    """Read a MOVE; FrameError if it can't be read."""
    try:
        return _read_items(data, now)
    except UNREADABLE as error:
        raise FrameError(f"malformed MOVE: {error}") from None


def _read_items(data: bytes, now: float) -> list[Item]:
    reader = Reader(data, 2)
    clock = relative_clock(now)
    items = []
    while reader.left():
        kind = reader.u8()
        client_id, epoch = _read_name(reader)
        item = Item(kind, client_id, epoch)
        if kind == HEAD:
            item.old_epoch = read_epoch(reader)
            item.head = _read_head(client_id, reader.take(reader.u32()), now)
        elif kind == DELIVERIES:
            item.after = reader.u64()
            item.deliveries = [_read_delivery(reader, clock) for _ in range(reader.u32())]
        elif kind == STATE:
            flags = reader.u8()
            item.state = flags >> _STATE_SHIFT
            item.ended = flags & ENDED != 0
            item.passed = [(reader.take(_STORE_ID_BYTES), reader.number()) for _ in range(reader.u16())]
        elif kind == MOVED:
            item.old_epoch = read_epoch(reader)
        elif kind not in (NOTHING, REFUSED):
            raise FrameError(f"unknown item {kind} in a MOVE")
        items.append(item)
    return items


def pack_move_ack(ack: MoveAck) -> bytes:
    """Pack one item of a MOVE_ACK."""
    flags = ack.state << _STATE_SHIFT | ack.flags
    numbers = _ACK.pack(flags, ack.watermark, ack.generation, ack.version, len(ack.missing))
    return b"".join((_name(ack.client_id, ack.epoch), numbers, *ack.missing))


def unpack_move_acks(data: bytes) -> list[MoveAck]:
    """Read a MOVE_ACK."""
    reader = Reader(data, 2)
    acks = []
    while reader.left():
        client_id, epoch = _read_name(reader)
        flags, watermark, generation, version, missing = _ACK.unpack(reader.take(_ACK.size))
        if max(generation, version) > NUMBER_MAX:
            raise FrameError("a version that is out of range")
        ack = MoveAck(client_id, epoch, flags & _FLAGS_MASK, watermark)
        ack.generation = generation
        ack.version = version
        ack.state = flags >> _STATE_SHIFT
        ack.missing = [reader.take(_STORE_ID_BYTES) for _ in range(missing)]
        acks.append(ack)
    return acks


def pack_switch(home: bytes, generation: int, version: int) -> bytes:
    """Pack one item of a SWITCH."""
    return home + pack_u64(generation) + pack_u64(version)


def unpack_switches(data: bytes) -> list[tuple[bytes, int, int]]:
    """Read a SWITCH: (home, generation, version)."""
    reader = Reader(data, 2)
    found = [(reader.take(_STORE_ID_BYTES), reader.number(), reader.number()) for _ in range(reader.u32())]
    reader.end()
    return found


def pack_mark(mark: Switch) -> bytes:
    """Pack a mark."""
    return _MARK.pack(mark.kind, mark.home, mark.generation, mark.version, mark.number)


def unpack_mark(member: bytes, data: bytes) -> Switch:
    """Read a mark of a member; FrameError if it is none that is known."""
    if len(data) != _MARK.size or data[0] not in (CONFIRMED, SWITCHED):
        raise FrameError("unknown mark")
    kind, home, generation, version, number = _MARK.unpack(data)
    return Switch(kind, member, home, generation, version, number)
