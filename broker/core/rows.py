"""Rows: what a node tells the others of itself, in the form in which tables hold it.

Owns the tables' numbers, the kinds of rows with the layout of their values, and the hashes by which two holders of a
table compare it. It knows nothing of peers, frames or of where rows lie: `cluster.tables` does.

    row    = kind u8, subject bytes16, key (the rest)       names one row of a table
    value  = version u8, ...                                by kind:

    INTEREST      subject filter     flags u8 (1 persistent)
    SESSION       subject client id  flags u8 (1 user name, 2 persistent), epoch (32 bytes), expiry u32, user name str
    SUBSCRIPTION  subject client id, key filter   options u8, identifier u32
    ENDED         subject client id  epoch (32 bytes): all sessions of older epochs are over
    RETAINED      subject topic      see `retained_rows`
    WILL          subject client id  see `left_will`
    CLAIM         subject client id, key store_id of whose will it is, store_id of who claims it
                                     flags u8 (1 spent), number u64
    AWAY          subject store_id   nothing: this node does not hear that member
    GROUP         subject shared filter   flags u8 (1 persistent, 2 full), u32 about how many members are connected

Everything about one subject lies in one of BUCKETS buckets, so that holders find what differs bucket by bucket. The sum
of a bucket is that of the hashes of its rows modulo 2**64: a change costs one hash, and the order does not matter.
"""

import struct
from enum import IntEnum
from hashlib import blake2b
from typing import Final, final

from broker.core.epoch import EPOCH_BYTES, Epoch, pack_epoch, unpack_epoch
from broker.core.stored_message import string, unpack_string

BUCKETS: Final = 1024
SUM_MASK: Final = (1 << 64) - 1
VALUE_VERSION: Final = 1
# What a row's value begins with in the store.
ROW_VERSION: Final = 1
SUBJECT_AT: Final = 3

_SESSION: Final = struct.Struct(">BB32sI")
_SUBSCRIPTION: Final = struct.Struct(">BBI")
_CLAIM: Final = struct.Struct(">BBQ")
_GROUP: Final = struct.Struct(">BBI")
_EPOCH_AT: Final = 2
_USER_NAME: Final = 1
_PERSISTENT: Final = 2
_SPENT: Final = 1


class Table(IntEnum):
    """The tables of a node."""

    # What is rebuilt at a start: interest, shared groups, sessions that end with their connections, and which members
    # are not heard.
    PASSING = 1
    # What is in the store: persistent sessions, their subscriptions, what ended, wills and claims of them.
    LASTING = 2
    # Retained messages.
    RETAINED = 3


class RowKind(IntEnum):
    """The first byte of a row."""

    INTEREST = 1
    SESSION = 2
    SUBSCRIPTION = 3
    ENDED = 4
    RETAINED = 5
    WILL = 6
    CLAIM = 7
    AWAY = 8
    GROUP = 9


@final
class RowChange:
    """A row of a table of this node began, changed or ended (`value` None).

    `was` is the hash of the row with the value before, 0 when there was none: tables are too large to look it up.
    `moved` says of one that ended that what it stood for goes on elsewhere.
    """

    __slots__ = ("moved", "row", "table", "value", "was")

    def __init__(self, table: int, row: bytes, was: int, value: bytes | None, moved: bool = False) -> None:
        self.moved = moved
        self.table = table
        self.row = row
        self.was = was
        self.value = value


@final
class SessionRow:
    """What the other nodes know of a session, its subscriptions apart."""

    __slots__ = ("epoch", "expiry_s", "persistent", "user_name")

    def __init__(self, epoch: Epoch, persistent: bool, expiry_s: int, user_name: str | None) -> None:
        self.epoch = epoch
        self.persistent = persistent
        self.expiry_s = expiry_s
        self.user_name = user_name


def pack_row(kind: int, subject: bytes, key: bytes = b"") -> bytes:
    """Return the name of a row; the subject has at most 65,535 bytes."""
    return bytes((kind,)) + len(subject).to_bytes(2, "big") + subject + key


def is_row(row: bytes) -> bool:
    """Say whether these bytes are the name of a row."""
    return len(row) >= SUBJECT_AT and len(row) >= SUBJECT_AT + (row[1] << 8 | row[2])


def row_subject(row: bytes) -> bytes:
    """Return the subject of a row."""
    return row[SUBJECT_AT : SUBJECT_AT + (row[1] << 8 | row[2])]


