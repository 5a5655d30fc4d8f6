"""What the packed records between a listener and the queue-owner share: kinds, flags, how numbers and strings lie.

One ZeroMQ frame is one batch: a header, then records back to back. Numbers are big-endian, strings are a u16 length and
the bytes. `listener_records` has the records that a listener sends, `owner_records` those of the owner.

A header's `consumed` returns credit: how many bytes of the other side's frames were worked off since the last frame.
Both generations are stated so that a frame from or for a dead process is recognised and ignored. The other side of
these pipes is our own code, so a malformed record is a fault of ours: unpacking it raises AssertionError, IndexError or
UnicodeDecodeError, after no more work than the frame is long.
"""

from typing import Final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, write_i16_be, write_i32_be
from mypy_extensions import i16, i32, i64, u8

RECORD_VERSION: Final = 1
# What may be under way in each direction: some milliseconds' work, as everything new queues up behind it.
WINDOW_BYTES: Final = 1024 * 1024
# Credit is worth a frame of its own when this much of it waits to be returned.
RETURN_BYTES: Final = 64 * 1024
RETAIN_FLAG: Final = 4
EXPIRY_FLAG: Final = 8
DUP_FLAG: Final = 8

ATTACH: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
DELIVER: Final = 3
PUBACK: Final = 4
PUBREC: Final = 5
PUBREL: Final = 6
PUBCOMP: Final = 7
SUBSCRIBE: Final = 8
SUBACK: Final = 9
UNSUBSCRIBE: Final = 10
UNSUBACK: Final = 11
DETACH: Final = 14
CLOSE: Final = 14
PAUSED: Final = 20
RESUMED: Final = 21
COUNTERS: Final = 22


# What does not fit its field is a fault of ours, and the writer's to find: a length that wrapped would have the reader
# take a client's bytes for records. One shift finds what is too large and what is negative.


def put_u8(writer: BytesWriter, number: i64) -> None:
    """Append a u8."""
    assert number >> 8 == 0, f"{number} in a u8"
    writer.append(u8(number))


def put_u16(writer: BytesWriter, number: i64) -> None:
    """Append a u16."""
    assert number >> 16 == 0, f"{number} in a u16"
    # The library writes signed numbers; the wrap-around makes the same bytes.
    write_i16_be(writer, i16(number if number < 0x8000 else number - 0x10000))


def put_u32(writer: BytesWriter, number: i64) -> None:
    """Append a u32."""
    assert number >> 32 == 0, f"{number} in a u32"
    write_i32_be(writer, i32(number if number < 0x80000000 else number - 0x100000000))


def put_string(writer: BytesWriter, value: bytes) -> None:
    """Append a string."""
    put_u16(writer, len(value))
    writer.write(value)


def u16_at(frame: bytes, pos: i64) -> i64:
    """Read a u16."""
    return i64(read_i16_be(frame, pos)) & 0xFFFF


def u32_at(frame: bytes, pos: i64) -> i64:
    """Read a u32."""
    return i64(read_i32_be(frame, pos)) & 0xFFFFFFFF


def string_at(frame: bytes, pos: int) -> tuple[bytes, int]:
    """Return a string and where it ends."""
    end: int = pos + 2 + u16_at(frame, pos)
    return frame[pos + 2 : end], end
