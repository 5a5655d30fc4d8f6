"""Left wills: the will of one connection with what has to be known of it, and its forms in the store and on the wire.

Owns these layouts. It knows nothing of when a will is published: `wills` does.

    record    version u8, flags u8 (QoS, 4 retain, 8 expiry, 16 user name), deadline u64 (0: none), delay u32,
              expiry u32, user name str, topic str, properties u32 and bytes, payload
    tag       epoch (32 bytes), number u64, wait u32
    stored    version u8 (2), tag, record; of an earlier program a record alone
    WILL row  version u8, flags u8 (1 waits), tag, record without a deadline

A row has no deadline, as clocks of two nodes need not agree: `wait` is how long the will waits from the end of its
connection on or, once it waits, from when the row said so.
"""

import struct
from typing import Final, final

from broker.core.epoch import EPOCH_BYTES, FIRST_EPOCH, pack_epoch
from broker.core.stored_message import Clock, string, unpack_string
from broker.core.will import Will

RECORD_VERSION: Final = 1
STORED_VERSION: Final = 2
ROW_VERSION: Final = 1
_WAITS: Final = 1
_RETAIN: Final = 4
_EXPIRY: Final = 8
_USER_NAME: Final = 16
_RECORD: Final = struct.Struct(">BBQII")
_TAG: Final = struct.Struct(">32sQI")
_TAG_AT: Final = 2


@final
class LeftWill:
    """A client's will; `due` is monotonic seconds, 0.0 while the client is connected.

    `number` is another one for every will of a store; `epoch`, packed, is the session's. `claimed` says that another
    node is about to publish it.
    """

    __slots__ = ("claimed", "client_id", "due", "epoch", "number", "user_name", "wait_s", "will")

    def __init__(self, client_id: str, user_name: str | None, will: Will) -> None:
        self.client_id = client_id
        self.user_name = user_name
        self.will = will
        self.due: float = 0.0
        self.epoch: bytes = pack_epoch(FIRST_EPOCH)
        self.number: int = 0
        self.wait_s: int = will.delay_s
        self.claimed = False


@final
class WillTag:
    """What a WILL row says beside the message."""

    __slots__ = ("epoch", "number", "wait_s", "waits")

    def __init__(self, epoch: bytes, number: int, wait_s: int, waits: bool) -> None:
        self.epoch = epoch
        self.number = number
        self.wait_s = wait_s
        self.waits = waits


def pack_left_will(left: LeftWill, clock: Clock) -> bytes:
    """Return the record of a will, with its deadline by this clock."""
    return _pack_record(left, clock.to_utc_ms(left.due))


def unpack_left_will(client_id: bytes, record: bytes) -> tuple[LeftWill, int]:
    """Return a will and its deadline in UTC ms; one of UNREADABLE if this is no record of one."""
    _version, flags, deadline_ms, delay_s, expiry_s = _RECORD.unpack_from(record)
    user_name, pos = unpack_string(record, _RECORD.size)
    topic, pos = unpack_string(record, pos)
    payload: int = pos + 4 + int.from_bytes(record[pos : pos + 4], "big")
    if payload > len(record):
        raise IndexError("properties that go on behind the record")
    will = Will(
        topic,
        record[payload:],
        record[pos + 4 : payload],
        flags & 3,
        flags & _RETAIN != 0,
        delay_s,
        expiry_s if flags & _EXPIRY else -1,
    )
    return LeftWill(client_id.decode(), user_name.decode() if flags & _USER_NAME else None, will), deadline_ms


def pack_stored_will(left: LeftWill, clock: Clock) -> bytes:
    """Return the value of a will in the store."""
    return bytes((STORED_VERSION,)) + _TAG.pack(left.epoch, left.number, left.wait_s) + pack_left_will(left, clock)


def unpack_stored_will(client_id: bytes, value: bytes) -> tuple[LeftWill, int]:
    """Return a stored will, with number 0 if it has none, and its deadline in UTC ms; else one of UNREADABLE."""
    if value[0] < STORED_VERSION:
        return unpack_left_will(client_id, value)
    epoch, number, wait_s = _TAG.unpack_from(value, 1)
    left, deadline_ms = unpack_left_will(client_id, value[1 + _TAG.size :])
    left.epoch, left.number, left.wait_s = epoch, number, wait_s
    return left, deadline_ms


def pack_will_row(left: LeftWill) -> bytes:
    """Return the value of a WILL row."""
    tag = _TAG.pack(left.epoch, left.number, left.wait_s)
    return bytes((ROW_VERSION, _WAITS if left.due else 0)) + tag + _pack_record(left, 0)


def will_tag(value: bytes) -> WillTag:
    """Return what the value of a WILL row says beside the message."""
    epoch, number, wait_s = _TAG.unpack_from(value, _TAG_AT)
    return WillTag(epoch, number, wait_s, value[1] & _WAITS != 0)


def unpack_will_row(client_id: bytes, value: bytes) -> LeftWill:
    """Return the will that a WILL row tells of; one of UNREADABLE if this is no such value."""
    assert value[0] == ROW_VERSION
    tag = will_tag(value)
    left, deadline_ms = unpack_left_will(client_id, value[_TAG_AT + _TAG.size :])
    assert deadline_ms == 0 and len(tag.epoch) == EPOCH_BYTES
    left.epoch, left.number, left.wait_s = tag.epoch, tag.number, tag.wait_s
    return left


def _pack_record(left: LeftWill, deadline_ms: int) -> bytes:
    will = left.will
    flags = will.qos
    if will.retain:
        flags |= _RETAIN
    if will.expiry_s >= 0:
        flags |= _EXPIRY
    if left.user_name is not None:
        flags |= _USER_NAME
    return b"".join(
        (
            _RECORD.pack(RECORD_VERSION, flags, deadline_ms, will.delay_s, max(will.expiry_s, 0)),
            string(left.user_name or ""),
            len(will.topic).to_bytes(2, "big"),
            will.topic,
            len(will.properties).to_bytes(4, "big"),
            will.properties,
            will.payload,
        )
    )