def row_rest(row: bytes) -> bytes:
    """Return the key of a row, what stands behind its subject."""
    return row[SUBJECT_AT + (row[1] << 8 | row[2]) :]


def bucket_of(subject: bytes) -> int:
    """Return the bucket of a subject."""
    digest = blake2b(subject, digest_size=2).digest()
    return (digest[0] << 8 | digest[1]) % BUCKETS


def row_hash(row: bytes, value: bytes) -> int:
    """Return the 64 bits that a row adds to a sum."""
    return int.from_bytes(blake2b(len(row).to_bytes(4, "big") + row + value, digest_size=8).digest(), "big")


def pack_interest(persistent: bool) -> bytes:
    """Return the value of an INTEREST row."""
    return bytes((VALUE_VERSION, 1 if persistent else 0))


def unpack_interest(value: bytes) -> bool:
    """Return whether a wish is persistent; AssertionError if this is no such value."""
    assert len(value) == 2 and value[0] == VALUE_VERSION
    return value[1] & 1 != 0


def pack_group(persistent: bool, online: int, full: bool = False) -> bytes:
    """Return the value of a GROUP row."""
    return _GROUP.pack(VALUE_VERSION, (1 if persistent else 0) | (2 if full else 0), online)


def unpack_group(value: bytes) -> tuple[bool, int, bool]:
    """Return whether a node's part of a group is persistent, about how many are connected, and whether it is full.

    One of UNREADABLE if this is no such value.
    """
    version, flags, online = _GROUP.unpack(value)
    assert version == VALUE_VERSION
    return flags & 1 != 0, online, flags & 2 != 0


def pack_session(session: SessionRow) -> bytes:
    """Return the value of a SESSION row."""
    flags = (0 if session.user_name is None else _USER_NAME) | (_PERSISTENT if session.persistent else 0)
    head = _SESSION.pack(VALUE_VERSION, flags, pack_epoch(session.epoch), session.expiry_s)
    return head + string(session.user_name or "")


def is_persistent_session(value: bytes) -> bool:
    """Say whether the value of a SESSION row is that of a persistent session."""
    return value[1] & _PERSISTENT != 0


def session_epoch(value: bytes) -> bytes:
    """Return the packed epoch of the value of a SESSION row."""
    return value[_EPOCH_AT : _EPOCH_AT + EPOCH_BYTES]


def unpack_session(value: bytes) -> SessionRow:
    """Return what a SESSION row says; one of UNREADABLE if this is no such value."""
    version, flags, _epoch, expiry_s = _SESSION.unpack_from(value)
    user_name, end = unpack_string(value, _SESSION.size)
    assert version == VALUE_VERSION and end == len(value)
    return SessionRow(
        unpack_epoch(value, _EPOCH_AT),
        flags & _PERSISTENT != 0,
        expiry_s,
        user_name.decode() if flags & _USER_NAME else None,
    )


def pack_subscription(options: int, identifier: int) -> bytes:
    """Return the value of a SUBSCRIPTION row."""
    return _SUBSCRIPTION.pack(VALUE_VERSION, options, identifier)


def unpack_subscription(value: bytes) -> tuple[int, int]:
    """Return the options and the identifier; one of UNREADABLE if this is no such value."""
    version, options, identifier = _SUBSCRIPTION.unpack(value)
    assert version == VALUE_VERSION
    return options, identifier


def pack_ended(epoch: bytes) -> bytes:
    """Return the value of an ENDED row for a packed epoch."""
    return bytes((VALUE_VERSION,)) + epoch


def unpack_ended(value: bytes) -> bytes:
    """Return before which epoch, packed, sessions are over; AssertionError if this is no such value."""
    assert len(value) == 1 + EPOCH_BYTES and value[0] == VALUE_VERSION
    return value[1:]


def pack_claim(number: int, spent: bool) -> bytes:
    """Return the value of a CLAIM row: the will with the number is about to be published, or nobody's to publish."""
    return _CLAIM.pack(VALUE_VERSION, _SPENT if spent else 0, number)


def unpack_claim(value: bytes) -> tuple[int, bool]:
    """Return (number, spent) of a CLAIM row; one of UNREADABLE if this is no such value."""
    version, flags, number = _CLAIM.unpack(value)
    assert version == VALUE_VERSION
    return number, flags & _SPENT != 0


def pack_away() -> bytes:
    """Return the value of an AWAY row."""
    return bytes((VALUE_VERSION,))
