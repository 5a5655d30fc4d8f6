"""Retained rows: the last message of a topic as a node tells the others of it, and as it is stored.

Owns the layout of the row's value and of the store's family `retained`, and the order of two messages of one topic. It
knows nothing of who holds a row.

    row       kind RETAINED, subject topic, no key
    value     version u8, flags u8 (1 deleted), stamp u64, message id (24 bytes), body (see `stored_message`) unless
              deleted
    stored    store_id of the row's owner, bucket u16, row -> ROW_VERSION, value

The newest message of a topic is the one with the highest stamp of a hybrid logical clock; of equal stamps the message
id decides, which begins with the store_id of the node where it entered. Its number decides between two messages of one
node: what this stamped last a power loss may take, and a clock that was set back has it give the same stamps again, but
no number is given twice. Both stand together in a value, so that orders are compared as they are packed; b"" is before
all.

A delete has the id of the message that deleted, one of an older program the number 0.

The deadline of a message that expires is a UTC one on the wire as well: holders of a row compare it by its hash, which
what is left of a time would change. A node whose clock is wrong hides the message that much too early or too late; the
row goes when its owner says so.
"""

import struct
from typing import Final

from broker.core.message import Message
from broker.core.rows import ROW_VERSION, RowKind, bucket_of, is_row, pack_row, row_rest, row_subject
from broker.core.storage import STORE_ID_BYTES
from broker.core.stored_message import MESSAGE_KEY_BYTES, Clock, pack_message, unpack_message

FAMILY: Final = "retained"
VALUE_VERSION: Final = 1
ORDER_BYTES: Final = 8 + MESSAGE_KEY_BYTES
STAMP_MAX: Final = (1 << 64) - 1
_DELETED: Final = 1
_ORDER_AT: Final = 2
_BODY_AT: Final = _ORDER_AT + ORDER_BYTES
_ROW_AT: Final = STORE_ID_BYTES + 2
_U64: Final = struct.Struct(">Q")


def retained_row(topic: bytes) -> bytes:
    """Return the name of a topic's row."""
    return pack_row(RowKind.RETAINED, topic)


def pack_order(stamp: int, message_id: bytes) -> bytes:
    """Return the order of the message with this id; the stamp is a u64."""
    assert len(message_id) == MESSAGE_KEY_BYTES
    return _U64.pack(stamp) + message_id


def stamp_of(order: bytes) -> int:
    """Return the stamp in an order, 0 for that before all."""
    return int.from_bytes(order[:8], "big")


def pack_retained(order: bytes, message: Message, clock: Clock) -> bytes:
    """Return the value of a message; its id is that in its order."""
    return bytes((VALUE_VERSION, 0)) + order + pack_message(message, clock)


def pack_deleted(order: bytes) -> bytes:
    """Return the value that says that what is older was deleted, or expired."""
    return bytes((VALUE_VERSION, _DELETED)) + order


def value_order(value: bytes) -> bytes:
    """Return the order of a value."""
    return value[_ORDER_AT:_BODY_AT]


def unpack_retained(topic: bytes, value: bytes, clock: Clock) -> Message | None:
    """Return the message in a topic's value, None if it says deleted; one of UNREADABLE if this is no such value."""
    assert len(value) >= _BODY_AT and value[0] == VALUE_VERSION
    if value[1] & _DELETED:
        assert len(value) == _BODY_AT
        return None
    message = unpack_message(value[_ORDER_AT + 8 : _BODY_AT], value, _BODY_AT, clock)
    if message.topic != topic:
        raise ValueError(f"a message of {message.topic!r}")
    return message


def stored_key(store_id: bytes, topic: bytes) -> bytes:
    """Return where the row of a topic lies that a node owns."""
    return store_id + bucket_of(topic).to_bytes(2, "big") + retained_row(topic)


def stored_topic(key: bytes) -> bytes:
    """Return the topic of a stored row; AssertionError if this is no key of one."""
    row = key[_ROW_AT:]
    assert is_row(row) and row[0] == RowKind.RETAINED and not row_rest(row)
    topic = row_subject(row)
    assert topic and int.from_bytes(key[STORE_ID_BYTES:_ROW_AT], "big") == bucket_of(topic)
    return topic


def pack_stored(value: bytes) -> bytes:
    """Return what is stored of a value."""
    return bytes((ROW_VERSION,)) + value
