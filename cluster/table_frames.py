"""Table frames: what nodes say to each other of their tables.

Owns how these frames look, and that what is in them are rows; `tables` decides what is said. Integers and bytes16 are
as in `wire`, a bytes32 is a u32 length and as many bytes; rows and values are as in `broker.core.rows`.

    change = u8 flags (1 there was a value, 2 there is one), bytes32 row, [u64 hash of what was], [bytes32 value]
    piece  = u16 bucket, u8 flags (1 first of the bucket, 2 last), u32 count, (bytes32 row, bytes32 value)*

    TABLE_DELTA    u8 table, u64 generation, number version, u32 count, change*
    TABLE_REQUEST  u8 table, u32 round, u16 first bucket, u64 sum of each bucket from the first on
    TABLE_ROWS     u8 table, u32 round, u32 part, u32 count, piece*
    TABLE_DONE     u8 table, u32 round, u32 parts, u64 generation, number version, u16 first bucket not looked at
    TABLE_POSITION position (see `frames`): where the table stands, of one that heartbeats do not tell of
    TABLE_COPY     16 bytes store id of the owner, u8 flags (1 who asks is cut off from it), u64 generation and number
                   version as which who asks knows it, else 0;
                   TABLE_REQUEST, TABLE_ROWS or TABLE_DONE: of a table that another member tells of
    TABLE_BULK     u64 session, one of the frames above but TABLE_REQUEST: how they travel on the bulk connection

Of a kind that this program knows every row is checked; others are held and handed on as they are.
"""

from dataclasses import dataclass
from typing import Final

from broker.core.left_will import unpack_will_row
from broker.core.retained_rows import unpack_retained
from broker.core.rows import (
    BUCKETS,
    RowKind,
    Table,
    is_row,
    pack_away,
    row_rest,
    row_subject,
    unpack_claim,
    unpack_ended,
    unpack_group,
    unpack_interest,
    unpack_session,
    unpack_subscription,
)
from broker.core.storage import STORE_ID_BYTES
from broker.core.stored_message import UNREADABLE, Clock
from broker.mqtt.topics import check_filter, check_name, shared_group, unmounted
from cluster.frames import (
    FrameType,
    TablePosition,
    frame_body,
    frame_head,
    frame_type,
    pack_table_position,
    read_table_position,
)
from cluster.wire import FrameError, Reader, pack_bytes32, pack_u16, pack_u32, pack_u64

