"""Messages as the store holds them, and the two clocks that their deadlines need.

    message id  origin (16 bytes), number u64
    body        flags u8 (QoS, 4 retain), deadline u64, publisher str, topic str, properties u32 and bytes, payload

It owns the body's layout, for queues, retained messages and wills alike; their families own the version byte in front.
Deadlines are UTC milliseconds, 0 for none; monotonic seconds mean nothing after a restart.
"""

import math
import struct
from typing import Final, final

from broker.core.message import ORIGIN_BYTES, Message
from broker.core.storage import StorageError
from broker.mqtt.reasons import ProtocolError

MESSAGE_KEY_BYTES: Final = ORIGIN_BYTES + 8
# The last deadline in ms: 70,000 years, and a float of seconds still tells one ms from the next.
LAST_MS: Final = 1 << 51
# What reading a record raises when its bytes are not those of one, or what it belongs to is not there.
UNREADABLE: Final = (struct.error, IndexError, KeyError, ValueError, AssertionError, ProtocolError)
_NAMED_BYTES_MAX: Final = 64
_BODY: Final = struct.Struct(">BQ")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")


@final
class Clock:
    """Converts between monotonic seconds and UTC milliseconds, from the latest reading of both.

    One may be stepped and the other stand still while the machine sleeps, so they are read again all the time. What is
    written after a step is right; what was written before stays as it was.
    """

    __slots__ = ("_now", "_utc_ms")

    def __init__(self, now: float, utc_ms: int) -> None:
        self._now = now
        self._utc_ms = utc_ms

    def set(self, now: float, utc_ms: int) -> None:
        """Take a new reading of both clocks."""
        self._now = now
        self._utc_ms = utc_ms

    @property
    def now(self) -> float:
        """The latest reading of monotonic time."""
        return self._now

    @property
    def utc_ms(self) -> int:
        """The latest reading of the wall clock."""
        return self._utc_ms

    def to_utc_ms(self, deadline: float) -> int:
        """Return the UTC deadline in ms of a monotonic one; 0.0 is 0, never.

        Whatever a peer said that a deadline is can be packed again: it is between the first ms and LAST_MS.
        """
        if deadline == 0.0:
            return 0
        return max(1, min(LAST_MS, self._utc_ms + math.floor((deadline - self._now) * 1000 + 0.5)))

    def to_monotonic(self, deadline_ms: int) -> float:
        """Return the monotonic deadline of a UTC one in ms; 0 is 0.0, never."""
        if deadline_ms == 0:
            return 0.0
        # A deadline that passed just when monotonic time began is past, and not never.
        return self._now + (deadline_ms - self._utc_ms) / 1000 or -0.001


def pack_message(message: Message, clock: Clock) -> bytes:
    """Return the body."""
    return b"".join(
        (
            _BODY.pack(message.qos | (4 if message.retain else 0), clock.to_utc_ms(message.expires_at)),
            string(message.publisher),
            _U16.pack(len(message.topic)),
            message.topic,
            _U32.pack(len(message.properties)),
            message.properties,
            message.payload,
        )
    )


def unpack_message(key: bytes, value: bytes, pos: int, clock: Clock) -> Message:
    """Return the message with the id `key` whose body is value[pos:]."""
    flags, deadline_ms = _BODY.unpack_from(value, pos)
    publisher, pos = unpack_string(value, pos + _BODY.size)
    topic, pos = unpack_string(value, pos)
    (size,) = _U32.unpack_from(value, pos)
    payload = pos + 4 + size
    if payload > len(value):
        raise IndexError("properties that go on behind the record")
    return Message(
        topic,
        value[payload:],
        value[pos + 4 : payload],
        flags & 3,
        flags & 4 != 0,
        clock.to_monotonic(deadline_ms),
        publisher.decode(),
        key[:ORIGIN_BYTES],
        int.from_bytes(key[ORIGIN_BYTES:], "big"),
    )


def check_version(value: bytes, newest: int, family: str) -> None:
    """Raise StorageError if a newer program wrote the value."""
    if not value:
        raise StorageError(f"a {family} record is empty: the store is corrupt")
    if value[0] == 0:
        raise StorageError(f"a {family} record has no version: the store is corrupt")
    if value[0] > newest:
        raise StorageError(f"a {family} record has version {value[0]}; this program reads up to {newest}")


def corrupt(family: str, key: bytes, error: Exception) -> StorageError:
    """Return what to raise for a record that can't be read. A key may have a filter of 64 KiB in it."""
    name = key.hex() if len(key) <= _NAMED_BYTES_MAX else f"{key[:_NAMED_BYTES_MAX].hex()}..."
    return StorageError(f"the {family} record {name} is corrupt ({type(error).__name__}: {error})")


def string(value: str) -> bytes:
    """Return the text in UTF-8 behind its length in two bytes."""
    encoded = value.encode()
    return _U16.pack(len(encoded)) + encoded


def unpack_string(value: bytes, pos: int) -> tuple[bytes, int]:
    """Return the bytes at `pos` that stand behind their length, and where they end."""
    (size,) = _U16.unpack_from(value, pos)
    end: int = pos + 2 + size
    if end > len(value):
        raise IndexError("a string that goes on behind the record")
    return value[pos + 2 : end], end