_WAS: Final = 1
_IS: Final = 2
_FIRST: Final = 1
_LAST: Final = 2
_CUT_OFF: Final = 1
# For values that are only looked at.
_COPIED: Final = (FrameType.TABLE_REQUEST, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
_NO_CLOCK: Final = Clock(0.0, 0)


@dataclass(slots=True, frozen=True)
class Change:
    """One row's change: `was` is the hash of what was there, 0 for nothing; `value` is None for a row that ended."""

    row: bytes
    was: int
    value: bytes | None


@dataclass(slots=True, frozen=True)
class TableDelta:
    """Changes that lead from the version before to `version`."""

    table: int
    generation: int
    version: int
    changes: list[Change]


@dataclass(slots=True, frozen=True)
class TableRequest:
    """Send me what differs; `sums` are mine, of the buckets from `first` on. The answers name `round`."""

    table: int
    round: int
    first: int
    sums: list[int]


@dataclass(slots=True, frozen=True)
class Piece:
    """Rows of one bucket, all of them if it is the first piece and the last."""

    bucket: int
    first: bool
    last: bool
    rows: list[tuple[bytes, bytes]]


@dataclass(slots=True, frozen=True)
class TableRows:
    """One frame of an answer; parts count from 0."""

    table: int
    round: int
    part: int
    pieces: list[Piece]


@dataclass(slots=True, frozen=True)
class TableDone:
    """The end of an answer of `parts` frames: the buckets up to `next` are now as they are at `version`."""

    table: int
    round: int
    parts: int
    generation: int
    version: int
    next: int


@dataclass(slots=True, frozen=True)
class TableCopy:
    """Of a table of the store `store_id`: what who asks knows of it, and what is asked or answered."""

    store_id: bytes
    is_cut_off: bool
    generation: int
    version: int
    frame: bytes


def pack_change(row: bytes, was: int, value: bytes | None) -> bytes:
    """Pack one Change."""
    packed = bytes(((_WAS if was else 0) | (0 if value is None else _IS),)) + pack_bytes32(row)
    if was:
        packed += pack_u64(was)
    return packed if value is None else packed + pack_bytes32(value)


def pack_table_delta(table: int, generation: int, version: int, changes: list[bytes]) -> bytes:
    """Pack a TABLE_DELTA frame of packed changes."""
    head = frame_head(FrameType.TABLE_DELTA) + bytes((table,))
    return bytes(head) + pack_u64(generation) + pack_u64(version) + pack_u32(len(changes)) + b"".join(changes)


def unpack_table_delta(frame: bytes) -> TableDelta:
    """Unpack a TABLE_DELTA frame."""
    reader = frame_body(frame, FrameType.TABLE_DELTA)
    table = _table(reader)
    generation = reader.u64()
    version = reader.number()
    changes = []
    for _ in range(reader.u32()):
        flags = reader.u8()
        row = reader.bytes32()
        was = reader.u64() if flags & _WAS else 0
        value = reader.bytes32() if flags & _IS else None
        check_row(row, value)
        changes.append(Change(row, was, value))
    reader.end()
    return TableDelta(table, generation, version, changes)


def pack_table_request(request: TableRequest) -> bytes:
    """Pack a TABLE_REQUEST frame."""
    head = frame_head(FrameType.TABLE_REQUEST) + bytes((request.table,))
    head += pack_u32(request.round) + pack_u16(request.first)
    return bytes(head) + b"".join([pack_u64(each) for each in request.sums])


def unpack_table_request(frame: bytes) -> TableRequest:
    """Unpack a TABLE_REQUEST frame."""
    reader = frame_body(frame, FrameType.TABLE_REQUEST)
    table = _table(reader)
    round_ = reader.u32()
    first = reader.u16()
    sums = [reader.u64() for _ in range(BUCKETS - first)]
    reader.end()
    return TableRequest(table, round_, first, sums)


def pack_piece(bucket: int, first: bool, last: bool, rows: list[bytes]) -> bytes:
    """Pack one piece of packed rows."""
    flags = (_FIRST if first else 0) | (_LAST if last else 0)
    return pack_u16(bucket) + bytes((flags,)) + pack_u32(len(rows)) + b"".join(rows)


def pack_entry(row: bytes, value: bytes) -> bytes:
    """Pack one row of a piece."""
    return pack_bytes32(row) + pack_bytes32(value)


def pack_table_rows(table: int, round_: int, part: int, pieces: list[bytes]) -> bytes:
    """Pack a TABLE_ROWS frame of packed pieces."""
    head = frame_head(FrameType.TABLE_ROWS) + bytes((table,))
    return bytes(head) + pack_u32(round_) + pack_u32(part) + pack_u32(len(pieces)) + b"".join(pieces)


def unpack_table_rows(frame: bytes) -> TableRows:
    """Unpack a TABLE_ROWS frame."""
    reader = frame_body(frame, FrameType.TABLE_ROWS)
    table = _table(reader)
    round_ = reader.u32()
    part = reader.u32()
    pieces = []
    for _ in range(reader.u32()):
        bucket = reader.u16()
        if bucket >= BUCKETS:
            raise FrameError(f"there is no bucket {bucket}")
        flags = reader.u8()
        rows = []
        for _ in range(reader.u32()):
            row = reader.bytes32()
            value = reader.bytes32()
            check_row(row, value)
            rows.append((row, value))
        pieces.append(Piece(bucket, flags & _FIRST != 0, flags & _LAST != 0, rows))
    reader.end()
    return TableRows(table, round_, part, pieces)


def pack_table_done(done: TableDone) -> bytes:
    """Pack a TABLE_DONE frame."""
    head = frame_head(FrameType.TABLE_DONE) + bytes((done.table,))
    head += pack_u32(done.round) + pack_u32(done.parts) + pack_u64(done.generation) + pack_u64(done.version)
    return bytes(head + pack_u16(done.next))


def unpack_table_done(frame: bytes) -> TableDone:
    """Unpack a TABLE_DONE frame."""
    reader = frame_body(frame, FrameType.TABLE_DONE)
    table = _table(reader)
    round_ = reader.u32()
    parts = reader.u32()
    generation = reader.u64()
    version = reader.number()
    first = reader.u16()
    reader.end()
    if first > BUCKETS:
        raise FrameError(f"there is no bucket {first}")
    return TableDone(table, round_, parts, generation, version, first)


def pack_position(position: TablePosition) -> bytes:
    """Pack a TABLE_POSITION frame."""
    return bytes(frame_head(FrameType.TABLE_POSITION)) + pack_table_position(position)


def unpack_position(frame: bytes) -> TablePosition:
    """Unpack a TABLE_POSITION frame."""
    reader = frame_body(frame, FrameType.TABLE_POSITION)
    position = read_table_position(reader)
    reader.end()
    return position


def pack_table_copy(copy: TableCopy) -> bytes:
    """Pack a TABLE_COPY frame around another one."""
    head = bytes(frame_head(FrameType.TABLE_COPY)) + copy.store_id + bytes((1 if copy.is_cut_off else 0,))
    return head + pack_u64(copy.generation) + pack_u64(copy.version) + copy.frame


def unpack_table_copy(frame: bytes) -> TableCopy:
    """Unpack a TABLE_COPY frame; what it holds is whole, but not read yet."""
    reader = frame_body(frame, FrameType.TABLE_COPY)
    store_id = reader.take(STORE_ID_BYTES)
    is_cut_off = reader.u8() & _CUT_OFF != 0
    generation = reader.u64()
    version = reader.number()
    inner = reader.rest()
    if frame_type(inner) not in _COPIED:
        raise FrameError(f"no part of a copy, but a frame of type {inner[1]}")
    return TableCopy(store_id, is_cut_off, generation, version, inner)


def pack_table_bulk(session: int, frame: bytes) -> bytes:
    """Pack a TABLE_BULK frame around another one."""
    return bytes(frame_head(FrameType.TABLE_BULK)) + pack_u64(session) + frame


def unpack_table_bulk(frame: bytes) -> tuple[int, bytes]:
    """Return the session and the frame in a TABLE_BULK frame; of tables and whole that one is not yet."""
    reader = frame_body(frame, FrameType.TABLE_BULK)
    session = reader.u64()
    inner = reader.rest()
    frame_type(inner)
    return session, inner


def check_row(row: bytes, value: bytes | None) -> None:
    """Raise FrameError if this is no row, or no value of one of its kind."""
    if not is_row(row):
        raise FrameError("a row that ends within its subject")
    kind = row[0]
    subject = row_subject(row)
    try:
        if kind == RowKind.INTEREST:
            check_filter(unmounted(subject))
            assert not row_rest(row) and (value is None or unpack_interest(value) in (True, False))
        elif kind == RowKind.GROUP:
            check_filter(unmounted(subject))
            assert shared_group(subject) and not row_rest(row) and (value is None or unpack_group(value))
        elif kind == RowKind.SUBSCRIPTION:
            check_filter(unmounted(row_rest(row)))
            assert subject.decode() and (value is None or unpack_subscription(value))
        elif kind == RowKind.SESSION:
            assert subject.decode() and not row_rest(row) and (value is None or unpack_session(value))
        elif kind == RowKind.ENDED:
            assert subject.decode() and not row_rest(row) and (value is None or unpack_ended(value))
        elif kind == RowKind.WILL:
            assert subject.decode() and not row_rest(row)
            if value is not None:
                check_name(unmounted(unpack_will_row(subject, value).will.topic))
        elif kind == RowKind.CLAIM:
            assert subject.decode() and len(row_rest(row)) == 2 * STORE_ID_BYTES
            assert value is None or unpack_claim(value)
        elif kind == RowKind.AWAY:
            assert len(subject) == STORE_ID_BYTES and not row_rest(row) and value in (None, pack_away())
        elif kind == RowKind.RETAINED:
            check_name(unmounted(subject))
            assert not row_rest(row)
            if value is not None:
                unpack_retained(subject, value, _NO_CLOCK)
    except UNREADABLE as error:
        raise FrameError(f"{row[:80]!r} is no row of kind {kind}: {error}") from None


def _table(reader: Reader) -> int:
    table = reader.u8()
    if table not in (Table.PASSING, Table.LASTING, Table.RETAINED):
        raise FrameError(f"there is no table {table}")
    return table
